"""timm's names of GhostNet's layers."""

import re

OTHERS = {
  'stem/conv': 'conv_stem',
  'stem/norm': 'bn1',
  'head/last/conv': 'blocks.9.0.conv',
  'head/last/norm': 'blocks.9.0.bn1',
  'head/hidden': 'conv_head',
  'head/logits': 'classifier',
}


def torch_name(path: str) -> str:
  """'stage2/block1/ghost1/cheap/conv' -> 'blocks.1.0.ghost1.cheap_operation.0'."""
  match = re.fullmatch(r'stage(\d+)/block(\d+)/(.+)', path)
  if match is None:
    return OTHERS[path]
  stage, block, rest = int(match[1]), int(match[2]), match[3]
  # timm puts the strided block of each stage but the first into a list of its own.
  place = (max(2 * stage - 3, 0), 0) if block == 1 else (2 * stage - 2, block - 2)
  for pattern, replacement in (
    (r'primary/', 'primary_conv/'),
    (r'cheap/', 'cheap_operation/'),
    (r'^depthwise/conv', 'conv_dw'),
    (r'^depthwise/norm', 'bn_dw'),
    (r'^se/', 'se/conv_'),
    (r'^shortcut/depthwise/conv', 'shortcut/0'),
    (r'^shortcut/depthwise/norm', 'shortcut/1'),
    (r'^shortcut/project/conv', 'shortcut/2'),
    (r'^shortcut/project/norm', 'shortcut/3'),
    (r'conv$', '0'),
    (r'norm$', '1'),
  ):
    rest = re.sub(pattern, replacement, rest)
  return f'blocks.{place[0]}.{place[1]}.{rest}'.replace('/', '.')
