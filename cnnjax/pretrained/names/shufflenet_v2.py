"""torchvision's names of ShuffleNet v2's layers."""

import re

PLACES = {
  'left/depthwise/conv': 0,
  'left/depthwise/norm': 1,
  'left/project/conv': 2,
  'left/project/norm': 3,
  'right/expand/conv': 0,
  'right/expand/norm': 1,
  'right/depthwise/conv': 3,
  'right/depthwise/norm': 4,
  'right/project/conv': 5,
  'right/project/norm': 6,
}


def torch_name(path: str) -> str:
  """'stage1/block1/left/depthwise/conv' -> 'stage2.0.branch1.0'."""
  if path == 'head/logits':
    return 'fc'
  if match := re.fullmatch(r'stage(\d+)/block(\d+)/(.+)', path):
    branch = 1 if match[3].startswith('left') else 2
    block = f'stage{int(match[1]) + 1}.{int(match[2]) - 1}'
    return f'{block}.branch{branch}.{PLACES[match[3]]}'
  return f'conv{1 if path.startswith("stem") else 5}.{int(path.endswith("norm"))}'
