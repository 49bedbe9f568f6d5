"""timm's names of the pre-activation ResNet's layers."""

import re


def torch_name(path: str) -> str:
  """'stage1/block1/conv1' -> 'stages.0.blocks.0.conv1'."""
  for pattern, replacement in (
    (r'^head/norm$', 'norm'),
    (r'^head/logits$', 'head.fc'),
    (r'^stage(\d+)/block(\d+)', lambda m: f'stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}'),
    (r'/shortcut/', '.downsample.'),
  ):
    path = re.sub(pattern, replacement, path)
  return path.replace('/', '.')
