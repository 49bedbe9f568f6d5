"""EfficientNet-Lite: Liu 2020, "Higher accuracy on vision models with EfficientNet-Lite",
TensorFlow's blog, as timm's `tf_efficientnet_lite*` have them.

EfficientNet (arXiv:1905.11946) for phones: no attention, ReLU6, and neither the stem, nor the last
convolution, nor the depth of the first and the last stage is scaled. Padding and the epsilon of
the normalisation are TensorFlow's, where the published weights come from.
"""

from functools import partial

import flax.linen as nn

from cnnjax.layers import init
from cnnjax.layers.norm import BatchNorm
from cnnjax.models.efficientnet import STAGES, EfficientNet, scale
from cnnjax.models.entry import Entry
from cnnjax.models.mobile import InvertedResidual

# TensorFlow's fan of a depthwise kernel is its window.
_BLOCK = partial(InvertedResidual, depthwise_init=init.he_fan_in)


def _variant(image: int, width: float, depth: float, dropout: float) -> Entry:
  stages = [spec._replace(squeeze=0, block=_BLOCK) for spec in STAGES]
  first, *middle, last = scale(stages, width=width, depth=depth)
  build = partial(
    EfficientNet,
    stages=(first._replace(size=1), *middle, last._replace(size=1)),
    padding='SAME',
    dropout=dropout,
    norm=partial(BatchNorm, epsilon=1e-3),
    act=nn.relu6,
  )
  return Entry(build, (image, image, 3), paper='Liu 2020 (TensorFlow blog), arXiv:1905.11946')


VARIANTS = {
  'tf_efficientnet_lite0': _variant(224, 1.0, 1.0, 0.2),
  'tf_efficientnet_lite1': _variant(240, 1.0, 1.1, 0.2),
  'tf_efficientnet_lite2': _variant(260, 1.1, 1.2, 0.3),
  'tf_efficientnet_lite3': _variant(300, 1.2, 1.4, 0.3),
  'tf_efficientnet_lite4': _variant(380, 1.4, 1.8, 0.3),
}
