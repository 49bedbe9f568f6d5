"""GhostNet: Han et al. 2019, "GhostNet: More Features from Cheap Operations", arXiv:1911.11907,
table 1. Conventions are timm's.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers import init
from cnnjax.layers.attention import SqueezeExcite
from cnnjax.layers.conv import conv
from cnnjax.layers.norm import BatchNorm, bind
from cnnjax.models.entry import Entry, check_images
from cnnjax.models.mobile import (
  Activation,
  ConvNorm,
  Depthwise,
  Factory,
  Head,
  Stage,
  round_width,
)


class Row(NamedTuple):
  """A block: its row in the paper's table."""

  kernel_size: int
  expanded: int
  features: int
  se: bool = False
  strides: int = 1


# Blocks of each stage; a stage begins where the image is halved.
STAGES = (
  (Row(3, 16, 16),),
  (Row(3, 48, 24, strides=2), Row(3, 72, 24)),
  (Row(5, 72, 40, True, 2), Row(5, 120, 40, True)),
  (
    Row(3, 240, 80, strides=2),
    Row(3, 200, 80),
    *(Row(3, 184, 80),) * 2,
    Row(3, 480, 112, True),
    Row(3, 672, 112, True),
  ),
  (Row(5, 672, 160, True, 2), *(Row(5, 960, 160), Row(5, 960, 160, True)) * 2),
)


class Ghost(nn.Module):
  """The ghost module: half of the features by 1 x 1 convolution, half from those (section 3.1).

  Attributes:
    features: output channels.
    conv, norm: factories, bound to training mode and compute type.
    act: activation, or None.
  """

  features: int
  conv: Factory
  norm: Factory
  act: Activation | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    layers: dict[str, Any] = {'conv': self.conv, 'norm': self.norm, 'act': self.act}
    x = ConvNorm(-(-self.features // 2), 1, **layers, name='primary')(x)
    y = Depthwise(3, **layers, name='cheap')(x)
    return jnp.concatenate([x, y], -1)[..., : self.features]


class Shortcut(nn.Module):
  """Depthwise and 1 x 1 convolution."""

  features: int
  kernel_size: int
  strides: int
  conv: Factory
  norm: Factory

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    pair: dict[str, Any] = {'conv': self.conv, 'norm': self.norm}
    x = Depthwise(self.kernel_size, **pair, strides=self.strides, name='depthwise')(x)
    return ConvNorm(self.features, 1, **pair, name='project')(x)


class Bottleneck(nn.Module):
  """Two ghost modules, where strided a depthwise convolution between, and a shortcut (figure 3).

  Attributes:
    features: output channels.
    expanded: channels between the ghost modules.
    kernel_size: of the depthwise convolutions.
    strides: of the depthwise convolutions.
    conv, norm, act: factories and activation, bound to training mode and compute type.
    se: module before the second ghost module, or None.
  """

  features: int
  expanded: int
  kernel_size: int
  strides: int
  conv: Factory
  norm: Factory
  act: Activation
  se: Factory | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    pair: dict[str, Any] = {'conv': self.conv, 'norm': self.norm}
    y = Ghost(self.expanded, **pair, act=self.act, name='ghost1')(x)
    if self.strides > 1:
      y = Depthwise(self.kernel_size, **pair, strides=self.strides, name='depthwise')(y)
    if self.se is not None:
      y = self.se(name='se')(y)
    y = Ghost(self.features, **pair, name='ghost2')(y)
    if self.strides != 1 or x.shape[-1] != self.features:
      shape = (self.features, self.kernel_size, self.strides)
      x = Shortcut(*shape, **pair, name='shortcut')(x)
    return x + y


class GhostNet(nn.Module):
  """See the module's docstring. The image may have any size.

  Attributes:
    num_classes: number of logits.
    width: multiplier of every layer's channels but the head's.
    dropout: rate before the logits.
    dtype: compute type; parameters, statistics and logits are float32.
    conv, norm, act: see `cnnjax.models.resnet.ResNet`.
  """

  num_classes: int = 1000
  width: float = 1.0
  dropout: float = 0.2
  dtype: Any = jnp.float32
  conv: Factory = partial(conv, kernel_init=init.torch_uniform)
  norm: Factory | None = BatchNorm
  act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self)
    layers: dict[str, Any] = {
      'conv': partial(self.conv, dtype=self.dtype),
      'norm': bind(self.norm, train=train, dtype=self.dtype),
      'act': self.act,
    }
    gate: dict[str, Any] = {'act': self.act, 'gate': nn.hard_sigmoid, 'dtype': self.dtype}
    scale = lambda channels: round_width(channels * self.width, divisor=4)
    x = ConvNorm(scale(16), 3, **layers, strides=2, name='stem')(images)
    for i, rows in enumerate(STAGES, 1):
      blocks = []
      for row in rows:
        expanded = scale(row.expanded)
        shape = (scale(row.features), expanded, row.kernel_size, row.strides)
        se = partial(SqueezeExcite, round_width(expanded / 4, divisor=4), **gate)
        blocks.append(partial(Bottleneck, *shape, **layers, se=se if row.se else None))
      x = Stage(tuple(blocks), name=f'stage{i}')(x)
    width = scale(960)
    last = partial(ConvNorm, width, 1, **layers)
    dense = lambda fan: {'kernel_init': init.torch_uniform, 'bias_init': init.torch_bias(fan)}
    hidden = partial(nn.Dense, 1280, dtype=self.dtype, **dense(width))
    options: dict[str, Any] = {'act': self.act, **dense(1280)}
    return Head(self.num_classes, last, self.dropout, hidden, **options, name='head')(x, train)


_PAPER = 'Han et al. 2019, arXiv:1911.11907'
VARIANTS = {
  'ghostnet_050': Entry(partial(GhostNet, width=0.5), paper=_PAPER),
  'ghostnet_100': Entry(GhostNet, paper=_PAPER),
  'ghostnet_130': Entry(partial(GhostNet, width=1.3), paper=_PAPER),
}
