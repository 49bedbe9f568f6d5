"""Whatever a file of weights holds: its arrays or one line, within bounds, and nothing is run."""

import io
import json
import os
import pathlib
import struct
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from cnnjax import pretrained
from cnnjax.errors import UserError
from tests.commands import bounded, is_one_line
from tests.mutations import damaged

FILES = pathlib.Path(__file__).parent / 'files'
RUN = []
sys.addaudithook(lambda name, arguments: RUN.append(name) if name == 'pickle.find_class' else None)


def npz(save) -> bytes:
  file = io.BytesIO()
  save(file, a=np.arange(12.0).reshape(3, 4), b=np.ones(300, np.int8))
  return file.getvalue()


WHOLE = {
  'npz': [npz(np.savez), npz(np.savez_compressed)],
  'pth': [(FILES / f'{name}_{form}.pt').read_bytes()
          for name in ('types', 'checkpoint') for form in ('zip', 'stacked')],
  'safetensors': [(FILES / 'types.safetensors').read_bytes()],
}  # fmt: skip
SIZES = st.integers(-2, 30) | st.integers() | st.sampled_from((2**31, 2**62, 2**64)) | st.none()
ENTRIES = st.fixed_dictionaries({}, optional={
  'dtype': st.sampled_from(('F32', 'I8', 'BF16', 'BOOL', 'X')) | st.integers(),
  'shape': st.lists(SIZES, max_size=3), 'data_offsets': st.lists(SIZES, max_size=3),
})  # fmt: skip
HEADERS = st.dictionaries(st.text(max_size=4), ENTRIES | st.none() | st.text(max_size=3))


def safetensors(header, length, data):
  text = json.dumps(header).encode()
  return struct.pack('<Q', len(text) if length is None else length) + text + data


lying = st.builds(
  safetensors, HEADERS, st.none() | st.integers(0, 2**64 - 1), st.binary(max_size=40)
)
FORMS = {
  kind: st.tuples(st.just(kind), damaged(wholes) | st.binary(max_size=60))
  for kind, wholes in WHOLE.items()
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('weights')


@given(st.one_of(*FORMS.values(), st.tuples(st.just('safetensors'), lying)))
def test_any_bytes(folder, case):
  kind, data = case
  path = folder / f'w.{kind}'
  path.write_bytes(data)
  RUN.clear()
  with bounded(megabytes=256):
    try:
      arrays = pretrained.load(path)
    except UserError as error:
      is_one_line(error)
      arrays = {}
    # No element that the file has no bytes for: a compressed archive expands within its limit.
    assert sum(array.nbytes for array in arrays.values()) < 2**20
  assert not RUN
  event('read' if arrays else 'refused')


def test_an_archive_that_expands_without_end_is_refused(tmp_path):
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header, {'descr': '|i1', 'fortran_order': False, 'shape': (1 << 25,)}
  )
  archive = zipfile.ZipFile(tmp_path / 'w.npz', 'w', zipfile.ZIP_DEFLATED)
  with archive, archive.open('a.npy', 'w') as file:
    file.write(header.getvalue())
    for _ in range(1 << 5):
      file.write(bytes(1 << 20))
  with bounded(megabytes=16), pytest.raises(UserError, match='expands'):
    pretrained.load(tmp_path / 'w.npz')


@pytest.mark.parametrize('kind', WHOLE)
def test_a_pipe_is_refused(tmp_path, kind):
  os.mkfifo(tmp_path / f'w.{kind}')
  with bounded(seconds=20), pytest.raises(UserError, match='not a regular file'):
    pretrained.load(tmp_path / f'w.{kind}')
