"""Files of weights, read without running anything that they hold.

A `.pt` or `.pth` file holds a pickle, a program for a small stack machine that may call any Python
function. The machine here is our own: it builds numbers, strings, plain containers and tensors,
knows by name the few functions that PyTorch's tensors need, and refuses whatever else is asked for.
Nothing is imported and nothing called, and no array is larger than the bytes that the file has
for it.
"""

import io
import json
import math
import os
import pathlib
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import ml_dtypes
import numpy as np

from cnnjax.errors import UserError, unknown

Arrays = dict[str, np.ndarray]


def load(path: str | os.PathLike[str]) -> Arrays:
  """Reads the arrays of a file of weights.

  Args:
    path: `.safetensors`; `.npz`; or `.pt`, `.pth` in either of PyTorch's forms (a zip archive, or
      the older pickles one after the other). In a PyTorch checkpoint of several parts, those
      called 'state_dict' or 'model' are looked for.

  Returns:
    Name to array, in the file's types; bfloat16 is that of ml_dtypes.

  Raises:
    UserError: no such file, a damaged one, or a PyTorch file that holds anything but tensors and
      plain containers; it names what.
  """
  path = pathlib.Path(path)
  if path.suffix not in _READERS:
    raise unknown('type of file', path.name, [f'*{suffix}' for suffix in _READERS])
  try:
    if path.exists() and not path.is_file():
      raise UserError('not a regular file')
    return _READERS[path.suffix](path)
  except UserError as error:
    raise UserError(f'{path}: {error}') from error
  except FileNotFoundError as error:
    raise UserError(f'{path}: no such file') from error
  except Exception as error:  # of many kinds, in the standard library and below
    raise UserError(f'{path} is damaged: {error}') from error


_EXPANSION = 100  # times the file; weights as they are trained hardly compress


def _npz(path: pathlib.Path) -> Arrays:
  arrays = {}
  with zipfile.ZipFile(path) as archive:
    if sum(info.file_size for info in archive.infolist()) > _EXPANSION * path.stat().st_size:
      raise UserError(f'the archive expands to more than {_EXPANSION} times its size')
    for info in archive.infolist():
      with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
          version, np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = header(file)
        if dtype.hasobject:
          raise UserError(f'{info.filename!r} holds Python objects, not numbers')
        # NumPy makes room for what the header says before it looks for the data.
        if math.prod(shape) * dtype.itemsize != info.file_size - file.tell():
          raise UserError(f'{info.filename!r} is not as long as its header says')
      with archive.open(info) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
      arrays[info.filename.removesuffix('.npy')] = array
  return arrays


_SAFETENSORS = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U8': np.uint8,
  'BOOL': np.bool_,
}


def _safetensors(path: pathlib.Path) -> Arrays:
  """Eight bytes of length, a JSON header, then the arrays' bytes without a gap."""
  data = path.read_bytes()
  start = 8 + int.from_bytes(data[:8], 'little')
  if len(data) < 8 or start > len(data):
    raise UserError('the file is shorter than its header')
  header = json.loads(data[8:start], object_pairs_hook=_unique)
  header.pop('__metadata__', None)
  arrays, position = {}, 0
  for name, entry in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
    if entry['dtype'] not in _SAFETENSORS:
      raise unknown(f'type of {name!r}', entry['dtype'], _SAFETENSORS)
    dtype, shape = np.dtype(_SAFETENSORS[entry['dtype']]), _sizes(entry['shape'])
    begin, end = _sizes(entry['data_offsets'])
    size = math.prod(shape) * dtype.itemsize
    if begin != position or end - begin != size or start + end > len(data):
      raise UserError(f'the bytes of {name!r} are not where its header says')
    arrays[name] = _array(data, dtype, math.prod(shape), start + begin).reshape(shape)
    position = end
  if start + position != len(data):
    raise UserError('the file is longer than its header says')
  return arrays


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) != len(pairs):
    raise UserError('a name stands twice in the header')
  return found


def _sizes(values: Any) -> tuple[int, ...]:
  if not isinstance(values, list | tuple) or any(type(n) is not int or n < 0 for n in values):
    raise UserError(f'{values!r} should be sizes')
  return tuple(values)


def _array(data: bytes, dtype: np.dtype, count: int, offset: int = 0) -> np.ndarray:
  """A read-only view; a copy where the bytes don't lie as the processor likes them."""
  array = np.frombuffer(data, dtype, count, offset)
  return array if array.flags.aligned else array.copy()


_STORAGES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}


class _Storage(NamedTuple):
  """A one-dimensional array that stands elsewhere in the file."""

  key: str
  dtype: np.dtype
  count: int


