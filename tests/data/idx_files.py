"""Small IDX files for tests."""

import gzip
import pathlib
import struct

import numpy as np

NAMES = {
  'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
  'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}


def encode(array: np.ndarray) -> bytes:
  return struct.pack(f'>4B{array.ndim}I', 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_set(
  directory: pathlib.Path, counts: dict[str, int], *, compress: bool = True, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Writes the four files; returns the images `[N, 28, 28]` and labels of each split."""
  rng = np.random.default_rng(seed)
  directory.mkdir(parents=True, exist_ok=True)
  arrays = {}
  for split, count in counts.items():
    images = rng.integers(0, 256, (count, 28, 28), np.uint8)
    arrays[split] = images, (np.arange(count) % 10).astype(np.uint8)
    for name, array in zip(NAMES[split], arrays[split], strict=True):
      data = encode(array)
      if compress:
        (directory / f'{name}.gz').write_bytes(gzip.compress(data, 1))
      else:
        (directory / name).write_bytes(data)
  return arrays
