"""timm's names of MobileNet v1's layers."""

import re


def torch_name(path: str) -> str:
  """'stage2/block1/depthwise/conv' -> 'blocks.1.0.conv_dw'."""
  for pattern, replacement in (
    (r'^stem/conv$', 'conv_stem'),
    (r'^stem/norm$', 'bn1'),
    (r'^head/logits$', 'classifier'),
    (r'^stage(\d+)/block(\d+)', lambda m: f'blocks.{int(m[1]) - 1}.{int(m[2]) - 1}'),
    (r'/depthwise/conv$', '.conv_dw'),
    (r'/depthwise/norm$', '.bn1'),
    (r'/pointwise/conv$', '.conv_pw'),
    (r'/pointwise/norm$', '.bn2'),
  ):
    path = re.sub(pattern, replacement, path)
  return path
