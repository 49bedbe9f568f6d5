"""The theoretical receptive field of every layer, read from the jaxpr: the pixels that an output
can depend on, whatever the weights (Araujo, Norris & Sim 2019, "Computing Receptive Fields of
Convolutional Neural Networks", Distill, doi:10.23915/distill.00021).

Every intermediate array is followed by intervals: its element with index n depends, along an axis
of the image, on the pixels from strides @ n + low to strides @ n + high. Convolution, pooling,
slices, padding, reductions, reshapes, transposition and products of matrices map such intervals
to such intervals, so the model's structure (branches, shortcuts, patches, upsampling) doesn't
matter. Where an array has none, its interval is that of all elements together: behind a gate that
sees the whole image, rightly, the whole image. So a field is exact, or larger: after what isn't
known here (`while`, `cond`, resizing by `jax.image`), where what is joined moves at different
strides, where upsampling follows a stride.

Borders don't count: what padding repeats of an array (reflection, circular) is taken for zeros.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax import ops
from cnnjax.analysis import macs
from cnnjax.errors import UserError

Number = int | Fraction


class Field(NamedTuple):
  """Receptive field of what one module, or named scope, computes last.

  Pixel i has its centre at i. Sizes aren't cut off at the image's borders; but where the field
  doesn't move (stride 0: after global pooling, flattening, a gate of the whole image) it is the
  part of the image that any output depends on, mostly the whole.

  Attributes:
    name: path, such as 'stage1/block1/conv1'; '' for the whole model.
    output: shape.
    size: pixels, (height, width).
    stride: pixels from one output's field to the next one's; 0 where it doesn't move.
    offset: centre of the first output's field. That of output i lies at offset + stride * i.
  """

  name: str
  output: tuple[int, ...]
  size: tuple[int, ...]
  stride: tuple[float, ...]
  offset: tuple[float, ...]


def fields(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[Field, ...]:
  """The receptive fields of a model's modules, in evaluation mode.

  Args:
    model: called as `model.apply(variables, images)`.
    input_shape: (H, W, C) of the image. Where a field moves, its numbers depend on it only if
      padding does ('SAME' with strides).

  Returns:
    In the order in which the modules end, those within before those around. Of a module that is
    called several times, the last.
  """
  images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
  with ops.using('xla'):
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
  fn = lambda images, variables: model.apply(variables, images)
  return _fields(fn, (images, variables), {}, (1, 2), model.name or type(model).__name__)


def fields_fn(
  fn: Callable[..., Any], images: Any, *args: Any, axes: Sequence[int] = (1, 2), **kwargs: Any
) -> tuple[Field, ...]:
  """The receptive fields in any function that JAX can trace; see `fields`.

  Args:
    fn: called as `fn(images, *args, **kwargs)`. What stands under `jax.named_scope` has an entry.
    images: an array, or a `jax.ShapeDtypeStruct` in its place.
    *args, **kwargs: what else it takes: weights, say.
    axes: the axes of `images` that are followed: (1, 2) of [N, H, W, C], (0,) of a signal.

  Raises:
    UserError: `images` doesn't have these axes.
  """
  if not all(0 <= axis < len(images.shape) for axis in axes):
    raise UserError(f'axes={tuple(axes)} are not all among those of the shape {images.shape}')
  return _fields(fn, (images, *args), kwargs, axes, '')


class _Interval(NamedTuple):
  """Pixels, along one axis of the image, that an array's element depends on; see the module.

  None of its elements depends on what isn't between `first` and `last`: pixels outside of the
  image, or at its end where no window fits.
  """

  strides: tuple[Number, ...]
  low: Number
  high: Number
  first: int
  last: int

  def widened(self, *reaches: Number) -> '_Interval':
    """With what lies at most that far below or above, too."""
    low, high = sum(min(r, 0) for r in reaches), sum(max(r, 0) for r in reaches)
    return self._replace(low=self.low + low, high=self.high + high)

  def moved(self, distance: Number) -> '_Interval':
    return self._replace(low=self.low + distance, high=self.high + distance)

  def stopped(self, shape: Sequence[int], axes: Iterable[int]) -> '_Interval':
    """The interval of all elements along these axes together."""
    axes = set(axes)
    wide = self.widened(*(self.strides[axis] * (shape[axis] - 1) for axis in axes))
    return wide._replace(strides=tuple(0 if a in axes else s for a, s in enumerate(self.strides)))

  def bounded(self, shape: Sequence[int]) -> '_Interval':
    """With bounds from the elements that there are."""
    ends = self.stopped(shape, range(len(shape)))
    first, last = max(self.first, math.ceil(ends.low)), min(self.last, math.floor(ends.high))
    return self._replace(first=first, last=last)

  def placed(self, rank: int, places: Sequence[int]) -> '_Interval':
    """Of an array of that rank, whose axis places[i] is this one's axis i."""
    strides: list[Number] = [0] * rank
    for place, stride in zip(places, self.strides, strict=True):
      strides[place] = stride
    return self._replace(strides=tuple(strides))

  def picked(self, axes: Sequence[int]) -> '_Interval':
    """Of the array that has only these axes, in this order; it doesn't move along the others."""
    return self._replace(strides=tuple(self.strides[axis] for axis in axes))


