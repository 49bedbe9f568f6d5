"""torchvision's names of MobileNet v2's layers: numbers, counted through the network."""

import re

from cnnjax.models.mobilenet_v2 import STAGES

LAYERS = {'conv': 0, 'norm': 1}
# The last convolution of a block stands bare, so its layers are numbered with the others.
BLOCK = {
  'expand/conv': '0.0',
  'expand/norm': '0.1',
  'depthwise/conv': '1.0',
  'depthwise/norm': '1.1',
  'project/conv': '2',
  'project/norm': '3',
}
UNEXPANDED = {
  'depthwise/conv': '0.0',
  'depthwise/norm': '0.1',
  'project/conv': '1',
  'project/norm': '2',
}


def torch_name(path: str) -> str:
  """'stage2/block1/expand/conv' -> 'features.2.conv.0.0'."""
  if path == 'head/logits':
    return 'classifier.1'
  sizes = [size for _, _, size, _ in STAGES]
  if match := re.fullmatch(r'stage(\d+)/block(\d+)/(.+)', path):
    stage, block = int(match[1]), int(match[2])
    layers = UNEXPANDED if STAGES[stage - 1][0] == 1 else BLOCK
    return f'features.{sum(sizes[: stage - 1]) + block}.conv.{layers[match[3]]}'
  place = 0 if path.startswith('stem') else sum(sizes) + 1
  return f'features.{place}.{LAYERS[path.rpartition("/")[2]]}'
