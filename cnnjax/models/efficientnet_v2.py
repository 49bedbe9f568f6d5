"""EfficientNet v2: Tan & Le 2021, "EfficientNetV2: Smaller Models and Faster Training",
arXiv:2104.00298, as torchvision has them.

Early stages have one dense convolution in place of the widening and the depthwise one (figure 2);
the last stages are those of `efficientnet`.
"""

from functools import partial

import flax.linen as nn
import jax

from cnnjax.layers.norm import BatchNorm
from cnnjax.layers.stochastic import DropPath
from cnnjax.models.efficientnet import EfficientNet, Spec
from cnnjax.models.entry import Entry
from cnnjax.models.mobile import Activation, ConvNorm, Factory


class FusedMBConv(nn.Module):
  """A convolution that widens and filters, then a 1 x 1 projection; adds the input.

  Where `expanded` equals the input's channels there is no projection. The input is added where the
  shape stays.

  Attributes:
    features: output channels.
    expanded: channels between the two convolutions.
    kernel_size, strides: of the first convolution.
    conv, norm, act: factories and activation, bound to training mode and compute type.
    drop_path: probability that an example skips the branch.
    train: whether it may.
  """

  features: int
  expanded: int
  kernel_size: int
  strides: int
  conv: Factory
  norm: Factory
  act: Activation
  drop_path: float = 0.0
  train: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    layer = partial(ConvNorm, conv=self.conv, norm=self.norm)
    fused = partial(layer, kernel_size=self.kernel_size, strides=self.strides, act=self.act)
    if self.expanded == x.shape[-1]:
      y = fused(self.features, name='fused')(x)
    else:
      y = fused(self.expanded, name='fused')(x)
      y = layer(self.features, 1, name='project')(y)
    if self.strides != 1 or x.shape[-1] != self.features:
      return y
    return x + DropPath(self.drop_path, name='drop_path')(y, self.train)


_fused = partial(Spec, squeeze=0, block=FusedMBConv)


def _variant(image: int, dropout: float, *stages: Spec) -> Entry:
  build = partial(
    EfficientNet,
    stages=stages,
    features=stages[0].features,
    dropout=dropout,
    norm=partial(BatchNorm, epsilon=1e-3),
  )
  return Entry(build, (image, image, 3), paper='Tan & Le 2021, arXiv:2104.00298')


# Table 4: expansion, kernel size, stride, width and depth of each stage.
VARIANTS = {
  'efficientnet_v2_s': _variant(
    384,
    0.2,
    _fused(1, 3, 1, 24, 2),
    _fused(4, 3, 2, 48, 4),
    _fused(4, 3, 2, 64, 4),
    Spec(4, 3, 2, 128, 6),
    Spec(6, 3, 1, 160, 9),
    Spec(6, 3, 2, 256, 15),
  ),
  'efficientnet_v2_m': _variant(
    480,
    0.3,
    _fused(1, 3, 1, 24, 3),
    _fused(4, 3, 2, 48, 5),
    _fused(4, 3, 2, 80, 5),
    Spec(4, 3, 2, 160, 7),
    Spec(6, 3, 1, 176, 14),
    Spec(6, 3, 2, 304, 18),
    Spec(6, 3, 1, 512, 5),
  ),
  'efficientnet_v2_l': _variant(
    480,
    0.4,
    _fused(1, 3, 1, 32, 4),
    _fused(4, 3, 2, 64, 7),
    _fused(4, 3, 2, 96, 7),
    Spec(4, 3, 2, 192, 10),
    Spec(6, 3, 1, 224, 19),
    Spec(6, 3, 2, 384, 25),
    Spec(6, 3, 1, 640, 7),
  ),
}
