"""torchvision's names of Inception-v3's layers."""

import re

_STEM = {
  'conv1': 'Conv2d_1a_3x3',
  'conv2': 'Conv2d_2a_3x3',
  'conv3': 'Conv2d_2b_3x3',
  'conv4': 'Conv2d_3b_1x1',
  'conv5': 'Conv2d_4a_3x3',
}
_BLOCKS = ('bcd', 'abcde', 'abc')


def torch_name(path: str) -> str:
  """torchvision's name of the module at `path`."""
  if path == 'head/logits':
    return 'fc'
  block = lambda m: f'Mixed_{int(m[1]) + 4}{_BLOCKS[int(m[1]) - 1][int(m[2]) - 1]}'
  path = re.sub(r'^stage(\d)/block(\d)', block, path)
  path = re.sub(r'^stem/(\w+)', lambda m: _STEM[m[1]], path)
  return path.replace('/norm', '/bn').replace('/', '.')
