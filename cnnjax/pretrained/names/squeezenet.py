"""torchvision's names of SqueezeNet's layers: positions in two sequences."""

import re

_FIRES = {'squeezenet1_0': (3, 7, 12), 'squeezenet1_1': (3, 6, 9)}  # first of each stage


def torch_name(path: str, model: str) -> str:
  """torchvision's name of the module at `path`."""
  match = re.fullmatch(r'stage(\d)/fire(\d)/(\w+)', path)
  if match:
    position = _FIRES[model][int(match[1]) - 1] + int(match[2]) - 1
    return f'features.{position}.{match[3]}'
  return {'stem/conv': 'features.0', 'head/logits': 'classifier.1'}[path]
