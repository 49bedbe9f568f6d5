"""torchvision's names of DenseNet's layers."""

import re


def torch_name(path: str) -> str:
  """'stage2/layer1/conv1' -> 'features.denseblock2.denselayer1.conv1'."""
  for pattern, replacement in (
    (r'^stem/(conv|norm)$', r'features.\g<1>0'),
    # A transition opens our stage; torchvision counts it with the block before.
    (r'^stage(\d+)/transition', lambda m: f'features.transition{int(m[1]) - 1}'),
    (r'^stage(\d+)/layer(\d+)', r'features.denseblock\1.denselayer\2'),
    (r'^head/norm$', 'features.norm5'),
    (r'^head/logits$', 'classifier'),
  ):
    path = re.sub(pattern, replacement, path)
  return path.replace('/', '.')
