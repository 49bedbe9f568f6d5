"""MobileNet v4: Qin et al. 2024, "MobileNetV4: Universal Models for the Mobile Ecosystem",
arXiv:2404.10518, the convolutional models. Conventions are timm's; dropout is off, as there.

The universal inverted bottleneck (section 3) has two optional depthwise convolutions: with both it
is the paper's ExtraDW, with only the first a ConvNext block, with only the second an inverted
residual, with neither a feed-forward layer.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers import init
from cnnjax.layers.conv import conv
from cnnjax.layers.norm import BatchNorm, bind
from cnnjax.models.entry import Entry, check_images
from cnnjax.models.mobile import (
  Activation,
  ConvNorm,
  Factory,
  Head,
  InvertedResidual,
  Stage,
  round_width,
)


class Conv(NamedTuple):
  """A convolution."""

  kernel_size: int
  features: int
  strides: int = 1


class Fused(NamedTuple):
  """A convolution that expands, and a linear projection."""

  kernel_size: int
  expansion: int
  features: int
  strides: int = 1


class Universal(NamedTuple):
  """A universal inverted bottleneck; a kernel size of 0 stands for no convolution."""

  start: int
  kernel_size: int
  expansion: int
  features: int
  strides: int = 1


Row = Conv | Fused | Universal
SMALL = (
  (Conv(3, 32, 2), Conv(1, 32)),
  (Conv(3, 96, 2), Conv(1, 64)),
  (Universal(5, 5, 3, 96, 2), *(Universal(0, 3, 2, 96),) * 4, Universal(3, 0, 4, 96)),
  (
    Universal(3, 3, 6, 128, 2),
    Universal(5, 5, 4, 128),
    Universal(0, 5, 4, 128),
    Universal(0, 5, 3, 128),
    *(Universal(0, 3, 4, 128),) * 2,
  ),
  (Conv(1, 960),),
)
MEDIUM = (
  (Fused(3, 4, 48, 2),),
  (Universal(3, 5, 4, 80, 2), Universal(3, 3, 2, 80)),
  (
    Universal(3, 5, 6, 160, 2),
    *(Universal(3, 3, 4, 160),) * 2,
    Universal(3, 5, 4, 160),
    Universal(3, 3, 4, 160),
    Universal(3, 0, 4, 160),
    Universal(0, 0, 2, 160),
    Universal(3, 0, 4, 160),
  ),
  (
    Universal(5, 5, 6, 256, 2),
    Universal(5, 5, 4, 256),
    *(Universal(3, 5, 4, 256),) * 2,
    Universal(0, 0, 4, 256),
    Universal(3, 0, 4, 256),
    Universal(3, 5, 2, 256),
    Universal(5, 5, 4, 256),
    *(Universal(0, 0, 4, 256),) * 2,
    Universal(5, 0, 2, 256),
  ),
  (Conv(1, 960),),
)
LARGE = (
  (Fused(3, 4, 48, 2),),
  (Universal(3, 5, 4, 96, 2), Universal(3, 3, 4, 96)),
  (
    Universal(3, 5, 4, 192, 2),
    *(Universal(3, 3, 4, 192),) * 3,
    Universal(3, 5, 4, 192),
    *(Universal(5, 3, 4, 192),) * 5,
    Universal(3, 0, 4, 192),
  ),
  (
    Universal(5, 5, 4, 512, 2),
    *(Universal(5, 5, 4, 512),) * 3,
    Universal(5, 0, 4, 512),
    Universal(5, 3, 4, 512),
    *(Universal(5, 0, 4, 512),) * 2,
    Universal(5, 3, 4, 512),
    Universal(5, 5, 4, 512),
    *(Universal(5, 0, 4, 512),) * 3,
  ),
  (Conv(1, 960),),
)


class FusedBottleneck(nn.Module):
  """A convolution that expands and strides, and a linear 1 x 1 projection; no shortcut."""

  features: int
  expanded: int
  kernel_size: int
  strides: int
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    layers: dict[str, Any] = {'conv': self.conv, 'norm': self.norm}
    expand = partial(ConvNorm, act=self.act, strides=self.strides, name='expand')
    x = expand(self.expanded, self.kernel_size, **layers)(x)
    return ConvNorm(self.features, 1, **layers, name='project')(x)


class Hidden(nn.Module):
  """1 x 1 convolution and normalisation of pooled features, [N, C] -> [N, features]."""

  features: int
  conv: Factory
  norm: Factory

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(self.features, 1, name='conv')(x[:, None, None, :])
    return self.norm(name='norm')(x)[:, 0, 0, :]


class MobileNetV4(nn.Module):
  """See the module's docstring. The image may have any size.

  Attributes:
    stages: the blocks of each stage, at width 1.
    features: width of the stem.
    num_classes: number of logits.
    width: multiplier of every layer's channels but the head's; below 1 it spares the stem.
    dropout: rate before the logits.
    drop_path_rate: stochastic depth's rate, that of a block after the last.
    dtype: compute type; parameters, statistics and logits are float32.
    conv, norm, act: see `cnnjax.models.resnet.ResNet`.
  """

  stages: tuple[tuple[Row, ...], ...]
  features: int = 32
  num_classes: int = 1000
  width: float = 1.0
  dropout: float = 0.0
  drop_path_rate: float = 0.0
  dtype: Any = jnp.float32
  conv: Factory = conv
  norm: Factory | None = BatchNorm
  act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self)
    pair: dict[str, Any] = {
      'conv': partial(self.conv, dtype=self.dtype),
      'norm': bind(self.norm, train=train, dtype=self.dtype),
    }
    layers: dict[str, Any] = {**pair, 'act': self.act}
    universal = partial(InvertedResidual, **layers, depthwise_init=init.he_fan_in, train=train)
    channels = round_width(self.features * max(1.0, self.width))
    x = ConvNorm(channels, 3, **layers, strides=2, name='stem')(images)
    total, done = sum(map(len, self.stages)), 0
    for i, rows in enumerate(self.stages, 1):
      blocks = []
      for row in rows:
        features = round_width(row.features * self.width)
        match row:
          case Conv(kernel_size, _, strides):
            block = partial(ConvNorm, features, kernel_size, **layers, strides=strides)
          case Fused(kernel_size, expansion, _, strides):
            shape = (features, round_width(channels * expansion), kernel_size, strides)
            block = partial(FusedBottleneck, *shape, **layers)
          case Universal(start, kernel_size, expansion, _, strides):
            shape = (features, round_width(channels * expansion), kernel_size, strides)
            rate = self.drop_path_rate * done / total
            block = partial(universal, *shape, start=start, drop_path=rate)
        blocks.append(block)
        channels, done = features, done + 1
      x = Stage(tuple(blocks), name=f'stage{i}')(x)
    hidden = partial(Hidden, 1280, **pair)
    options: dict[str, Any] = {'act': self.act, 'kernel_init': init.uniform_fan_out}
    head = Head(self.num_classes, None, self.dropout, hidden, **options, name='head')
    return head(x, train)


def _variant(stages: tuple[tuple[Row, ...], ...], image: int, **options: Any) -> Entry:
  paper = 'Qin et al. 2024, arXiv:2404.10518'
  return Entry(partial(MobileNetV4, stages=stages, **options), (image, image, 3), paper=paper)


VARIANTS = {
  'mobilenetv4_conv_small': _variant(SMALL, 224),
  'mobilenetv4_conv_medium': _variant(MEDIUM, 256),
  'mobilenetv4_conv_large': _variant(LARGE, 384, features=24),
}
