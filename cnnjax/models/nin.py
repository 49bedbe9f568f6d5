"""Network in Network: Lin, Chen & Yan 2013, arXiv:1312.4400.

Each stage is a convolution and two 1 x 1 convolutions (the "mlpconv"), every one rectified; the
last stage has one map per class, and its global average is the logits. Widths, kernels and
ceil-mode pooling are those of the authors' Caffe definitions, which the paper leaves open; so is
the rectification of the last maps: the logits are never negative.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers.conv import conv
from cnnjax.layers.norm import bind
from cnnjax.layers.pool import avg_pool, global_avg_pool, max_pool
from cnnjax.layers.stochastic import Dropout
from cnnjax.models.entry import Entry, check_images

Factory = Callable[..., Any]
Activation = Callable[[jax.Array], jax.Array]

POOLS = {
  'max': partial(max_pool, window=3, strides=2, ceil_mode=True),
  'avg': partial(avg_pool, window=3, strides=2, ceil_mode=True),
  '': lambda x: x,
}


class MlpConv(NamedTuple):
  """A stage: widths of the convolution and the two 1 x 1 convolutions, and what follows.

  Attributes:
    features: three widths; 0 stands for the number of classes.
    kernel_size, strides, padding: of the convolution.
    pool: 'max', 'avg' or ''.
    dropout: whether dropout follows.
  """

  features: Sequence[int]
  kernel_size: int
  strides: int = 1
  padding: str = 'SYMMETRIC'
  pool: str = ''
  dropout: bool = False


class Stage(nn.Module):
  """See `MlpConv`."""

  spec: MlpConv
  num_classes: int
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    spec = self.spec
    for i, features in enumerate(spec.features, 1):
      first = {'kernel_size': spec.kernel_size, 'strides': spec.strides, 'padding': spec.padding}
      options = first if i == 1 else {'kernel_size': 1}
      x = self.conv(features or self.num_classes, **options, name=f'conv{i}')(x)
      x = self.act(self.norm(name=f'norm{i}')(x))
    return POOLS[spec.pool](x)


class NIN(nn.Module):
  """See the module's docstring.

  Attributes:
    stages: see `MlpConv`.
    num_classes: number of logits.
    smallest: least height and width of the image.
    dropout: rate after the stages that have it.
    dtype: compute type; parameters and logits are float32.
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory before each activation, or None as in the paper.
    act: activation.
  """

  stages: Sequence[MlpConv]
  num_classes: int = 1000
  smallest: int = 1
  dropout: float = 0.5
  dtype: Any = jnp.float32
  conv: Factory = conv
  norm: Factory | None = None
  act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self, smallest=self.smallest)
    start = nn.initializers.normal(0.05)
    conv = partial(self.conv, dtype=self.dtype, use_bias=True, kernel_init=start)
    norm = bind(self.norm, train=train, dtype=self.dtype)
    x = images
    for i, spec in enumerate(self.stages, 1):
      x = Stage(spec, self.num_classes, conv, norm, self.act, name=f'stage{i}')(x)
      if spec.dropout:
        x = Dropout(self.dropout, name=f'dropout{i}')(x, train)
    return global_avg_pool(x.astype(jnp.float32))


_PAPER = 'Lin et al. 2013, arXiv:1312.4400'
_CIFAR = (
  MlpConv((192, 160, 96), 5, pool='max', dropout=True),
  MlpConv((192, 192, 192), 5, pool='avg', dropout=True),
  MlpConv((192, 192, 0), 3),
)
_IMAGENET = (
  MlpConv((96, 96, 96), 11, 4, 'VALID', pool='max'),
  MlpConv((256, 256, 256), 5, pool='max'),
  MlpConv((384, 384, 384), 3, pool='max', dropout=True),
  MlpConv((1024, 1024, 0), 3),
)

VARIANTS = {
  'nin_cifar': Entry(partial(NIN, stages=_CIFAR, smallest=4), (32, 32, 3), 10, _PAPER),
  'nin': Entry(partial(NIN, stages=_IMAGENET, smallest=39), paper=_PAPER),
}
