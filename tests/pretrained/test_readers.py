"""Files written by PyTorch and safetensors are read; damaged and hostile ones are refused."""

import io
import json
import os
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from cnnjax import pretrained
from cnnjax.errors import UserError

FILES = pathlib.Path(__file__).parent / 'files'
FORMS = ('zip', 'stacked')
RAMP = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
TYPES = {
  **{
    name: (RAMP - 7).astype(name)
    for name in ('float64', 'float32', 'float16', 'int64', 'int32', 'int16', 'int8')
  },
  'bfloat16': (RAMP - 7).astype(ml_dtypes.bfloat16),
  'uint8': RAMP.astype(np.uint8),
  'bool': RAMP > 11,
  'scalar': np.float32(2.5).reshape(()),
  'empty': np.zeros((0, 3), np.float32),
}
VIEWS = {
  'transposed': RAMP.transpose(2, 0, 1),
  'every_other': RAMP[:, 1:, ::2],
  'shared': RAMP[1],
  'parameter': RAMP[0],
}


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, strict=True)


def state():
  found = {}
  for line in (FILES / 'state.txt').read_text().splitlines():
    name, shape, *values = line.split()
    kind = np.int64 if name.endswith('tracked') else np.float32
    shape = () if shape == '-' else tuple(map(int, shape.split('x')))
    found[name] = np.array([float.fromhex(v) for v in values], kind).reshape(shape)
  return found


@pytest.mark.parametrize('form', FORMS)
def test_pytorch_files(form):
  assert_same(pretrained.load(FILES / f'state_{form}.pth'), state())
  assert_same(pretrained.load(str(FILES / f'checkpoint_{form}.pt')), state())
  assert_same(pretrained.load(FILES / f'types_{form}.pt'), TYPES | VIEWS)


def test_safetensors():
  assert_same(pretrained.load(FILES / 'types.safetensors'), TYPES)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
  arrays = {k: v for k, v in TYPES.items() if k != 'bfloat16'} | {'a/b.c': VIEWS['transposed']}
  save(tmp_path / 'w.npz', **arrays)
  assert_same(pretrained.load(tmp_path / 'w.npz'), arrays)


# Pickles, from single instructions. Each hostile one would create the file `victim`.


def text(value):
  encoded = value.encode()
  return b'X' + struct.pack('<I', len(encoded)) + encoded


def hostile(victim):
  """Programs for the pickle machine that run code when Python's own machine reads them."""
  shell = text(f'touch {victim}')
  code = text(f'open({str(victim)!r}, "w").close()')
  system, evaluate = b'cos\nsystem\n', b'cbuiltins\neval\n'
  return {
    'reduce': b'\x80\x02' + system + shell + b'\x85R.',
    'eval': b'\x80\x02' + evaluate + code + b'\x85R.',
    'inst': b'(S' + repr(f'touch {victim}').encode() + b'\nios\nsystem\n.',
    'obj': b'(' + system + shell + b'o.',
    'newobj': b'\x80\x02' + evaluate + code + b'\x85\x81.',
    'newobj_ex': b'\x80\x04' + evaluate + code + b'\x85}\x92.',
    'stack_global': b'\x80\x04\x8c\x02os\x8c\x06system\x93' + shell + b'\x85R.',
    'stack_global from memo': b'\x80\x04\x8c\x06system\x94\x8c\x02os\x94h\x01h\x00\x93'
    + shell
    + b'\x85R.',
    'a dotted name': b'\x80\x04\x8c\x02os\x8c\x0bpath.os.sys\x93' + shell + b'\x85R.',
    'allowed module, other name': b'\x80\x02ccollections\nos.system\n' + shell + b'\x85R.',
    'module and name in one line': b'\x80\x02ctorch\nos system\n' + shell + b'\x85R.',
    'a loader of torch': b'\x80\x02ctorch.hub\nload\n' + shell + b'\x85R.',
    'inside a state dict': b'\x80\x02}' + text('w') + system + shell + b'\x85Rs.',
    'in build': b'\x80\x02ccollections\nOrderedDict\n)R' + system + shell + b'\x85Rb.',
    'build on a function': b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}'
    + text('__code__')
    + text('x')
    + b'sb.',
    'build with a list': b'\x80\x02ccollections\nOrderedDict\n)R]b.',
    'reduce of a string': b'\x80\x02' + text('os.system') + shell + b'\x85R.',
    'reduce of a type': b'\x80\x02ctorch\nFloatStorage\n' + shell + b'\x85R.',
    'memo out of a deleted object': b'\x80\x02' + system + b'q\x000' + b'h\x00' + shell + b'\x85R.',
    'extension': b'\x80\x02\x82\x01' + shell + b'\x85R.',
    'persistent identifier': b'\x80\x02' + system + shell + b'\x85RQ.',
    'text persistent identifier': b'Pos.system\n.',
    'next buffer': b'\x80\x05\x97.',
    'after the end of a tuple': b'\x80\x02' + shell + b'\x85' + system + b'N\x86R.',
  }


