"""RegNets: Radosavovic et al. 2020, "Designing Network Design Spaces", arXiv:2003.13678, as
torchvision has them.

X: residual bottlenecks that keep their width, with grouped 3 x 3 convolutions. Y: the same with
squeeze-and-excitation. Four numbers give all depths and widths (equations 2 to 4, `widths`).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.errors import unknown
from cnnjax.layers.attention import SqueezeExcite
from cnnjax.layers.conv import conv
from cnnjax.layers.norm import BatchNorm, bind
from cnnjax.models.entry import Entry, check_images
from cnnjax.models.mobile import Activation, ConvNorm, Factory, Head, Stage, round_width
from cnnjax.models.resnet import rematerialise


class Block(nn.Module):
  """1 x 1, grouped 3 x 3 and 1 x 1 convolutions of one width, and a shortcut (figure 4).

  Attributes:
    features: width.
    strides: of the 3 x 3 convolution and the shortcut.
    group_width: channels per group.
    reduced: hidden width of the attention; 0 for none.
    conv, norm, act: factories and activation, bound to training mode and compute type.
    dtype: compute type of the attention.
  """

  features: int
  strides: int
  group_width: int
  reduced: int
  conv: Factory
  norm: Factory
  act: Activation
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    layer = partial(ConvNorm, self.features, conv=self.conv, norm=self.norm)
    groups = (('groups', self.features // self.group_width),)
    y = layer(1, act=self.act, name='conv1')(x)
    y = layer(3, act=self.act, strides=self.strides, options=groups, name='conv2')(y)
    if self.reduced:
      y = SqueezeExcite(self.reduced, act=self.act, dtype=self.dtype, name='se')(y)
    y = layer(1, name='conv3')(y)
    if y.shape != x.shape:
      x = layer(1, strides=self.strides, name='shortcut')(x)
    return self.act(x + y)


STEMS = {'imagenet': 2, 'cifar': 1}


class RegNet(nn.Module):
  """See the module's docstring. The image may have any size.

  Attributes:
    depth: number of blocks, d.
    width: of the first block, w0; a multiple of 8.
    slope: by which the width grows from block to block, wa.
    factor: between the widths of successive stages, wm.
    group_width: channels per group, g.
    squeeze: the attention's hidden width, in units of the block's input; 0: none (X).
    num_classes: number of logits.
    stem: 'imagenet' (3 x 3, stride 2) or 'cifar' (stride 1).
    dtype: compute type; parameters, statistics and logits are float32.
    remat: compute each block's activations again in the backward pass instead of keeping them.
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory; see `cnnjax.layers.norm.bind`.
    act: activation.
  """

  depth: int
  width: int
  slope: float
  factor: float
  group_width: int
  squeeze: float = 0.0
  num_classes: int = 1000
  stem: str = 'imagenet'
  dtype: Any = jnp.float32
  remat: bool = False
  conv: Factory = conv
  norm: Factory | None = BatchNorm
  act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self)
    if self.stem not in STEMS:
      raise unknown('model.stem', self.stem, STEMS)
    layers = {
      'conv': partial(self.conv, dtype=self.dtype),
      'norm': bind(self.norm, train=train, dtype=self.dtype),
      'act': self.act,
    }
    block = partial(rematerialise(Block) if self.remat else Block, **layers, dtype=self.dtype)
    x = ConvNorm(32, 3, **layers, strides=STEMS[self.stem], name='stem')(images)
    before = x.shape[-1]
    shape = {'width': self.width, 'slope': self.slope, 'factor': self.factor}
    stages = widths(self.depth, **shape, group_width=self.group_width)
    for i, (features, size) in enumerate(stages, 1):
      group_width = min(self.group_width, features)
      blocks = []
      for j in range(size):
        reduced = round(self.squeeze * before)
        blocks.append(partial(block, features, 2 if j == 0 else 1, group_width, reduced))
        before = features
      x = Stage(tuple(blocks), name=f'stage{i}')(x)
    return Head(self.num_classes, name='head')(x, train)


def widths(
  depth: int, *, width: int, slope: float, factor: float, group_width: int
) -> tuple[tuple[int, int], ...]:
  """Width and number of blocks of each stage.

  Block j shall be `width + slope * j` wide (equation 2). That is rounded to a power of `factor`
  times `width` (equations 3 and 4), and then to a multiple of 8; equal widths make a stage. Last,
  a stage's width becomes a multiple of the groups'.
  """
  linear = width + slope * np.arange(depth)
  powers = np.round(np.log(linear / width) / np.log(factor))
  quantised = 8 * np.round(width * factor**powers / 8)
  values, sizes = np.unique(quantised.astype(int), return_counts=True)
  rounded = [round_width(v, divisor=min(v, group_width)) for v in values.tolist()]
  return tuple(zip(rounded, sizes.tolist(), strict=True))


def _variant(
  depth: int, width: int, slope: float, factor: float, group_width: int, squeeze: float = 0.0
) -> Entry:
  build = partial(
    RegNet,
    depth=depth,
    width=width,
    slope=slope,
    factor=factor,
    group_width=group_width,
    squeeze=squeeze,
  )
  return Entry(build, paper='Radosavovic et al. 2020, arXiv:2003.13678')


_x = _variant
_y = partial(_variant, squeeze=0.25)

# Depth, w0, wa, wm and group width.
VARIANTS = {
  'regnet_x_400mf': _x(22, 24, 24.48, 2.54, 16),
  'regnet_x_800mf': _x(16, 56, 35.73, 2.28, 16),
  'regnet_x_1_6gf': _x(18, 80, 34.01, 2.25, 24),
  'regnet_x_3_2gf': _x(25, 88, 26.31, 2.25, 48),
  'regnet_x_8gf': _x(23, 80, 49.56, 2.88, 120),
  'regnet_x_16gf': _x(22, 216, 55.59, 2.1, 128),
  'regnet_x_32gf': _x(23, 320, 69.86, 2.0, 168),
  'regnet_y_400mf': _y(16, 48, 27.89, 2.09, 8),
  'regnet_y_800mf': _y(14, 56, 38.84, 2.4, 16),
  'regnet_y_1_6gf': _y(27, 48, 20.71, 2.65, 24),
  'regnet_y_3_2gf': _y(21, 80, 42.63, 2.66, 24),
  'regnet_y_8gf': _y(17, 192, 76.82, 2.19, 56),
  'regnet_y_16gf': _y(18, 200, 106.23, 2.48, 112),
  'regnet_y_32gf': _y(20, 232, 115.89, 2.53, 232),
}