class _Tensor(NamedTuple):
  """A view of a storage, as the pickle describes it."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def array(self, values: np.ndarray) -> np.ndarray:
    """The view of the storage's `values`; never more elements than there are."""
    shape, strides = self.shape, self.strides
    last = self.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    size = math.prod(shape)
    if size > len(values) or (size and last >= len(values)):
      raise UserError(f'a tensor of shape {shape} does not fit its {len(values)} values')
    if not size:
      return np.zeros(shape, values.dtype)
    steps = [step * values.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(values[self.offset :], shape, steps, writeable=False)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
  if not isinstance(storage, _Storage):
    raise UserError('a tensor has no storage')
  (offset,), shape, strides = _sizes((offset,)), _sizes(shape), _sizes(strides)
  if len(shape) != len(strides):
    raise UserError(f'a tensor of shape {shape} has strides {strides}')
  return _Tensor(storage, offset, shape, strides)


class _Type(str):
  """The name of a type: a storage's or an array's."""


# Stand-ins for what a pickle may name; called by `REDUCE` where they are functions.
_GLOBALS: dict[str, Any] = {
  'collections.OrderedDict': lambda pairs=(): dict(pairs),
  'torch._utils._rebuild_tensor': _tensor,
  'torch._utils._rebuild_tensor_v2': _tensor,
  'torch._utils._rebuild_parameter': lambda data, *_: data,
  'torch.Size': lambda sizes=(): _sizes(sizes),
  **{f'torch.{name}': _Type(name) for name in _STORAGES},
  **{
    f'torch.{name}': _Type(name)
    for name in ('float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'uint8', 'bool')
  },
}


def _global(name: str) -> Any:
  if name not in _GLOBALS:
    raise UserError(
      f'refused: the file asks for {name!r}; tensors and plain containers alone are read'
    )
  return _GLOBALS[name]


_VALUES = frozenset(
  [
    *('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT'),
    *('STRING', 'BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8'),
    *('UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8'),
  ]
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
  'NONE': lambda: None,
  'NEWTRUE': lambda: True,
  'NEWFALSE': lambda: False,
  'EMPTY_DICT': dict,
  'EMPTY_LIST': list,
  'EMPTY_TUPLE': tuple,
}
_MARK = object()


def _unpickle(file: io.BytesIO, storages: dict[str, _Storage] | None = None) -> Any:
  """Runs one pickle on our machine; leaves the file after it, and its storages in `storages`."""
  stack: list[Any] = []
  memo: dict[int, Any] = {}

  def since_mark() -> list[Any]:
    at = len(stack) - 1
    while stack[at] is not _MARK:
      at -= 1
      if at < 0:
        raise UserError('a mark is missing')
    found = stack[at + 1 :]
    del stack[at:]
    return found

  def plain(kind: type) -> Any:
    if type(stack[-1]) is not kind:
      raise UserError(f'a {type(stack[-1]).__name__} is treated as a {kind.__name__}')
    return stack[-1]

  for opcode, argument, _ in pickletools.genops(file):
    name = opcode.name
    if name in _VALUES:
      stack.append(argument)
    elif name in _CONSTANTS:
      stack.append(_CONSTANTS[name]())
    elif name == 'MARK':
      stack.append(_MARK)
    elif name in ('POP', 'POP_MARK'):
      since_mark() if name == 'POP_MARK' else stack.pop()
    elif name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
      stack[-int(name[-1]) :] = [tuple(stack[-int(name[-1]) :])]
    elif name in ('TUPLE', 'LIST'):
      stack.append((tuple if name == 'TUPLE' else list)(since_mark()))
    elif name in ('APPEND', 'APPENDS'):
      items = since_mark() if name == 'APPENDS' else [stack.pop()]
      plain(list).extend(items)
    elif name in ('SETITEM', 'SETITEMS', 'DICT'):
      items = [stack.pop(-2), stack.pop()] if name == 'SETITEM' else since_mark()
      if name == 'DICT':
        stack.append({})
      plain(dict).update(zip(items[::2], items[1::2], strict=True))
    elif name in ('PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
      memo[len(memo) if argument is None else cast(int, argument)] = stack[-1]
    elif name in ('GET', 'BINGET', 'LONG_BINGET'):
      stack.append(memo[cast(int, argument)])
    elif name == 'GLOBAL':
      stack.append(_global('.'.join(str(argument).split(' '))))
    elif name == 'STACK_GLOBAL':
      module, attribute = stack.pop(-2), stack.pop()
      stack.append(_global(f'{module}.{attribute}'))
    elif name == 'INST':
      _global('.'.join(str(argument).split(' ')))
      raise UserError("refused: the file asks for an instance of its own ('INST')")
    elif name == 'REDUCE':
      function, arguments = stack.pop(-2), stack.pop()
      if not any(function is known for known in _GLOBALS.values()) or isinstance(function, _Type):
        raise UserError('refused: the file calls what is not a function')
      stack.append(function(*arguments))
    elif name == 'BUILD':  # an OrderedDict's own attributes: the state dict's `_metadata`
      state = stack.pop()
      if not isinstance(state, dict):
        raise UserError('refused: the file sets the state of an object')
      plain(dict)
    elif name == 'BINPERSID':
      storage = _storage(stack.pop())
      stack.append(storage)
      if storages is not None and storages.setdefault(storage.key, storage) != storage:
        raise UserError(f'the storage {storage.key!r} has two types or sizes')
    elif name == 'STOP':
      return stack.pop()
    elif name not in ('PROTO', 'FRAME'):
      raise UserError(f'refused: the file asks for {name!r} of the pickle machine')
  raise UserError('a pickle has no end')


def _storage(identifier: Any) -> _Storage:
  tag, kind, key, _, count, *view = identifier
  if tag != 'storage' or not isinstance(kind, _Type) or kind not in _STORAGES:
    raise UserError('a storage is of an unknown kind')
  if any(part is not None for part in view):
    raise UserError('views of storages, from before PyTorch 0.4, are not read')
  return _Storage(str(key), np.dtype(_STORAGES[kind]), *_sizes((count,)))


def _torch(path: pathlib.Path) -> Arrays:
  return (_torch_zip if zipfile.is_zipfile(path) else _torch_stacked)(path)


def _torch_zip(path: pathlib.Path) -> Arrays:
  """The archive's `data.pkl` is the pickle, `data/KEY` a storage, `byteorder` their order."""
  budget = path.stat().st_size
  with zipfile.ZipFile(path) as archive:
    pickles = [name for name in archive.namelist() if name.endswith('/data.pkl')]
    if len(pickles) != 1:
      raise UserError(f'the archive holds {len(pickles)} pickles, not one')
    folder = pickles[0].removesuffix('data.pkl')

    def read(name: str) -> bytes:
      nonlocal budget
      info = archive.getinfo(folder + name)
      budget -= info.file_size
      # As PyTorch writes it, nothing is compressed, so that no entry outgrows the file.
      if info.compress_type != zipfile.ZIP_STORED or budget < 0:
        raise UserError(f'{info.filename!r} is larger than the file')
      return archive.read(info)

    if folder + 'byteorder' in archive.namelist() and read('byteorder') != b'little':
      raise UserError('the numbers are big-endian')
    tensors = _state_dict(_unpickle(io.BytesIO(read('data.pkl')), {}))
    storages: dict[str, np.ndarray] = {}
    for storage in {tensor.storage for tensor in tensors.values()}:
      storages[storage.key] = _array(read(f'data/{storage.key}'), storage.dtype, storage.count)
  return {name: tensor.array(storages[tensor.storage.key]) for name, tensor in tensors.items()}


_MAGIC = 0x1950A86A20F9469CFC6C


def _torch_stacked(path: pathlib.Path) -> Arrays:
  """Magic number, version, system; the object, its storages' keys; then count and bytes of each."""
  file = io.BytesIO(path.read_bytes())  # whose reads never make room for more than there is
  if _unpickle(file) != _MAGIC:
    raise UserError('not a file of PyTorch')
  version, system = _unpickle(file), _unpickle(file)
  if version != 1001 or not system['little_endian']:
    raise UserError(f'version {version}, or the numbers are big-endian')
  known: dict[str, _Storage] = {}
  tensors = _state_dict(_unpickle(file, known))
  storages: dict[str, np.ndarray] = {}
  for key in _unpickle(file):
    if key not in known or key in storages:
      raise UserError(f'the storage {key!r} is not that of a tensor, or stands twice')
    _, dtype, count = known[key]
    if int.from_bytes(file.read(8), 'little') != count:
      raise UserError(f'the storage {key!r} is not as long as its header says')
    storages[key] = _array(file.read(count * dtype.itemsize), dtype, count)
  return {name: tensor.array(storages[tensor.storage.key]) for name, tensor in tensors.items()}


def _state_dict(saved: Any) -> dict[str, _Tensor]:
  """The mapping of names to tensors in what was saved."""
  if isinstance(saved, Mapping):
    for part in (saved, saved.get('state_dict'), saved.get('model')):
      if (
        isinstance(part, Mapping)
        and part
        and all(isinstance(k, str) and isinstance(v, _Tensor) for k, v in part.items())
      ):
        return dict(part)
    keys = ', '.join(map(str, list(saved)[:5]))
    raise UserError(f"no state dict: neither the whole nor 'state_dict' or 'model' of: {keys}")
  raise UserError(f'a {type(saved).__name__}, not a state dict')


_READERS: dict[str, Callable[[pathlib.Path], Arrays]] = {
  '.safetensors': _safetensors,
  '.npz': _npz,
  '.pt': _torch,
  '.pth': _torch,
}
