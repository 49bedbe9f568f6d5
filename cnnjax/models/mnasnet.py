"""MnasNet: Tan et al. 2018, "MnasNet: Platform-Aware Neural Architecture Search for Mobile",
arXiv:1807.11626.

torchvision's definition: the form without squeeze-excitation (B1 in the authors' code), and the
authors' slow running statistics (0.9997 of the old value is kept).
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

# Kernel size, expansion, channels, blocks and stride of each stage. The first is a separable
# convolution: an inverted residual without expansion and shortcut.
STAGES = (
  (3, 1, 16, 1, 1),
  (3, 3, 24, 3, 2),
  (5, 3, 40, 3, 2),
  (5, 6, 80, 3, 2),
  (3, 6, 96, 2, 1),
  (5, 6, 192, 4, 2),
  (3, 6, 320, 1, 1),
)


class MnasNet(nn.Module):
  """See the module's docstring. The image may have any size.

  Attributes:
    num_classes: number of logits.
    width: multiplier of every layer's channels but the last convolution's.
    dropout: rate before the logits.
    dtype: compute type; parameters, statistics and logits are float32.
    conv, norm, act: see `cnnjax.models.resnet.ResNet`.
  """

  num_classes: int = 1000
  width: float = 1.0
  dropout: float = 0.2
  dtype: Any = jnp.float32
  conv: Factory = conv
  norm: Factory | None = partial(BatchNorm, momentum=0.9997)
  act: Activation = nn.relu

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
    for i, (kernel_size, expansion, channels, size, strides) in enumerate(STAGES, 1):
      features = round_width(channels * self.width)
      blocks = []
      for j in range(size):
        shape = (features, expansion * width, kernel_size, strides if j == 0 else 1)
        blocks.append(partial(InvertedResidual, *shape, **layers, skip=i > 1))
        width = features
      x = Stage(tuple(blocks), name=f'stage{i}')(x)
    last = partial(ConvNorm, 1280, 1, **layers)
    # Glorot's bound with the fan of the outputs, as in torchvision.
    kernel_init = nn.initializers.variance_scaling(1.0, 'fan_out', 'uniform')
    head = Head(self.num_classes, last, self.dropout, kernel_init=kernel_init, name='head')
    return head(x, train)


_PAPER = 'Tan et al. 2018, arXiv:1807.11626'
_WIDTHS = {'0_5': 0.5, '0_75': 0.75, '1_0': 1.0, '1_3': 1.3}
VARIANTS = {
  f'mnasnet{name}': Entry(partial(MnasNet, width=width), paper=_PAPER)
  for name, width in _WIDTHS.items()
}
