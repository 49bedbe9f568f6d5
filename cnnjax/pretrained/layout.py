"""Between PyTorch's state dicts and our variables; how `names/` is written: `cnnjax.pretrained`."""

import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax import models
from cnnjax.errors import UserError, unknown

LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
COUNT = 'num_batches_tracked'

Variables = dict[str, Any]
Shape = tuple[int, ...]


def from_torch(
  name: str,
  state_dict: Mapping[str, Any],
  *,
  num_classes: int | None = None,
  skip_head: bool = False,
  skip: Iterable[str] = (),
  drop: Iterable[str] = (),
  naming: str | None = None,
  image: tuple[int, int, int] | None = None,
  key: jax.Array | None = None,
  fresh: Mapping[str, Any] | None = None,
  **overrides: Any,
) -> Variables:
  """A model's variables from a PyTorch state dict.

  Args:
    name: of the model.
    state_dict: names to arrays, in PyTorch's naming and layouts. Floating point of any width;
      the variables are float32.
    num_classes: of the model; None: as published.
    skip_head: leave out the parameters whose shape depends on `num_classes`: what the state dict
      has for them is ignored, and they are initialised afresh.
    skip: the same for all whose path matches one of these regular expressions ('^head/').
    drop: regular expressions of entries that the model doesn't have and that may be there
      (`'^aux'`: GoogLeNet's auxiliary classifiers).
    naming: a file of `pretrained/names`; None: that of the model's family.
    image: (H, W, C) of the input; None: the paper's. Matters for another number of channels.
    key: for what is initialised afresh; None: `jax.random.key(0)`.
    fresh: variables to take it from instead.
    **overrides: as for `models.create`.

  Returns:
    `params`, `batch_stats` where there is batch normalisation, and the collection `torch`, which
    models ignore: what only PyTorch has (`num_batches_tracked`, and shapes such as a 1 x 1
    convolution's where our layer is dense). It makes `to_torch` the exact inverse. Leaves are
    NumPy arrays.

  Raises:
    UserError: lists entries that are missing, extra, of another shape or not numbers.
  """
  model, shapes = _model(name, num_classes, image, overrides)
  names = _Names(name, naming)
  patterns = [re.compile(pattern) for pattern in skip]
  skipped = {
    path for path, _ in _leaves(shapes) if any(p.search('/'.join(path[1:])) for p in patterns)
  }
  if skip_head:
    known = dict(_leaves(shapes))
    _, other = _model(name, (num_classes or _entry(name).num_classes) + 1, image, overrides)
    skipped |= {path for path, leaf in _leaves(other) if known[path].shape != leaf.shape}

  patterns = [re.compile(pattern) for pattern in drop]
  left = {k: v for k, v in state_dict.items() if not any(p.search(k) for p in patterns)}
  counted = any(entry.endswith(COUNT) for entry in left)
  variables: Variables = {collection: {} for collection in shapes} | {'torch': {}}
  missing, wrong = [], []
  for path, leaf in _leaves(shapes):
    collection, *module, kind = path
    rule = names.rule('/'.join(module), kind, leaf.shape)
    value = left.pop(rule.name, None)
    entry = f'{names.module("/".join(module))}.{COUNT}'
    counts = counted and (collection, kind) == ('batch_stats', 'mean')
    number = left.pop(entry, None) if counts else None
    if path in skipped:
      continue
    if counts and number is None:
      missing.append(entry)
    elif counts:
      _put(variables, ['torch', *module, COUNT], np.asarray(number))
    if value is None:
      missing.append(rule.name)
      continue
    value = np.asarray(value)
    if not _fits(kind, value.shape, rule.shape):
      wrong.append(f'{rule.name} is {_text(value.shape)}, not {_text(rule.shape)}')
    elif not jnp.issubdtype(value.dtype, jnp.floating):
      wrong.append(f'{rule.name} is {value.dtype}, not floating point')
    else:
      if value.shape != rule.shape:
        _put(variables, ['torch', *module, f'{kind}_shape'], np.array(value.shape, np.int64))
      _put(variables, path, rule.ours(value.astype(np.float32, copy=False)))
  problems = [
    f'{len(found)} {what}: {", ".join(found[:5])}{", ..." if len(found) > 5 else ""}'
    for what, found in (('missing', missing), ('extra', list(left)), ('mis-shaped', wrong))
    if found
  ]
  if problems:
    hint = ''
    if wrong and not skipped:
      hint = '. For another number of classes: skip_head=True'
    raise UserError(f'weights of {name!r} do not fit: {"; ".join(problems)}{hint}')
  if skipped and fresh is None:
    key = jax.random.key(0) if key is None else key
    values = _fresh(model, image or _entry(name).image, skipped, key)
  else:
    values = dict(_leaves(fresh or {}))
  for path in skipped:
    _put(variables, path, np.asarray(values[path]))
  return variables


def to_torch(
  name: str, variables: Mapping[str, Any], *, naming: str | None = None
) -> dict[str, np.ndarray]:
  """The state dict of a model's variables, in PyTorch's names and layouts.

  The exact inverse of `from_torch`. Without the collection `torch` (weights trained here) every
  batch normalisation's `num_batches_tracked` is 0, and a dense layer's weight is a matrix.

  Args:
    name: of the model.
    variables: `params`, and `batch_stats` and `torch` where there are.
    naming: a file of `pretrained/names`; None: that of the model's family.
  """
  names = _Names(name, naming)
  own = dict(_leaves({'torch': variables.get('torch', {})}))
  state = {}
  for path, leaf in _leaves({k: v for k, v in variables.items() if k != 'torch'}):
    collection, *module, kind = path
    value = np.asarray(leaf)
    rule = names.rule('/'.join(module), kind, value.shape)
    shape = own.get(('torch', *module, f'{kind}_shape'), rule.shape)
    state[rule.name] = rule.theirs(value).reshape(tuple(np.asarray(shape).tolist()))
    if (collection, kind) == ('batch_stats', 'var'):
      count = own.get(('torch', *module, COUNT))
      if count is not None or 'torch' not in variables:
        state[f'{names.module("/".join(module))}.{COUNT}'] = np.asarray(count or 0, np.int64)
  return state