def write(path, form, program, *, storages=None):
  """A PyTorch file, in either form, that holds a pickle and storages: key to bytes."""
  storages = storages or {}
  if form == 'zip':
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('w/data.pkl', program)
      for key, value in storages.items():
        archive.writestr(f'w/data/{key}', value)
    return path
  system = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}
  with path.open('wb') as file:
    for value in (0x1950A86A20F9469CFC6C, 1001, system):
      pickle.dump(value, file, protocol=2)
    file.write(program)
    pickle.dump(list(storages), file, protocol=2)
    for value in storages.values():
      file.write(struct.pack('<q', len(value) // 4) + value)
  return path


def python_runs(program):
  try:
    pickle.loads(program)
  except Exception:  # what Python's machine makes of the rest doesn't matter
    return


RUN = ('reduce', 'eval', 'inst', 'obj', 'stack_global', 'inside a state dict', 'in build')


@pytest.mark.parametrize('name', RUN)
def test_the_hostile_programs_do_run_in_python(tmp_path, name):
  python_runs(hostile(tmp_path / 'victim')[name])
  assert (tmp_path / 'victim').exists()


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', hostile('victim'))
def test_hostile_pickles_are_refused(tmp_path, form, name):
  victim = tmp_path / 'victim'
  path = write(tmp_path / 'w.pth', form, hostile(victim)[name])
  with pytest.raises(UserError) as error:
    pretrained.load(path)
  assert not victim.exists()
  assert len(str(error.value).splitlines()) == 1
  if name in ('reduce', 'inst', 'obj', 'stack_global', 'in build', 'stack_global from memo'):
    assert "'os.system'" in str(error.value)


@pytest.mark.parametrize('part', range(3))
def test_hostile_pickles_before_the_object(tmp_path, part):
  victim = tmp_path / 'victim'
  parts = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})]
  parts[part] = hostile(victim)['reduce']
  (tmp_path / 'w.pt').write_bytes(b''.join(parts))
  with pytest.raises(UserError, match=r'os\.system'):
    pretrained.load(tmp_path / 'w.pt')
  assert not victim.exists()


def tensor(shape, strides, *, offset=0, count=6, key='0', kind='FloatStorage'):
  """The pickle of {'w': tensor}."""
  number = lambda n: b'\x8a\x08' + struct.pack('<q', n)
  numbers = lambda values: b'(' + b''.join(map(number, values)) + b't'
  storage = text('storage') + f'ctorch\n{kind}\n'.encode() + text(key) + text('cpu')
  storage = b'((' + storage + number(count) + b'tQ'
  view = number(offset) + numbers(shape) + numbers(strides) + b'\x89'
  view += b'ccollections\nOrderedDict\n)Rt'
  return b'\x80\x02}' + text('w') + b'ctorch._utils\n_rebuild_tensor_v2\n' + storage + view + b'Rs.'


SIX = np.arange(6, dtype=np.float32)


@pytest.mark.parametrize('form', FORMS)
def test_tensors_by_hand(tmp_path, form):
  path = write(tmp_path / 'w.pt', form, tensor((2, 3), (3, 1)), storages={'0': SIX.tobytes()})
  np.testing.assert_array_equal(pretrained.load(path)['w'], SIX.reshape(2, 3), strict=True)
  path = write(
    tmp_path / 'w.pt', form, tensor((2, 2), (1, 2), offset=2), storages={'0': SIX.tobytes()}
  )
  np.testing.assert_array_equal(pretrained.load(path)['w'], [[2, 4], [3, 5]])


