"""Whatever a file holds: `idx.read` gives what it says or one line, in bounded memory."""

import gzip
import math
import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnjax.data import idx
from cnnjax.errors import UserError
from tests.commands import bounded, is_one_line
from tests.data.idx_files import encode
from tests.mutations import damaged

ARRAYS = [np.arange(n, dtype=np.uint8).reshape(shape) for n, shape in ((6, (1, 2, 3)), (5, (5,)))]
WHOLE = [make(encode(array)) for array in ARRAYS for make in (bytes, gzip.compress)]
ZEROS = gzip.compress(bytes(1 << 24))  # 16 MiB in 16 KiB; members of gzip may follow each other


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return tmp_path_factory.mktemp('idx') / 'file'


def read(path, data, ndim):
  """What is read; None where it is refused."""
  path.write_bytes(data)
  try:
    with bounded(megabytes=640):
      array = idx.read(path, ndim)
  except UserError as error:
    is_one_line(error)
    return None
  assert array.dtype == np.uint8
  assert array.ndim == ndim
  return array


@given(st.binary(max_size=64) | damaged(WHOLE), st.integers(1, 3))
def test_any_bytes(path, data, ndim):
  array = read(path, data, ndim)
  if array is not None:
    plain = gzip.decompress(data) if data[:2] == b'\x1f\x8b' else data
    assert encode(array) == plain


@given(st.lists(st.integers(0, 2**32 - 1) | st.sampled_from((0, 1, 2**32 - 1)), min_size=1,
                max_size=3), st.binary(max_size=32), st.integers(0, 20))  # fmt: skip
def test_a_header_is_not_trusted_with_memory(path, shape, data, bombs):
  header = struct.pack(f'>4B{len(shape)}I', 0, 0, 8, len(shape), *shape)
  array = read(path, gzip.compress(header + data) + bombs * ZEROS, len(shape))
  size = math.prod(shape)
  if size != len(data) + bombs * 2**24:
    assert array is None
  elif size:
    assert array is not None


def test_more_than_is_allowed_is_refused_by_the_header(path):
  header = struct.pack('>4B3I', 0, 0, 8, 3, 2**24, 4, 5)
  path.write_bytes(gzip.compress(header) + 20 * ZEROS)
  with bounded(megabytes=64), pytest.raises(UserError, match='allowed'):
    idx.read(path, 3)


def test_a_pipe_is_refused(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  with bounded(seconds=20), pytest.raises(UserError, match='not a regular file'):
    idx.read(tmp_path / 'pipe', 1)