class _Rule(NamedTuple):
  """One array: PyTorch's name and shape, and the layouts' conversions."""

  name: str
  shape: Shape
  ours: Callable[[np.ndarray], np.ndarray]
  theirs: Callable[[np.ndarray], np.ndarray]


class _Names:
  """The table of a family; see the module's docstring."""

  def __init__(self, model: str, naming: str | None):
    self.model = model
    family = naming or _family(model)
    try:
      self.table: Any = importlib.import_module(f'cnnjax.pretrained.names.{family}')
    except ModuleNotFoundError as error:
      raise UserError(
        f'{model!r} has no public PyTorch weights: no names for {family!r}'
      ) from error
    self.flatten: Mapping[str, Shape] = getattr(self.table, 'FLATTEN', {})
    self.special: Mapping[str, str] = getattr(self.table, 'SPECIAL', {})
    self.takes_model = len(inspect.signature(self.table.torch_name).parameters) > 1

  def module(self, path: str) -> str:
    try:
      return self.table.torch_name(*(path, self.model) if self.takes_model else (path,))
    except (LookupError, ValueError) as error:
      raise UserError(f'{path!r} of {self.model!r} has no counterpart in PyTorch') from error

  def rule(self, path: str, kind: str, shape: Shape) -> _Rule:
    """The rule for the leaf `kind`, of our `shape`, of the module at `path`."""
    module = self.module(path)
    leaf = self.special.get(kind) or LEAVES.get(kind, kind)
    entry = f'{module}.{leaf}' if module else leaf
    if kind != 'kernel':
      return _Rule(entry, shape, lambda x: x.reshape(shape), lambda x: x)
    rank, flat = len(shape), self.flatten.get(path)
    if flat and rank == 2:
      # PyTorch [out, C * H * W], ours [H * W * C, out].
      channels, height, width = flat
      features = shape[1]
      return _Rule(
        entry,
        (features, channels * height * width),
        lambda x: x.reshape(features, *flat).transpose(2, 3, 1, 0).reshape(shape),
        lambda x: (
          x.reshape(height, width, channels, features).transpose(3, 2, 0, 1).reshape(features, -1)
        ),
      )
    order = (rank - 1, rank - 2, *range(rank - 2))  # HWIO -> OIHW, WIO -> OIW, IO -> OI
    theirs = tuple(shape[axis] for axis in order)
    back = tuple(np.argsort(order).tolist())
    return _Rule(
      entry, theirs, lambda x: x.reshape(theirs).transpose(back), lambda x: x.transpose(order)
    )


def _fits(kind: str, given: Shape, wanted: Shape) -> bool:
  """Whether an array may be reshaped: ones around a parameter of the model's own, or 1 x 1 taps."""
  if kind not in LEAVES:
    return math.prod(given) == math.prod(wanted) and _squeeze(given) == _squeeze(wanted)
  taps = lambda shape: shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape
  return given == wanted or (kind == 'kernel' and taps(given) == taps(wanted))


def _squeeze(shape: Shape) -> Shape:
  return tuple(n for n in shape if n != 1)


def _text(shape: Shape) -> str:
  return f'[{", ".join(map(str, shape))}]'


def _entry(name: str) -> Any:
  if name not in models.REGISTRY:
    raise unknown('model.name', name, models.REGISTRY)
  return models.REGISTRY[name]


def _family(name: str) -> str:
  """The file of `cnnjax.models` that lists a model."""
  _entry(name)
  for file, module in vars(models).items():
    if name in getattr(module, 'VARIANTS', ()):
      return file
  raise AssertionError(name)


def _model(
  name: str, num_classes: int | None, image: tuple[int, int, int] | None, overrides: Any
) -> tuple[Any, Any]:
  """The model and the shapes of its `params` and `batch_stats`; nothing is computed."""
  entry = _entry(name)
  model = models.create(name, num_classes=num_classes or entry.num_classes, **overrides)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), _images(image or entry.image))
  return model, {k: shapes[k] for k in ('params', 'batch_stats') if k in shapes}


def _fresh(
  model: Any, image: Shape, paths: set[tuple[str, ...]], key: jax.Array
) -> dict[tuple[str, ...], jax.Array]:
  """Initial values of some leaves. The rest of `init` is dead code, which jit leaves out."""

  def run(key: jax.Array) -> list[jax.Array]:
    variables = model.init(key, jnp.zeros((1, *image), jnp.float32))
    return [leaf for path, leaf in _leaves(variables) if path in paths]

  order = [path for path, _ in _leaves(jax.eval_shape(model.init, key, _images(image)))]
  return dict(zip([path for path in order if path in paths], jax.jit(run)(key), strict=True))


def _images(image: Shape) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((1, *image), jnp.float32)


def _leaves(tree: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path), leaf


def _put(tree: dict[str, Any], path: Iterable[str], value: Any) -> None:
  *parents, last = path
  for part in parents:
    tree = tree.setdefault(part, {})
  tree[last] = value