# An equation's rule: from it and, for each of its inputs, the intervals along the image's axes
# (None where nothing depends on the image) to those of all its outputs, or of each.
_Value = tuple[_Interval, ...]
_Rule = Callable[[Any, list[_Value | None]], list[_Value]]


def _join(shape: Sequence[int], intervals: Iterable[_Interval]) -> _Interval:
  """What depends on elements of several arrays of the same shape, or on scalars."""
  found = [i if i.strides else i._replace(strides=(0,) * len(shape)) for i in intervals]
  still = [axis for axis in range(len(shape)) if len({i.strides[axis] for i in found}) > 1]
  found = [i.stopped(shape, still) for i in found]
  return _Interval(
    found[0].strides,
    min(i.low for i in found),
    max(i.high for i in found),
    min(i.first for i in found),
    max(i.last for i in found),
  )


def _along(rule: Callable[..., _Interval]) -> _Rule:
  """A rule from one for the first operand and a single axis of the image.

  Of the other operands, every output may depend on all.
  """

  def apply(eqn: Any, inputs: list[_Value | None]) -> list[_Value]:
    if inputs[0] is None:
      return _anything(eqn, inputs)
    shape = eqn.outvars[0].aval.shape
    value = tuple(rule(eqn, x) for x in inputs[0])
    if any(inputs[1:]):  # a kernel, an index, a padding value that depends on the image
      rest = _anything(eqn, [None, *inputs[1:]])[0]
      value = tuple(_join(shape, pair) for pair in zip(value, rest, strict=True))
    return [value]

  return apply


def _anything(eqn: Any, inputs: list[_Value | None]) -> list[_Value]:
  """Every output may depend on every input."""
  stopped = [
    tuple(i.stopped(v.aval.shape, range(len(i.strides))).picked(()) for i in x)
    for v, x in zip(eqn.invars, inputs, strict=True)
    if x
  ]
  joined = [_join((), intervals) for intervals in zip(*stopped, strict=True)]
  return [tuple(_join(v.aval.shape, [interval]) for interval in joined) for v in eqn.outvars]


def _elementwise(eqn: Any, inputs: list[_Value | None]) -> list[_Value]:
  shape = eqn.outvars[0].aval.shape
  return [tuple(_join(shape, i) for i in zip(*filter(None, inputs), strict=True))]


