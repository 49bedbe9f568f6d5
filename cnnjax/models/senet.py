"""SE-ResNet: Hu, Shen & Sun 2018, "Squeeze-and-Excitation Networks", arXiv:1709.01507.

Squeeze-and-excitation at the end of every branch (figure 3), reduction 16, on ResNet v1.5, as timm
has it.
"""

from functools import partial

from cnnjax.layers.attention import SqueezeExcite
from cnnjax.models.resnet import SIZES, Bottleneck, imagenet

VARIANTS = {
  'seresnet50': imagenet(
    SIZES[50],
    partial(Bottleneck, attention=SqueezeExcite),
    paper='Hu et al. 2018, arXiv:1709.01507',
  )
}
