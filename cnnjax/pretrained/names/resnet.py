"""torchvision's names of ResNet's layers, and timm's of what it adds to them."""

import re


def torch_name(path: str) -> str:
  """'stage1/block1/conv1' -> 'layer1.0.conv1'."""
  for pattern, replacement in (
    (r'^stem/conv$', 'conv1'),
    (r'^stem/norm$', 'bn1'),
    (r'^head/logits$', 'fc'),
    (r'^stage(\d+)/block(\d+)', lambda m: f'layer{m[1]}.{int(m[2]) - 1}'),
    (r'/shortcut/conv$', '.downsample.0'),
    (r'/shortcut/norm$', '.downsample.1'),
    (r'/attention/reduce$', '.se.fc1'),
    (r'/attention/expand$', '.se.fc2'),
    (r'/attention/conv$', '.se.conv'),
    (r'/norm(\d)$', r'.bn\1'),
  ):
    path = re.sub(pattern, replacement, path)
  return path.replace('/', '.')