def _slide(
  x: _Interval, axis: int, taps: int, *, stride: int, before: int, dilation: int, base: int
) -> _Interval:
  """A window along one axis; `base` is the distance of the elements it slides over."""
  step = x.strides[axis]
  unit = step if base == 1 else Fraction(step) / base
  x = x.moved(-unit * before).widened(unit * dilation * (taps - 1))
  strides = (*x.strides[:axis], unit * stride, *x.strides[axis + 1 :])
  return x._replace(strides=strides)


def _conv(eqn: Any, x: _Interval) -> _Interval:
  params, spec = eqn.params, eqn.params['dimension_numbers']
  lhs, rhs = (v.aval.shape for v in eqn.invars)
  batch, channel, *spatial = spec.lhs_spec
  x = x.stopped(lhs, [channel, *([batch] if params['batch_group_count'] > 1 else [])])
  for i, axis in enumerate(spatial):
    x = _slide(
      x,
      axis,
      rhs[spec.rhs_spec[2 + i]],
      stride=params['window_strides'][i],
      before=params['padding'][i][0],
      dilation=params['rhs_dilation'][i],
      base=params['lhs_dilation'][i],
    )
  return x.picked(spec.lhs_spec).placed(len(lhs), spec.out_spec)


def _window(eqn: Any, x: _Interval) -> _Interval:
  params = eqn.params
  for axis, taps in enumerate(params['window_dimensions']):
    x = _slide(
      x,
      axis,
      taps,
      stride=params['window_strides'][axis],
      before=params['padding'][axis][0],
      dilation=params['window_dilation'][axis],
      base=params['base_dilation'][axis],
    )
  return x


def _pad(eqn: Any, x: _Interval) -> _Interval:
  for axis, (before, _, between) in enumerate(eqn.params['padding_config']):
    # The padded array's element i is the array's at (i - before) / (between + 1), or padding.
    x = _slide(x, axis, 1, stride=1, before=before, dilation=1, base=between + 1)
  return x


def _slice(eqn: Any, x: _Interval) -> _Interval:
  strides = eqn.params['strides'] or [1] * len(x.strides)
  for axis, (start, stride) in enumerate(zip(eqn.params['start_indices'], strides, strict=True)):
    x = _slide(x, axis, 1, stride=stride, before=-start, dilation=1, base=1)
  return x


def _split(eqn: Any, inputs: list[_Value | None]) -> list[_Value]:
  axis, start, values = eqn.params['axis'], 0, []
  assert inputs[0]
  for size in eqn.params['sizes']:
    values.append(tuple(x.moved(start * x.strides[axis]) for x in inputs[0]))
    start += size
  return values


def _concatenate(eqn: Any, inputs: list[_Value | None]) -> list[_Value]:
  axis, shape = eqn.params['dimension'], eqn.outvars[0].aval.shape
  parts, start = [], 0
  for v, x in zip(eqn.invars, inputs, strict=True):
    size = v.aval.shape[axis]
    if x:
      parts.append((size, tuple(i.moved(-start * i.strides[axis]) for i in x)))
    start += size
  size, middle = max(parts, key=lambda part: part[0])
  values = [x for _, x in parts]
  if 2 * size > shape[axis] and any(i.strides[axis] for i in middle):
    pairs = [pair for x in values for pair in zip(x, middle, strict=True)]
    if all(whole.first <= i.first and i.last <= whole.last for i, whole in pairs):
      return [middle]  # the others repeat some of it, as its border
  along = list(zip(*values, strict=True))
  # Where they move at different strides, each has to be stopped in its own place.
  if any(len({i.strides[axis] for i in intervals}) > 1 for intervals in along):
    return _anything(eqn, inputs)
  return [tuple(_join(shape, intervals) for intervals in along)]


def _reduce(name: str) -> _Rule:
  def rule(eqn: Any, x: _Interval) -> _Interval:
    axes = eqn.params[name]
    kept = [axis for axis in range(len(x.strides)) if axis not in axes]
    return x.stopped(eqn.invars[0].aval.shape, axes).picked(kept)

  return _along(rule)


