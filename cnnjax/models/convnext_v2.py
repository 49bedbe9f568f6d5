"""ConvNeXt V2: Woo et al. 2023, "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked
Autoencoders", arXiv:2301.00808, as timm has them.

`convnext` with global response normalisation between a block's dense layers, and no layer scale.
`drop_path_rate` is 0, as timm has it; the paper's recipes differ by size.
"""

from functools import partial

from cnnjax.models.convnext import ConvNeXt
from cnnjax.models.entry import Entry


def _variant(depths: tuple[int, ...], width: int) -> Entry:
  shape = {'stage_sizes': depths, 'features': tuple(width * 2**i for i in range(4))}
  build = partial(ConvNeXt, **shape, grn=True)
  return Entry(build, paper='Woo et al. 2023, arXiv:2301.00808')


VARIANTS = {
  'convnextv2_atto': _variant((2, 2, 6, 2), 40),
  'convnextv2_femto': _variant((2, 2, 6, 2), 48),
  'convnextv2_pico': _variant((2, 2, 6, 2), 64),
  'convnextv2_nano': _variant((2, 2, 8, 2), 80),
  'convnextv2_tiny': _variant((3, 3, 9, 3), 96),
  'convnextv2_base': _variant((3, 3, 27, 3), 128),
  'convnextv2_large': _variant((3, 3, 27, 3), 192),
  'convnextv2_huge': _variant((3, 3, 27, 3), 352),
}
