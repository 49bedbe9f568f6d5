"""MobileNet v3: Howard et al. 2019, "Searching for MobileNetV3", arXiv:1905.02244, tables 1 and 2.

torchvision's definition: a normalised last convolution before the pooling, a dense layer after it.
Normalisation has the authors' epsilon 0.001 and keeps 0.99 of its running statistics.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers.attention import SqueezeExcite
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


class Row(NamedTuple):
  """A block: its row in the paper's tables."""

  kernel_size: int
  expanded: int
  features: int
  se: bool
  early: bool  # whether it has the earlier layers' activation
  strides: int


# Blocks of each stage; a stage begins where the image is halved.
LARGE = (
  (Row(3, 16, 16, False, True, 1),),
  (Row(3, 64, 24, False, True, 2), Row(3, 72, 24, False, True, 1)),
  (Row(5, 72, 40, True, True, 2), *(Row(5, 120, 40, True, True, 1),) * 2),
  (
    Row(3, 240, 80, False, False, 2),
    Row(3, 200, 80, False, False, 1),
    *(Row(3, 184, 80, False, False, 1),) * 2,
    Row(3, 480, 112, True, False, 1),
    Row(3, 672, 112, True, False, 1),
  ),
  (Row(5, 672, 160, True, False, 2), *(Row(5, 960, 160, True, False, 1),) * 2),
)
SMALL = (
  (Row(3, 16, 16, True, True, 2),),
  (Row(3, 72, 24, False, True, 2), Row(3, 88, 24, False, True, 1)),
  (
    Row(5, 96, 40, True, False, 2),
    *(Row(5, 240, 40, True, False, 1),) * 2,
    Row(5, 120, 48, True, False, 1),
    Row(5, 144, 48, True, False, 1),
  ),
  (Row(5, 288, 96, True, False, 2), *(Row(5, 576, 96, True, False, 1),) * 2),
)


class MobileNetV3(nn.Module):
  """See the module's docstring. The image may have any size.

  Attributes:
    stages: the blocks of each stage, at width 1.
    hidden: units of the dense layer before the logits, at width 1.
    num_classes: number of logits.
    width: multiplier of every layer's channels.
    dropout: rate before the logits.
    dtype: compute type; parameters, statistics and logits are float32.
    conv, norm: see `cnnjax.models.resnet.ResNet`.
    act: activation of the stem, the later blocks and the head.
    early_act: activation of the earlier blocks and of every squeeze-excitation.
  """

  stages: tuple[tuple[Row, ...], ...]
  hidden: int
  num_classes: int = 1000
  width: float = 1.0
  dropout: float = 0.2
  dtype: Any = jnp.float32
  conv: Factory = conv
  norm: Factory | None = partial(BatchNorm, epsilon=1e-3, momentum=0.99)
  act: Activation = nn.hard_swish
  early_act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self)
    layers: dict[str, Any] = {
      'conv': partial(self.conv, dtype=self.dtype),
      'norm': bind(self.norm, train=train, dtype=self.dtype),
    }
    gate: dict[str, Any] = {'act': self.early_act, 'gate': nn.hard_sigmoid, 'dtype': self.dtype}
    scale = lambda channels: round_width(channels * self.width)
    x = ConvNorm(scale(16), 3, **layers, act=self.act, strides=2, name='stem')(images)
    for i, rows in enumerate(self.stages, 1):
      blocks = []
      for row in rows:
        expanded = scale(row.expanded)
        block = partial(
          InvertedResidual,
          scale(row.features),
          expanded,
          row.kernel_size,
          row.strides,
          **layers,
          act=self.early_act if row.early else self.act,
          se=partial(SqueezeExcite, round_width(expanded // 4), **gate) if row.se else None,
        )
        blocks.append(block)
      x = Stage(tuple(blocks), name=f'stage{i}')(x)
    last = partial(ConvNorm, 6 * x.shape[-1], 1, **layers, act=self.act)
    dense: dict[str, Any] = {'dtype': self.dtype, 'kernel_init': nn.initializers.normal(0.01)}
    hidden = partial(nn.Dense, scale(self.hidden), **dense)
    head = Head(self.num_classes, last, self.dropout, hidden, self.act, name='head')
    return head(x, train)


_PAPER = 'Howard et al. 2019, arXiv:1905.02244'
VARIANTS = {
  'mobilenet_v3_large': Entry(partial(MobileNetV3, stages=LARGE, hidden=1280), paper=_PAPER),
  'mobilenet_v3_small': Entry(partial(MobileNetV3, stages=SMALL, hidden=1024), paper=_PAPER),
}