def _mix(name: str) -> _Rule:
  """An operation along one axis that keeps the shape."""
  return _along(lambda eqn, x: x.stopped(eqn.invars[0].aval.shape, [eqn.params[name]]))


def _rev(eqn: Any, x: _Interval) -> _Interval:
  for axis in eqn.params['dimensions']:
    last = eqn.invars[0].aval.shape[axis] - 1
    x = _slide(x, axis, 1, stride=-1, before=-last, dilation=1, base=1)
  return x


def _dot(eqn: Any, inputs: list[_Value | None]) -> list[_Value]:
  contracted, batched = eqn.params['dimension_numbers']
  shape, found = eqn.outvars[0].aval.shape, []
  start = len(batched[0])  # of an operand's free axes, among the output's
  for v, x, sums, batch in zip(eqn.invars, inputs, contracted, batched, strict=True):
    free = [axis for axis in range(v.aval.ndim) if axis not in (*sums, *batch)]
    places = [*range(len(batch)), *range(start, start + len(free))]
    start += len(free)
    if x:
      found.append(
        [
          i.stopped(v.aval.shape, sums).picked([*batch, *free]).placed(len(shape), places)
          for i in x
        ]
      )
  return [tuple(_join(shape, along) for along in zip(*found, strict=True))]


def _broadcast(eqn: Any, x: _Interval) -> _Interval:
  shape, places = eqn.outvars[0].aval.shape, eqn.params['broadcast_dimensions']
  sizes = eqn.invars[0].aval.shape
  repeated = [axis for axis, place in enumerate(places) if sizes[axis] != shape[place]]
  return x.stopped(sizes, repeated).placed(len(shape), places)


def _gather(eqn: Any, x: _Interval) -> _Interval:
  """Exact along the axes that it copies as a whole."""
  shape, numbers = eqn.invars[0].aval.shape, eqn.params['dimension_numbers']
  gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
  kept = [axis for axis in range(len(shape)) if axis not in gone]
  cut = [axis for axis in kept if eqn.params['slice_sizes'][axis] != shape[axis]]
  x = x.stopped(shape, [*gone, *cut]).picked(kept)
  return x.placed(eqn.outvars[0].aval.ndim, numbers.offset_dims)


def _dynamic_slice(eqn: Any, x: _Interval) -> _Interval:
  shape, sizes = eqn.invars[0].aval.shape, eqn.params['slice_sizes']
  return x.stopped(shape, [axis for axis, size in enumerate(sizes) if size != shape[axis]])


def _reshape(eqn: Any, inputs: list[_Value | None]) -> list[_Value]:
  before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
  assert inputs[0]
  if eqn.params.get('dimensions') is not None or 0 in before:
    return _anything(eqn, inputs)
  moving = [any(x.strides[axis] for x in inputs[0]) for axis in range(len(before))]
  values = []
  for x in inputs[0]:
    strides: list[Number] = []
    for old, new in _groups(before, after):
      x, step = _merged(x, before, old, moving)
      # An axis of one element doesn't move, unless the map has no more than that.
      alone = all(after[axis] == 1 for axis in new)
      strides += [
        step * math.prod(after[axis + 1 : new.stop]) if alone or after[axis] > 1 else 0
        for axis in new
      ]
    values.append(x._replace(strides=tuple(strides)))
  return [tuple(values)]


def _groups(before: Sequence[int], after: Sequence[int]) -> Iterable[tuple[range, range]]:
  """The shortest runs of axes that hold the same elements before and after."""
  i = j = 0
  while i < len(before) or j < len(after):
    old, new = i, j
    i, j = min(i + 1, len(before)), min(j + 1, len(after))
    while (a := math.prod(before[old:i])) != (b := math.prod(after[new:j])):
      i, j = (i + 1, j) if a < b else (i, j + 1)
    if i == len(before) or j == len(after):
      i, j = len(before), len(after)  # what is left are ones
    yield range(old, i), range(new, j)


