"""SqueezeNet: Iandola et al. 2016, arXiv:1602.07360; 1.1 is the authors' later, cheaper form.

As torchvision has them: ceil-mode pooling, and the last convolution, one map per class, is
rectified before its global average, so the logits are never negative.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers import init
from cnnjax.layers.conv import conv
from cnnjax.layers.norm import bind
from cnnjax.layers.pool import global_avg_pool, max_pool
from cnnjax.layers.stochastic import Dropout
from cnnjax.models.entry import Entry, check_images

Factory = Callable[..., Any]
Activation = Callable[[jax.Array], jax.Array]


class Fire(nn.Module):
  """A 1 x 1 convolution squeezes, 1 x 1 and 3 x 3 expand, `expand` channels each."""

  squeeze: int
  expand: int
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    def layer(name: str, features: int, kernel_size: int, x: jax.Array) -> jax.Array:
      x = self.conv(features, kernel_size, name=name)(x)
      return self.act(self.norm(name=f'{name}_norm')(x))

    x = layer('squeeze', self.squeeze, 1, x)
    branches = [layer(f'expand{k}x{k}', self.expand, k, x) for k in (1, 3)]
    return jnp.concatenate(branches, -1)


class Stem(nn.Module):
  """A strided convolution without padding, and its activation."""

  features: int
  kernel_size: int
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(self.features, self.kernel_size, strides=2, padding='VALID', name='conv')(x)
    return self.act(self.norm(name='norm')(x))


class Stage(nn.Module):
  """Max-pooling, then fire modules, given by their widths after the squeeze."""

  squeezes: Sequence[int]
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = max_pool(x, 3, strides=2, ceil_mode=True)
    for i, squeeze in enumerate(self.squeezes, 1):
      x = Fire(squeeze, 4 * squeeze, self.conv, self.norm, self.act, name=f'fire{i}')(x)
    return x


class Head(nn.Module):
  """Dropout, a 1 x 1 convolution to one map per class, activation, global average."""

  num_classes: int
  dropout: float
  conv: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    x = Dropout(self.dropout, name='dropout')(x, train)
    start = nn.initializers.normal(0.01)
    x = self.conv(self.num_classes, 1, kernel_init=start, name='logits')(x)
    return global_avg_pool(self.act(x).astype(jnp.float32))


class SqueezeNet(nn.Module):
  """See the module's docstring.

  Attributes:
    stem: features and kernel size of the first convolution.
    stages: widths after the squeeze of each stage's fire modules.
    num_classes: number of logits.
    smallest: least height and width of the image.
    dropout: rate before the last convolution.
    dtype: compute type; parameters and logits are float32.
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory before each activation, or None as in the paper.
    act: activation.
  """

  stem: tuple[int, int]
  stages: Sequence[Sequence[int]]
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
    conv = partial(self.conv, dtype=self.dtype, use_bias=True, kernel_init=init.he_uniform)
    norm = bind(self.norm, train=train, dtype=self.dtype)
    x = Stem(*self.stem, conv, norm, self.act, name='stem')(images)
    for i, squeezes in enumerate(self.stages, 1):
      x = Stage(squeezes, conv, norm, self.act, name=f'stage{i}')(x)
    return Head(self.num_classes, self.dropout, conv, self.act, name='head')(x, train)


_PAPER = 'Iandola et al. 2016, arXiv:1602.07360'
_V1_0 = ((16, 16, 32), (32, 48, 48, 64), (64,))
_V1_1 = ((16, 16), (32, 32), (48, 48, 64, 64))

VARIANTS = {
  'squeezenet1_0': Entry(
    partial(SqueezeNet, stem=(96, 7), stages=_V1_0, smallest=21), paper=_PAPER
  ),
  'squeezenet1_1': Entry(
    partial(SqueezeNet, stem=(64, 3), stages=_V1_1, smallest=17), paper=_PAPER
  ),
}
