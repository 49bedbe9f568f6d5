"""torchvision's names of GoogLeNet's layers."""

import re


def torch_name(path: str) -> str:
  """torchvision's name of the module at `path`."""
  if path == 'head/logits':
    return 'fc'
  path = path.removeprefix('stem/').replace('/norm', '/bn').replace('branch4', 'branch4_2')
  block = lambda m: f'inception{int(m[1]) + 2}{" abcde"[int(m[2])]}'
  path = re.sub(r'^stage(\d)/block(\d)', block, path)
  path = re.sub(r'_(\d)', lambda m: f'.{int(m[1]) - 1}', path)
  return path.replace('/', '.')