def _merged(
  x: _Interval, shape: Sequence[int], axes: range, moving: Sequence[bool]
) -> tuple[_Interval, Number]:
  """These axes as one: the interval, and its stride along that one."""
  many = [axis for axis in axes if shape[axis] > 1]
  if not many:  # the map is one pixel, but it has a stride
    return x, max((x.strides[axis] for axis in axes), key=abs, default=0)
  inner = lambda axis: math.prod(shape[axis + 1 : axes.stop])
  step = x.strides[many[-1]]
  if all(x.strides[axis] == step * inner(axis) for axis in many):
    return x, step
  first, repeats = many[0], inner(many[0])
  if not any(moving[axis] for axis in many[1:]):
    # Element i is a repetition of floor(i / repeats).
    step = Fraction(x.strides[first]) / repeats
    return x.widened(-step * (repeats - 1)), step
  return x.stopped(shape, axes), 0


_ELEMENTWISE = """
  abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp clz complex conj
  convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt
  imag integer_pow is_finite le lgamma log log1p logistic lt max min mul name ne neg nextafter not
  or population_count pow real reduce_precision rem round rsqrt select_n sharding_constraint
  shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan tanh xor
"""
_RULES: dict[str, _Rule] = {
  **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
  'conv_general_dilated': _along(_conv),
  **dict.fromkeys(
    ('reduce_window', 'reduce_window_sum', 'reduce_window_max', 'reduce_window_min'),
    _along(_window),
  ),
  **{
    f'reduce_{kind}': _reduce('axes') for kind in ('sum', 'max', 'min', 'prod', 'and', 'or', 'xor')
  },
  'reduce': _reduce('dimensions'),
  'argmax': _reduce('axes'),
  'argmin': _reduce('axes'),
  **{f'cum{kind}': _mix('axis') for kind in ('sum', 'prod', 'max', 'min', 'logsumexp')},
  'sort': _mix('dimension'),
  'dot_general': _dot,
  'broadcast_in_dim': _along(_broadcast),
  'reshape': _reshape,
  'squeeze': _reduce('dimensions'),
  'transpose': _along(lambda eqn, x: x.picked(eqn.params['permutation'])),
  'rev': _along(_rev),
  'slice': _along(_slice),
  'pad': _along(_pad),
  'split': _split,
  'concatenate': _concatenate,
  'gather': _along(_gather),
  'dynamic_slice': _along(_dynamic_slice),
}
# What hands its inputs to the jaxpr in it, as they are.
_CALLS = (
  'jit',
  'closed_call',
  'checkpoint',
  'remat2',
  'custom_jvp_call',
  'custom_vjp_call',
)


def _fields(
  fn: Callable[..., Any], args: Sequence[Any], kwargs: Any, axes: Sequence[int], root: str
) -> tuple[Field, ...]:
  with ops.using('xla'):
    jaxpr = jax.make_jaxpr(fn)(*args, **kwargs)
  shape = args[0].shape
  start = tuple(
    _Interval(tuple(int(i == axis) for i in range(len(shape))), 0, 0, 0, shape[axis] - 1)
    for axis in axes
  )
  found: dict[str, tuple[tuple[int, ...], _Value]] = {}

  def record(name: str, eqn: Any, value: _Value) -> None:
    name = macs.relative(name, root)
    while True:
      found.pop(name, None)
      found[name] = (tuple(eqn.outvars[0].aval.shape), value)
      if not name:
        return
      name = name.rpartition('/')[0]

  _run(jaxpr.jaxpr, [start, *[None] * (len(jaxpr.jaxpr.invars) - 1)], '', record)
  return tuple(_field(name, *value) for name, value in found.items())


