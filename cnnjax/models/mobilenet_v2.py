"""MobileNet v2: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
arXiv:1801.04381, table 2. Conventions are torchvision's.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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

# Expansion, channels, blocks and stride of each stage.
STAGES = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
  """See the module's docstring. The image may have any size.

  Attributes:
    num_classes: number of logits.
    width: multiplier of every layer's channels; below 1 it spares the last convolution.
    dropout: rate before the logits.
    dtype: compute type; parameters, statistics and logits are float32.
    conv, norm, act: see `cnnjax.models.resnet.ResNet`.
  """

  num_classes: int = 1000
  width: float = 1.0
  dropout: float = 0.2
  dtype: Any = jnp.float32
  conv: Factory = conv
  norm: Factory | None = BatchNorm
  act: Activation = nn.relu6

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self)
    layers: dict[str, Any] = {
      'conv': partial(self.conv, dtype=self.dtype),
      'norm': bind(self.norm, train=train, dtype=self.dtype),
      'act': self.act,
    }
    width = round_width(32 * self.width)
    x = ConvNorm(width, 3, **layers, strides=2, name='stem')(images)
    for i, (expansion, channels, size, strides) in enumerate(STAGES, 1):
      features = round_width(channels * self.width)
      blocks = []
      for j in range(size):
        shape = (features, expansion * width, 3, strides if j == 0 else 1)
        blocks.append(partial(InvertedResidual, *shape, **layers))
        width = features
      x = Stage(tuple(blocks), name=f'stage{i}')(x)
    last = partial(ConvNorm, round_width(1280 * max(1.0, self.width)), 1, **layers)
    return Head(self.num_classes, last, self.dropout, name='head')(x, train)


VARIANTS = {'mobilenet_v2': Entry(MobileNetV2, paper='Sandler et al. 2018, arXiv:1801.04381')}
