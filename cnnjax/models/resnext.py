"""ResNeXt: Xie, Girshick, Dollár, Tu & He 2017, "Aggregated Residual Transformations for Deep
Neural Networks", arXiv:1611.05431.

A ResNet whose 3 x 3 convolutions have groups: 32x4d is 32 groups of 4 channels in the first stage.
The stride is on the 3 x 3 convolution, as in torchvision.
"""

from functools import partial

from cnnjax.models.resnet import SIZES, Bottleneck, imagenet

_PAPER = 'Xie et al. 2017, arXiv:1611.05431'

VARIANTS = {
  f'resnext{depth}_{groups}x{width}d': imagenet(
    SIZES[depth], partial(Bottleneck, groups=groups, base_width=width), paper=_PAPER
  )
  for depth, groups, width in ((50, 32, 4), (101, 32, 8))
}
