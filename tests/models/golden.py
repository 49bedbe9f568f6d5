"""PyTorch's models under deterministic weights, without PyTorch.

The weights are functions of their names; `golden/*.npz` holds names, shapes, the input's shape and
the logits that torchvision computed from them.
"""

import pathlib
import zlib
from collections.abc import Sequence

import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'golden'


def fill(model: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """One state-dict entry: normal noise seeded by its name, brought to a sensible range."""
  kind = name.rpartition('.')[2]
  if kind == 'num_batches_tracked':
    return np.zeros(shape, np.int64)
  seed = zlib.crc32(f'{model}/{name}'.encode())
  noise = np.asarray(np.random.RandomState(seed).standard_normal(shape), np.float32)
  if kind == 'running_var':
    return 1 + np.float32(0.2) * np.abs(noise)
  if len(shape) <= 1 or kind == 'running_mean':  # or the scale of a normalisation
    return np.float32(kind == 'weight') + np.float32(0.1) * noise
  return noise * np.float32(np.sqrt(2 / np.prod(shape[1:])))  # He


def images(shape: Sequence[int]) -> np.ndarray:
  """A batch [N, H, W, C] of normal noise."""
  return np.random.RandomState(2026).standard_normal(tuple(shape)).astype(np.float32)


def is_statistic(name: str) -> bool:
  """Whether a state-dict entry is a running statistic."""
  return name.endswith(('running_mean', 'running_var'))


def probe(name: str, value: np.ndarray) -> float:
  """The product of an array and noise seeded by its name: one number that any change moves.

  The noise is odd bytes over 64: of about unit size, never 0, and far quicker than normal numbers.
  """
  noise = np.frombuffer(np.random.RandomState(zlib.crc32(name.encode())).bytes(value.size), np.int8)
  return float(np.dot((noise | 1) / 64, np.asarray(value, np.float64).ravel()))


def state_dict(model: str, names: np.ndarray, shapes: np.ndarray) -> dict[str, np.ndarray]:
  """A state dict from the names and shapes that a file holds."""
  sizes = [tuple(map(int, s.split('x'))) if s else () for s in shapes.tolist()]
  return {n: fill(model, n, s) for n, s in zip(names.tolist(), sizes, strict=True)}


def load(model: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
  """State dict, images [N, H, W, C] and PyTorch's logits."""
  with np.load(FOLDER / f'{model}.npz') as file:
    state = state_dict(model, file['names'], file['shapes'])
    return state, images(file['input']), file['logits']
