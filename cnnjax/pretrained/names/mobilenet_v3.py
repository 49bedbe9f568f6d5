"""torchvision's names of MobileNet v3's layers: numbers, counted through the network."""

import re

from cnnjax.models.mobilenet_v3 import VARIANTS

LAYERS = {'conv': '0', 'norm': '1', 'reduce': 'fc1', 'expand': 'fc2'}


def torch_name(path: str, model: str) -> str:
  """'stage2/block1/se/reduce' -> 'features.4.block.2.fc1' in the large model."""
  if path == 'head/hidden':
    return 'classifier.0'
  if path == 'head/logits':
    return 'classifier.3'
  module, _, layer = path.rpartition('/')
  stages = VARIANTS[model].build.keywords['stages']
  rows = [row for stage in stages for row in stage]
  if match := re.fullmatch(r'stage(\d+)/block(\d+)/(\w+)', module):
    place = sum(map(len, stages[: int(match[1]) - 1])) + int(match[2])
    row = rows[place - 1]
    parts = (
      ['expand', 'depthwise', 'se', 'project'] if row.se else ['expand', 'depthwise', 'project']
    )
    if place == 1:  # the only block that doesn't expand
      parts.remove('expand')
    return f'features.{place}.block.{parts.index(match[3])}.{LAYERS[layer]}'
  place = 0 if module == 'stem' else len(rows) + 1
  return f'features.{place}.{LAYERS[layer]}'
