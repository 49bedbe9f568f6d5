"""ECA-ResNet: Wang et al. 2020, "ECA-Net: Efficient Channel Attention for Deep Convolutional
Neural Networks", arXiv:1910.03151.

Efficient channel attention at the end of every branch. `ecaresnet50d` is timm's: on ResNet-D,
where the paper has it on v1.
"""

from functools import partial

from cnnjax.layers.attention import ECA
from cnnjax.models.resnet import SIZES, Bottleneck, imagenet
from cnnjax.models.resnet_d import AvgProjection, DeepStem

VARIANTS = {
  'ecaresnet50d': imagenet(
    SIZES[50],
    partial(Bottleneck, shortcut=AvgProjection, attention=ECA),
    stem_layer=DeepStem,
    paper='Wang et al. 2020, arXiv:1910.03151',
  )
}
