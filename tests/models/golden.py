"""PyTorch's ResNets under deterministic weights, without PyTorch.

The weights are functions of their names; `golden/*.npz` holds names, shapes, the input's shape and
the logits that torchvision computed from them.
"""

import pathlib
import re
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'golden'


def fill(model: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """One state-dict entry: normal noise seeded by its name, brought to a sensible range."""
  seed = zlib.crc32(f'{model}/{name}'.encode())
  noise = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
  match name.rpartition('.')[2]:
    case 'num_batches_tracked':
      return np.zeros(shape, np.int64)
    case 'running_var':
      return 1 + np.float32(0.2) * np.abs(noise)
    case 'running_mean' | 'bias':
      return np.float32(0.1) * noise
    case _ if len(shape) == 1:  # the scale of a normalisation
      return 1 + np.float32(0.1) * noise
  return noise * np.float32(np.sqrt(2 / np.prod(shape[1:])))  # He


def load(model: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
  """State dict, images [N, H, W, C] and PyTorch's logits."""
  with np.load(FOLDER / f'{model}.npz') as file:
    shapes = [tuple(map(int, s.split('x'))) if s else () for s in file['shapes'].tolist()]
    names = file['names'].tolist()
    state = {name: fill(model, name, s) for name, s in zip(names, shapes, strict=True)}
    images = np.random.RandomState(2026).standard_normal(file['input'])
    return state, images.astype(np.float32), file['logits']


_LEAVES = {
  'weight': ('params', 'scale'),
  'bias': ('params', 'bias'),
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}


def resnet_variables(state: dict[str, np.ndarray]) -> dict:
  """torchvision's names and layouts to cnnjax's variables."""
  variables: dict = {}
  for name, value in state.items():
    module, _, leaf = name.rpartition('.')
    if leaf == 'num_batches_tracked':
      continue
    for pattern, replacement in (
      (r'^conv1$', 'stem/conv'),
      (r'^bn1$', 'stem/norm'),
      (r'^fc$', 'head/logits'),
      (r'^layer(\d)\.(\d+)', lambda m: f'stage{m[1]}/block{int(m[2]) + 1}'),
      (r'\.downsample\.0', '/shortcut/conv'),
      (r'\.downsample\.1', '/shortcut/norm'),
      (r'\.bn', '/norm'),
      (r'\.', '/'),
    ):
      module = re.sub(pattern, replacement, module)
    collection, leaf = _LEAVES[leaf]
    if value.ndim > 1:
      leaf = 'kernel'
      value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T  # OIHW, OI
    node = variables.setdefault(collection, {})
    for part in module.split('/'):
      node = node.setdefault(part, {})
    node[leaf] = value
  return variables
