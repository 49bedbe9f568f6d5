"""Wide residual networks: Zagoruyko & Komodakis 2016, arXiv:1605.07146.

`wrn_d_k` is the paper's CIFAR form: pre-activation basic blocks, widths 16 k, 32 k and 64 k behind
a stem of 16, depth d = 6 n + 4, 1 x 1 convolutions where the shape changes. The paper also trains
with `dropout=0.3`. `wide_resnet50_2` is a ResNet-50 with 3 x 3 convolutions of twice the width, as
in torchvision.
"""

from functools import partial

from cnnjax.models.resnet import SIZES, Bottleneck, cifar, imagenet
from cnnjax.models.resnetv2 import PreActBasicBlock, PreActStem

_PAPER = 'Zagoruyko & Komodakis 2016, arXiv:1605.07146'

VARIANTS = {
  **{
    f'wide_resnet{depth}_2': imagenet(
      SIZES[depth], partial(Bottleneck, base_width=128), paper=_PAPER
    )
    for depth in (50, 101)
  },
  **{
    f'wrn_{depth}_{k}': cifar(
      (depth - 4) // 6,
      PreActBasicBlock,
      paper=_PAPER,
      features=16 * k,
      stem_features=16,
      stem_layer=PreActStem,
      preactivation=True,
    )
    for depth, k in ((28, 10), (40, 4))
  },
}
