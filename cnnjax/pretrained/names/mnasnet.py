"""torchvision's names of MnasNet's layers: numbers, counted through the network."""

import re

# Convolution and normalisation are followed by an activation but for the linear last ones.
BLOCK = {
  'expand/conv': 0,
  'expand/norm': 1,
  'depthwise/conv': 3,
  'depthwise/norm': 4,
  'project/conv': 6,
  'project/norm': 7,
}


def torch_name(path: str) -> str:
  """'stage2/block1/expand/conv' -> 'layers.8.0.layers.0'."""
  if path == 'head/logits':
    return 'classifier.1'
  if match := re.fullmatch(r'stage(\d+)/block(\d+)/(.+)', path):
    stage, place = int(match[1]), BLOCK[match[3]]
    # The first stage's one block stands in line with the stem.
    if stage == 1:
      return f'layers.{place}'
    return f'layers.{stage + 6}.{int(match[2]) - 1}.layers.{place}'
  first = 0 if path.startswith('stem') else 14
  return f'layers.{first + path.endswith("norm")}'
