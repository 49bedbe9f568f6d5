"""VGG: Simonyan & Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", arXiv:1409.1556, configurations A, B, D and E.

As torchvision has them: convolutions keep their bias before batch normalisation (`_bn`), which the
paper doesn't have; what the last pooling leaves is averaged to 7 x 7, so any size from 32 works;
He's initialisation for the convolutions, N(0, 0.01²) for the dense layers as in the paper.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers.conv import conv
from cnnjax.layers.norm import BatchNorm, bind
from cnnjax.layers.pool import max_pool
from cnnjax.models.alexnet import Head
from cnnjax.models.entry import Entry, check_images

Factory = Callable[..., Any]
Activation = Callable[[jax.Array], jax.Array]


class Stage(nn.Module):
  """`size` 3 x 3 convolutions and a 2 x 2 max-pooling."""

  size: int
  features: int
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(1, self.size + 1):
      x = self.conv(self.features, 3, name=f'conv{i}')(x)
      x = self.act(self.norm(name=f'norm{i}')(x))
    return max_pool(x, 2)


class VGG(nn.Module):
  """See the module's docstring.

  Attributes:
    stage_sizes: convolutions in each of the five stages.
    num_classes: number of logits.
    dropout: rate after the two hidden dense layers.
    dtype: compute type; parameters, statistics and logits are float32.
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory before each convolution's activation, or None.
    act: activation.
  """

  stage_sizes: Sequence[int]
  num_classes: int = 1000
  dropout: float = 0.5
  dtype: Any = jnp.float32
  conv: Factory = conv
  norm: Factory | None = None
  act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self, smallest=2 ** len(self.stage_sizes))
    conv = partial(self.conv, dtype=self.dtype, use_bias=True)
    norm = bind(self.norm, train=train, dtype=self.dtype)
    x = images
    for i, size in enumerate(self.stage_sizes):
      features = min(64 * 2**i, 512)
      x = Stage(size, features, conv, norm, self.act, name=f'stage{i + 1}')(x)
    rates = (0.0, self.dropout, self.dropout)
    return Head(self.num_classes, 7, rates, self.act, self.dtype, 0.01, name='head')(x, train)


STAGE_SIZES = {
  'vgg11': (1, 1, 2, 2, 2),
  'vgg13': (2, 2, 2, 2, 2),
  'vgg16': (2, 2, 3, 3, 3),
  'vgg19': (2, 2, 4, 4, 4),
}
_PAPER = 'Simonyan & Zisserman 2014, arXiv:1409.1556'

VARIANTS = {
  f'{name}{suffix}': Entry(partial(VGG, stage_sizes=sizes, norm=norm), paper=_PAPER)
  for name, sizes in STAGE_SIZES.items()
  for suffix, norm in (('', None), ('_bn', BatchNorm))
}
