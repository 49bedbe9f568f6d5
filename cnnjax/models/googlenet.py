"""GoogLeNet: Szegedy et al. 2014, "Going Deeper with Convolutions", arXiv:1409.4842, table 1.

As torchvision has it: batch normalisation (epsilon 1e-3) after every convolution in place of local
response normalisation, ceil-mode pooling, and a 3 x 3 kernel in the branch that the paper calls
"5 x 5" (a slip that its published weights keep; `wide_kernel=5` gives the paper's). The auxiliary
classifiers, which serve only training, are left out.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers.conv import conv
from cnnjax.layers.norm import BatchNorm, bind
from cnnjax.layers.pool import global_avg_pool, max_pool
from cnnjax.layers.stochastic import Dropout
from cnnjax.models.entry import Entry, check_images
from cnnjax.models.resnet import rematerialise

Factory = Callable[..., Any]
Activation = Callable[[jax.Array], jax.Array]


class ConvNorm(nn.Module):
  """Convolution, normalisation, activation.

  Attributes:
    features, kernel_size: of the convolution.
    conv, norm, act: factories and activation, bound to training mode and compute type.
    options: of the convolution, as (name, value) pairs.
  """

  features: int
  kernel_size: int | tuple[int, int]
  conv: Factory
  norm: Factory
  act: Activation
  options: tuple[tuple[str, Any], ...] = ()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(self.features, self.kernel_size, **dict(self.options), name='conv')(x)
    return self.act(self.norm(name='norm')(x))


class Stem(nn.Module):
  """Three convolutions, two poolings: an eighth of the image's side, 192 channels."""

  unit: Factory

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    pool = partial(max_pool, window=3, strides=2, ceil_mode=True)
    x = pool(self.unit(64, 7, options=(('strides', 2),), name='conv1')(x))
    x = self.unit(64, 1, name='conv2')(x)
    return pool(self.unit(192, 3, name='conv3')(x))


class Inception(nn.Module):
  """Figure 2b: 1 x 1, 3 x 3, "5 x 5" and pooling, side by side.

  Attributes:
    features: widths as in table 1: 1 x 1; 3 x 3 reduced, 3 x 3; 5 x 5 reduced, 5 x 5; pooled.
    unit: bound `ConvNorm`.
    wide_kernel: kernel size of the third branch.
  """

  features: Sequence[int]
  unit: Factory
  wide_kernel: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    one, reduced3, three, reduced5, five, pooled = self.features
    y1 = self.unit(one, 1, name='branch1')(x)
    y2 = self.unit(reduced3, 1, name='branch2_1')(x)
    y2 = self.unit(three, 3, name='branch2_2')(y2)
    y3 = self.unit(reduced5, 1, name='branch3_1')(x)
    y3 = self.unit(five, self.wide_kernel, name='branch3_2')(y3)
    y4 = self.unit(pooled, 1, name='branch4')(max_pool(x, 3, strides=1, padding=1))
    return jnp.concatenate([y1, y2, y3, y4], -1)


class Stage(nn.Module):
  """Blocks of the given widths, and before them a pooling with stride 2 where `window` isn't 0."""

  blocks: Sequence[Sequence[int]]
  window: int
  block: Factory

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.window:
      x = max_pool(x, self.window, strides=2, ceil_mode=True)
    for i, features in enumerate(self.blocks, 1):
      x = self.block(features, name=f'block{i}')(x)
    return x


class Head(nn.Module):
  """Global average, dropout, logits in float32."""

  num_classes: int
  dropout: float
  kernel_init: nn.initializers.Initializer

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    x = global_avg_pool(x.astype(jnp.float32))
    x = Dropout(self.dropout, name='dropout')(x, train)
    return nn.Dense(self.num_classes, kernel_init=self.kernel_init, name='logits')(x)


# Table 1, rows inception (3a) to (5b).
STAGES = (
  ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
  (
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
  ),
  ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class GoogLeNet(nn.Module):
  """See the module's docstring.

  Attributes:
    num_classes: number of logits.
    stages: widths of each stage's inception blocks.
    wide_kernel: 3 as in torchvision, or the paper's 5.
    dropout: rate before the logits (the paper's is 0.4).
    dtype: compute type; parameters, statistics and logits are float32.
    remat: compute each block's activations again in the backward pass instead of keeping them.
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory; see `cnnjax.layers.norm.bind`.
    act: activation.
  """

  num_classes: int = 1000
  stages: Sequence[Sequence[Sequence[int]]] = STAGES
  wide_kernel: int = 3
  dropout: float = 0.2
  dtype: Any = jnp.float32
  remat: bool = False
  conv: Factory = conv
  norm: Factory | None = partial(BatchNorm, epsilon=1e-3)
  act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self, smallest=15)
    start = nn.initializers.normal(0.01)
    unit = partial(
      ConvNorm,
      conv=partial(self.conv, dtype=self.dtype, kernel_init=start),
      norm=bind(self.norm, train=train, dtype=self.dtype),
      act=self.act,
    )
    block = rematerialise(Inception) if self.remat else Inception
    block = partial(block, unit=unit, wide_kernel=self.wide_kernel)
    x = Stem(unit, name='stem')(images)
    for i, (blocks, window) in enumerate(zip(self.stages, (0, 3, 2), strict=True), 1):
      x = Stage(blocks, window, block, name=f'stage{i}')(x)
    return Head(self.num_classes, self.dropout, start, name='head')(x, train)


VARIANTS = {'googlenet': Entry(GoogLeNet, paper='Szegedy et al. 2014, arXiv:1409.4842')}
