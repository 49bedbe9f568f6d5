"""torchvision's names of VGG's layers: positions in two sequences."""

import re

from cnnjax.models.vgg import STAGE_SIZES

_HEAD = {'dense1': 'classifier.0', 'dense2': 'classifier.3', 'logits': 'classifier.6'}
FLATTEN = {'head/dense1': (512, 7, 7)}


def torch_name(path: str, model: str) -> str:
  """torchvision's name of the module at `path`."""
  match = re.fullmatch(r'stage(\d)/(conv|norm)(\d)', path)
  if not match:
    return _HEAD[path.removeprefix('head/')]
  name, _, norm = model.partition('_')
  stage, number = int(match[1]) - 1, int(match[3]) - 1
  before = sum(STAGE_SIZES[name][:stage]) + number  # convolutions; each brings its activation
  position = before * (3 if norm else 2) + stage + (match[2] == 'norm')  # a pooling per stage
  return f'features.{position}'