def _run(
  jaxpr: Any, inputs: Sequence[_Value | None], outer: str, record: Callable[..., None]
) -> list[_Value | None]:
  """The outputs' intervals from the inputs'."""
  env: dict[Any, _Value] = {v: x for v, x in zip(jaxpr.invars, inputs, strict=True) if x}
  read = lambda v: None if hasattr(v, 'val') else env.get(v)  # literals have no hash
  for eqn in jaxpr.eqns:
    xs = [read(v) for v in eqn.invars]
    if not any(xs):
      continue
    name = '/'.join(filter(None, (outer, macs.scope(eqn))))
    kind = eqn.primitive.name
    if kind in _CALLS:
      inner = next(macs.parts(eqn.params.values()))
      ys = _run(getattr(inner, 'jaxpr', inner), xs, name, record)
    elif kind == 'scan':
      ys = _scan(eqn, xs, name, record)
    else:
      ys = _RULES.get(kind, _anything)(eqn, xs)
      ys = ys if len(ys) == len(eqn.outvars) else ys * len(eqn.outvars)
      ys = [tuple(i.bounded(v.aval.shape) for i in y) for v, y in zip(eqn.outvars, ys, strict=True)]
      if ys:
        record(name, eqn, ys[0])
    env.update((v, y) for v, y in zip(eqn.outvars, ys, strict=True) if y)
  return [read(v) for v in jaxpr.outvars]


def _scan(
  eqn: Any, inputs: list[_Value | None], name: str, record: Callable[..., None]
) -> list[_Value | None]:
  """Turn by turn; what the turns take from and add to stacks is that of all together."""
  jaxpr = getattr(eqn.params['jaxpr'], 'jaxpr', eqn.params['jaxpr'])
  # Constants, what is carried on, rows of stacks: JAX's versions name their numbers differently.
  stacked = lambda outer, inner: sum(
    a.aval.ndim > b.aval.ndim for a, b in zip(outer, inner, strict=True)
  )
  carried = len(eqn.outvars) - stacked(eqn.outvars, jaxpr.outvars)
  start = len(eqn.invars) - stacked(eqn.invars, jaxpr.invars)
  constants, carry = inputs[: start - carried], inputs[start - carried : start]
  rows = [
    x and tuple(i.stopped(v.aval.shape, [0]).picked(range(1, v.aval.ndim)) for i in x)
    for v, x in zip(eqn.invars[start:], inputs[start:], strict=True)
  ]
  turns = []
  for _ in range(eqn.params['length']):
    turn = _run(jaxpr, [*constants, *carry, *rows], name, record)
    carry = turn[:carried]
    turns.append(turn[carried:])
  stacks: list[_Value | None] = []
  for v, values in zip(eqn.outvars[carried:], zip(*turns, strict=True), strict=True):
    _, *shape = v.aval.shape
    joined = [_join(shape, i) for i in zip(*filter(None, values), strict=True)]
    stacks.append(tuple(i.placed(v.aval.ndim, range(1, v.aval.ndim)) for i in joined) or None)
  return [*carry, *stacks]


def _field(name: str, output: tuple[int, ...], value: _Value) -> Field:
  sizes, strides, offsets = [], [], []
  for x in value:
    # Of several axes along which it moves (patches), the one of the longest steps.
    axis = max(range(len(output)), key=lambda axis: abs(x.strides[axis]), default=None)
    x = x.stopped(output, [other for other in range(len(output)) if other != axis])
    stride = 0 if axis is None else x.strides[axis]
    if not stride:
      x = x._replace(low=max(x.low, x.first), high=min(x.high, x.last))
    # Strides below a pixel: outputs differ in how many they see.
    phases = range(stride.denominator)
    spans = [math.floor(x.high + i * stride) - math.ceil(x.low + i * stride) for i in phases]
    sizes.append(max(1 + max(spans), 0))
    strides.append(_plain(stride))
    offsets.append(_plain(Fraction(x.low + x.high) / 2))
  return Field(name, output, tuple(sizes), tuple(strides), tuple(offsets))


def _plain(number: Number) -> float:
  return int(number) if number.denominator == 1 else float(number)
