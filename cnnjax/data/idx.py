"""The IDX format of MNIST's files: a magic number, big-endian dimensions, then the raw bytes.

Byte 2 of the magic number is the type (8: unsigned byte, the only one these sets use), byte 3 the
number of dimensions; each dimension follows as a 32-bit unsigned integer.
"""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from cnnjax.data.files import open_regular
from cnnjax.errors import UserError

_UNSIGNED_BYTE = 8
_LARGEST = 1 << 28  # bytes of data, five times MNIST: compressed zeros may pretend to any size
_PIECE = 1 << 24  # bytes


def read(path: str | pathlib.Path, ndim: int) -> np.ndarray:
  """Reads one IDX file of unsigned bytes, plain or gzip-compressed (told by its content).

  Args:
    path: the file.
    ndim: the number of dimensions it must have.

  Returns:
    A uint8 array of the dimensions that the header states.

  Raises:
    UserError: the file is missing, too large, corrupt, shorter or longer than its header says, or
      of another type or rank; the message names the file.
  """
  path = pathlib.Path(path)
  try:
    with open_regular(path) as raw:
      compressed = raw.read(2) == b'\x1f\x8b'
      raw.seek(0)
      with gzip.open(raw) if compressed else raw as file:
        header = file.read(4 + 4 * ndim)
        magic = bytes((0, 0, _UNSIGNED_BYTE, ndim))
        if header[:4] != magic:
          raise UserError(
            f'{path}: not an IDX file of unsigned bytes in {ndim} dimension(s): '
            f'magic number {header[:4].hex() or "(none)"}, allowed {magic.hex()}'
          )
        if len(header) < 4 + 4 * ndim:
          raise UserError(f'{path}: the header is cut short')
        shape = struct.unpack(f'>{ndim}I', header[4:])
        size = math.prod(shape)
        if math.prod(max(n, 1) for n in shape) > _LARGEST:
          raise UserError(f'{path}: the header {list(shape)} says {size} bytes, allowed {_LARGEST}')
        # In pieces: the header isn't trusted with an allocation. One byte more than it says, so
        # that what is too long shows, and so that gzip reaches its end and verifies the checksum.
        data = bytearray()
        while piece := file.read(min(_PIECE, size + 1 - len(data))):
          data += piece
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise UserError(f'{path}: the gzip stream is corrupt or cut short ({error})') from error
  except OSError as error:
    raise UserError(f'{path}: {error.strerror or error}') from error
  if len(data) != size:
    found = f'only {len(data)}' if len(data) < size else 'more'
    raise UserError(f'{path}: the header {list(shape)} says {size} bytes of data, found {found}')
  return np.frombuffer(data, np.uint8).reshape(shape)


def read_pair(
  images_path: str | pathlib.Path,
  labels_path: str | pathlib.Path,
  *,
  count: int | None = None,
  image_shape: tuple[int, int] = (28, 28),
  num_classes: int = 10,
) -> tuple[np.ndarray, np.ndarray]:
  """Reads images and their labels, and checks that they belong together.

  Args:
    images_path: IDX file of three dimensions.
    labels_path: IDX file of one dimension.
    count: the published number of examples; None takes any.
    image_shape: (height, width) of every image.
    num_classes: labels are below it.

  Returns:
    Images `[N, H, W, 1]` uint8 and labels `[N]` uint8.

  Raises:
    UserError: a file is damaged, or the counts, sizes or labels aren't the published ones.
  """
  images, labels = read(images_path, 3), read(labels_path, 1)
  if images.shape[1:] != tuple(image_shape):
    raise UserError(
      f'{images_path}: images of {"x".join(map(str, images.shape[1:]))}, '
      f'allowed {"x".join(map(str, image_shape))}'
    )
  if len(images) != len(labels):
    raise UserError(f'{labels_path}: {len(labels)} labels for {len(images)} images')
  if count is not None and len(images) != count:
    raise UserError(f'{images_path}: {len(images)} images, allowed {count}')
  if labels.size and labels.max() >= num_classes:
    raise UserError(f'{labels_path}: label {labels.max()}, allowed 0 to {num_classes - 1}')
  return images[..., None], labels
