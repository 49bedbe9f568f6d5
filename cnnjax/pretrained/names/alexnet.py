"""torchvision's names of AlexNet's layers: positions in two sequences."""

_POSITIONS = {
  **{f'stage{i + 1}/conv': f'features.{n}' for i, n in enumerate((0, 3, 6, 8, 10))},
  'head/dense1': 'classifier.1',
  'head/dense2': 'classifier.4',
  'head/logits': 'classifier.6',
}
FLATTEN = {'head/dense1': (256, 6, 6)}


def torch_name(path: str) -> str:
  """torchvision's name of the module at `path`."""
  return _POSITIONS[path]
