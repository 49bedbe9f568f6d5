"""The configurable CNN: stages of convolutions and pooling, dense layers, logits.

Conv, pool, fully connected, softmax: what textbooks draw, with modern choices as options.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import UserError, unknown
from cnnjax.layers import init
from cnnjax.layers.conv import conv
from cnnjax.layers.norm import bind
from cnnjax.layers.pool import avg_pool, global_avg_pool, max_pool
from cnnjax.layers.stochastic import Dropout
from cnnjax.models.entry import Entry, check_images

POOLS = {
  'max': partial(max_pool, window=2),
  'avg': partial(avg_pool, window=2),
  'none': lambda x: x,
}
PADDINGS = ('SAME', 'VALID')


class Stage(nn.Module):
  """`convs` times convolution, normalisation, activation; then pooling.

  With `pool_first` the pooling follows the first convolution at once: the rest of the stage works
  on a quarter of the elements (as in Jordan 2024, https://arxiv.org/abs/2404.00498).
  """

  features: int
  convs: int
  conv: Callable[..., Any]
  norm: Callable[..., Any]
  act: Callable[[jax.Array], jax.Array]
  pool: Callable[[jax.Array], jax.Array]
  pool_first: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(1, self.convs + 1):
      x = self.conv(self.features, name=f'conv{i}')(x)
      if self.pool_first and i == 1:
        x = self.pool(x)
      x = self.act(self.norm(name=f'norm{i}')(x))
    return x if self.pool_first else self.pool(x)


class Head(nn.Module):
  """Dense layers, normalised as the convolutions are; dropout before each, or before the logits
  where there is none; logits.
  """

  num_classes: int
  dense: Sequence[int]
  dropout: float
  norm: Callable[..., Any]
  use_bias: bool
  act: Callable[[jax.Array], jax.Array]
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    x = x.reshape(x.shape[0], -1)
    dense = partial(nn.Dense, use_bias=self.use_bias, dtype=self.dtype, kernel_init=init.he_fan_in)
    for i, features in enumerate(self.dense, 1):
      x = Dropout(self.dropout, name=f'dropout{i}')(x, train)
      x = self.act(self.norm(name=f'norm{i}')(dense(features, name=f'dense{i}')(x)))
    if not self.dense:
      x = Dropout(self.dropout, name='dropout')(x, train)
    logits = nn.Dense(self.num_classes, kernel_init=init.lecun_tanh, name='logits')
    return logits(x.astype(jnp.float32))


class CNN(nn.Module):
  """See the module's docstring.

  Attributes:
    num_classes: number of logits.
    features: output channels of each stage; each stage halves the image.
    convs: convolutions in each stage.
    kernel_size: height and width of every kernel.
    padding: 'SAME' (only pooling shrinks the image) or 'VALID'.
    pool: 'max', 'avg' or 'none', 2 x 2; or any function that halves [N, H, W, C], such as
      `resnet_blur.max_blur_pool` (anti-aliased).
    pool_first: pool after the stage's first convolution instead of at its end.
    global_pool: average over the image before the dense layers, else flatten it.
    dense: units of each hidden dense layer.
    dropout: rate before each hidden dense layer, or before the logits where there is none.
    dtype: compute type; parameters and logits are float32.
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory before each hidden activation, or None.
    act: activation.
  """

  num_classes: int = 10
  features: Sequence[int] = (32, 64)
  convs: int = 1
  kernel_size: int = 3
  padding: str = 'SAME'
  pool: str | Callable[[jax.Array], jax.Array] = 'max'
  pool_first: bool = False
  global_pool: bool = False
  dense: Sequence[int] = (128,)
  dropout: float = 0.0
  dtype: Any = jnp.float32
  conv: Callable[..., Any] = conv
  norm: Callable[..., Any] | None = None
  act: Callable[[jax.Array], jax.Array] = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    if isinstance(self.pool, str) and self.pool not in POOLS:
      raise unknown('model.pool', self.pool, POOLS)
    if self.padding not in PADDINGS:
      raise unknown('model.padding', self.padding, PADDINGS)
    if self.convs < 1 or self.kernel_size < 1:
      raise UserError(f'model.convs={self.convs} and kernel_size={self.kernel_size} start at 1')
    check_images(images, model=self, smallest=self._smallest())
    conv = partial(
      self.conv,
      kernel_size=self.kernel_size,
      padding=self.padding,
      use_bias=self.norm is None,
      kernel_init=init.he_fan_in,
      dtype=self.dtype,
    )
    norm = bind(self.norm, train=train, dtype=self.dtype)
    x = images
    for i, features in enumerate(self.features, 1):
      pool = POOLS[self.pool] if isinstance(self.pool, str) else self.pool
      stage = Stage(
        features, self.convs, conv, norm, self.act, pool, self.pool_first, name=f'stage{i}'
      )
      x = stage(x)
    if self.global_pool:
      x = global_avg_pool(x)
    head = Head(
      self.num_classes,
      self.dense,
      self.dropout,
      norm,
      self.norm is None,
      self.act,
      self.dtype,
      name='head',
    )
    return head(x, train)

  def _smallest(self) -> int:
    shrink = self.kernel_size - 1 if self.padding == 'VALID' else 0
    scale = 1 if self.pool == 'none' else 2
    before = 1 if self.pool_first else self.convs  # convolutions before the pooling
    size = 1
    for _ in self.features:
      size = scale * (size + shrink * (self.convs - before)) + shrink * before
    return size


VARIANTS = {'cnn': Entry(CNN, (28, 28, 1), 10, 'LeCun et al. 1989, Neural Computation 1(4)')}