LIES = {
  'one more than there are': {'shape': (7,), 'strides': (1,)},
  'offset past the end': {'shape': (2, 3), 'strides': (3, 1), 'offset': 1},
  'stride past the end': {'shape': (2, 3), 'strides': (4, 1)},
  'negative stride': {'shape': (2,), 'strides': (-1,), 'offset': 5},
  'negative offset': {'shape': (2,), 'strides': (1,), 'offset': -1},
  'negative size': {'shape': (-2,), 'strides': (1,)},
  'the same element a billion times': {'shape': (10**9,), 'strides': (0,)},
  'more than any memory': {'shape': (2**40, 2**20), 'strides': (2**20, 1)},
  'a storage larger than the file': {'shape': (6,), 'strides': (1,), 'count': 2**50},
  'a negative storage': {'shape': (6,), 'strides': (1,), 'count': -6},
  'no such storage': {'shape': (6,), 'strides': (1,), 'key': '../0'},
  'strides of another rank': {'shape': (6,), 'strides': (1, 1)},
  'not a type of storage': {'shape': (6,), 'strides': (1,), 'kind': 'float32'},
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('lie', LIES)
def test_lying_tensors_are_refused(tmp_path, form, lie):
  path = write(tmp_path / 'w.pt', form, tensor(**LIES[lie]), storages={'0': SIX.tobytes()})
  with pytest.raises(UserError):
    pretrained.load(path)


def test_memo_and_lengths_make_no_room(tmp_path):
  for program in (
    b'\x80\x02}r\xff\xff\xff\xff.',  # memo number 4,294,967,295: read, in a dictionary
    b'\x80\x04\x8d' + struct.pack('<Q', 2**60) + b'abc.',  # a string longer than the file
    b'\x80\x02\x8b' + struct.pack('<i', 2**31 - 1) + b'abc.',
    b'\x80\x02(((((((tttttt.',
    b'\x80\x02' + b'e.',
    b'\x80\x02' + b'\x85.',
    b'',
  ):
    with pytest.raises(UserError):
      pretrained.load(write(tmp_path / 'w.pt', 'zip', program))


def test_a_compressed_archive_is_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / 'w.pt', 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('w/data.pkl', tensor((2**20,), (1,), count=2**20))
    archive.writestr('w/data/0', bytes(2**22))
  with pytest.raises(UserError):
    pretrained.load(tmp_path / 'w.pt')


@pytest.mark.parametrize('form', FORMS)
def test_damaged_files_never_raise_anything_else(tmp_path, form):
  """Every cut, and a random byte changed, is either harmless or a UserError."""
  data = (FILES / f'types_{form}.pt').read_bytes()
  rng = np.random.default_rng(0)
  whole, refused = pretrained.load(FILES / f'types_{form}.pt'), 0
  for i in range(300):
    damaged = bytearray(data[: rng.integers(len(data))] if i % 3 == 0 else data)
    if i % 3:
      damaged[rng.integers(min(len(data), 3000))] = rng.integers(256)
    (tmp_path / 'w.pt').write_bytes(damaged)
    try:
      found = pretrained.load(tmp_path / 'w.pt')
    except UserError:
      refused += 1
    else:
      assert all(isinstance(v, np.ndarray) and v.nbytes < 2**20 for v in found.values())
  assert refused > 100
  assert whole.keys() == (TYPES | VIEWS).keys()


def safetensors(header, body=b''):
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(header)) + header + body


ENTRY = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}


@pytest.mark.parametrize(
  'data',
  [
    b'',
    struct.pack('<Q', 2**62) + b'{}',
    safetensors(b'[' * 100000),
    safetensors(b'{'),
    safetensors([]),
    safetensors({'w': ENTRY}),
    safetensors({'w': ENTRY}, bytes(9)),
    safetensors({'w': ENTRY | {'shape': [3]}}, bytes(8)),
    safetensors({'w': ENTRY | {'shape': [-2]}}, bytes(8)),
    safetensors({'w': ENTRY | {'shape': [2**40, 2**40]}}, bytes(8)),
    safetensors({'w': ENTRY | {'shape': [True, 2]}}, bytes(8)),
    safetensors({'w': ENTRY | {'dtype': 'O'}}, bytes(8)),
    safetensors({'w': ENTRY | {'data_offsets': [1, 9]}}, bytes(9)),
    safetensors({'w': ENTRY, 'v': ENTRY}, bytes(8)),
    safetensors(b'{"w": %s, "w": %s}' % ((json.dumps(ENTRY).encode(),) * 2), bytes(8)),
    safetensors({'w': {}}),
    safetensors({'w': ENTRY | {'data_offsets': [0]}}, bytes(8)),
  ],
)
def test_bad_safetensors_are_refused(tmp_path, data):
  (tmp_path / 'w.safetensors').write_bytes(data)
  with pytest.raises(UserError):
    pretrained.load(tmp_path / 'w.safetensors')


def test_objects_and_lies_in_npz_are_refused(tmp_path):
  class Evil:
    def __reduce__(self):
      return os.system, (f'touch {tmp_path / "victim"}',)

  np.savez(tmp_path / 'w.npz', w=np.array([Evil()], object))
  with pytest.raises(UserError, match='objects'):
    pretrained.load(tmp_path / 'w.npz')
  assert not (tmp_path / 'victim').exists()

  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header, {'descr': '<f4', 'fortran_order': False, 'shape': (2**45,)}
  )
  with zipfile.ZipFile(tmp_path / 'w.npz', 'w') as archive:
    archive.writestr('w.npy', header.getvalue() + bytes(8))
  with pytest.raises(UserError, match='not as long'):
    pretrained.load(tmp_path / 'w.npz')


def test_what_is_no_file_of_weights(tmp_path):
  with pytest.raises(UserError, match='no such file'):
    pretrained.load(tmp_path / 'missing.pth')
  with pytest.raises(UserError, match=r'safetensors'):
    pretrained.load(tmp_path / 'weights.h5')
  for value in ({'epoch': 3}, [1, 2], {}, 7):
    path = write(tmp_path / 'w.pt', 'zip', pickle.dumps(value, 2))
    with pytest.raises(UserError, match='state dict'):
      pretrained.load(path)
