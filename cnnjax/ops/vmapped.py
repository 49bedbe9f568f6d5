"""Convolutions under `vmap` where members have kernels of their own, and which way is the fastest.

A convolution and its two gradients each take two of images x, kernel w and outputs y, and give the
third. What is mapped has a leading axis of K members. The ways:

- loop: one member after the other.
- fold: one convolution for all. Members stand side by side as examples where they share the
  kernel, as output features where they share the images, as input channels where they share the
  outputs (in a gradient), else as groups of channels that don't see one another.
- batch: patches of the images times the kernels, one batched matrix product.

With a shared kernel there is nothing to choose: that is K times the examples.
"""

import concurrent.futures
import contextlib
import functools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive

from cnnjax.errors import unknown
from cnnjax.ops.primitive import bind

WAYS = ('loop', 'fold', 'batch')
CHOICES = ('auto', *WAYS)

_LARGE = 50_000_000  # products of one member, from which a CPU is busy with it alone
_WIDE = 2**28  # elements of all patches, from which they aren't tried
_KEPT = 1024  # cases
_ROUNDS, _SECONDS = 5, 1e-3  # how often, and how long at least, a way is timed
_GAIN = 0.9  # of the loop's time: what another way must stay below

_choice = jax.make_user_context(None)  # part of jit's key, as `ops.using` is
_picked: dict[str, str] = {}
_lock = threading.Lock()  # two that are timed at once would slow each other down


def members(choice: str | Mapping[str, str] = 'auto') -> contextlib.AbstractContextManager[Any]:
  """A context: functions traced within compute convolutions of several members in this way.

  Without it members are looped over where the plugin is at hand, and XLA's own rule, a grouped
  convolution, is used where it isn't. Outside of `vmap` it changes nothing.

  Args:
    choice: 'loop', 'fold' or 'batch'; 'auto': the quickest on this machine, timed when a shape is
      met for the first time; or a table of `picked`, whose cases are then as they were (others are
      looped), so that a program can be built again just as it was.

  Raises:
    UserError: another choice.
  """
  if isinstance(choice, str):
    if choice not in CHOICES:
      raise unknown('ops.members', choice, CHOICES)
    return _choice(choice)
  for way in choice.values():
    if way not in WAYS:
      raise unknown('ops.members', way, WAYS)
  return _choice(tuple(sorted(choice.items())))


def active() -> bool:
  """Whether functions are traced here under a choice of `members`."""
  return _choice.value is not None


def picked() -> dict[str, str]:
  """What 'auto' has picked in this process, the latest 1,024 cases: {case: way}."""
  with _lock:
    return dict(_picked)


class _Call(NamedTuple):
  """A primitive's call with some arguments mapped.

  Attributes:
    primitive: a convolution or one of its gradients.
    roles: which of x, w and y its two arguments and its result are.
    mapped: those with a leading axis of members; always the result.
    members: how many.
    params: the primitive's.
  """

  primitive: Primitive
  roles: str
  mapped: str
  members: int
  params: dict[str, Any]


def rule(primitive: Primitive, roles: str) -> Callable[..., Any]:
  """The rule of `vmap` for a convolution or one of its gradients; `roles` as in `_Call`."""

  def batched(args: Sequence[Any], dims: Sequence[Any], **params: Any) -> tuple[jax.Array, int]:
    count = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
    mapped = ''.join(role for role in 'xwy' if (*dims, 0)[roles.index(role)] is not None)
    call = _Call(primitive, roles, mapped, count, params)
    args = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
    way = 'fold' if mapped == 'xy' else _way(call, args)
    return _COMPUTE[way](call, *args), 0

  return batched


def _loop(call: _Call, *args: jax.Array) -> jax.Array:
  def one(mapped: Sequence[jax.Array]) -> jax.Array:
    own = iter(mapped)
    full = [next(own) if mine else x for mine, x in zip(stacked, args, strict=True)]
    return bind(call.primitive, *full, **call.params)

  stacked = [role in call.mapped for role in call.roles[:2]]
  return lax.map(one, [x for mine, x in zip(stacked, args, strict=True) if mine])


def _fold(call: _Call, *args: jax.Array) -> jax.Array:
  window = call.params['window']
  # Where members stand side by side: an axis, and how many parts of it each hold all members.
  # Features and channels are ordered by groups, so there it is within each group.
  places = {
    'xy': {'x': (0, 1), 'y': (0, 1)},
    'wy': {'w': (3, window.groups), 'y': (3, window.groups)},
    'xw': {'x': (3, window.groups), 'w': (2, 1)},
    'xwy': {'x': (3, 1), 'w': (3, 1), 'y': (3, 1)},
  }[call.mapped]
  if call.mapped == 'xwy':
    window = window._replace(groups=call.members * window.groups)
  arguments, result = call.roles[:2], call.roles[2]
  packed = [
    _pack(x, *places[role]) if role in places else x
    for role, x in zip(arguments, args, strict=True)
  ]
  y = bind(call.primitive, *packed, **{**call.params, 'window': window})
  return _unpack(y, call.members, *places[result])


def _pack(x: jax.Array, axis: int, parts: int) -> jax.Array:
  """[K, ...] to [...], `axis` K times as long, each of its equal parts with all members in turn."""
  members, *shape = x.shape
  split = x.reshape(members, *shape[:axis], parts, -1, *shape[axis + 1 :])
  shape[axis] *= members
  return jnp.moveaxis(split, 0, axis + 1).reshape(shape)


def _unpack(x: jax.Array, members: int, axis: int, parts: int) -> jax.Array:
  """The inverse of `_pack`."""
  shape = list(x.shape)
  shape[axis] //= members
  split = x.reshape(*shape[:axis], parts, members, -1, *shape[axis + 1 :])
  return jnp.moveaxis(split, axis + 1, 0).reshape(members, *shape)


def _batch(call: _Call, *args: jax.Array) -> jax.Array:
  one = functools.partial(_PRODUCTS[call.roles[2]], **call.params)
  dims = tuple(0 if role in call.mapped else None for role in call.roles[:2])
  return jax.vmap(one, dims)(*args)


def _patches(x: jax.Array, size: Sequence[int], window: Any) -> jax.Array:
  """What each tap of a kernel of this size sees.

  [N, H, W, C] to [N, H', W', taps, groups, C / groups], taps in row-major order.
  """
  x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
  n, *lengths, c = x.shape
  taps = []
  for place in np.ndindex(*size):
    starts = [i * d for i, d in zip(place, window.dilation, strict=True)]
    ends = [
      start + (length - (k - 1) * d - 1) // s * s + 1
      for start, length, k, d, s in zip(
        starts, lengths, size, window.dilation, window.strides, strict=True
      )
    ]
    taps.append(lax.slice(x, (0, *starts, 0), (n, *ends, c), (1, *window.strides, 1)))
  patches = jnp.stack(taps, 3)
  return patches.reshape(*patches.shape[:4], window.groups, -1)


def _outputs(x: jax.Array, w: jax.Array, *, window: Any) -> jax.Array:
  patches = _patches(x, w.shape[:2], window)
  kernel = w.reshape(-1, w.shape[2], window.groups, w.shape[3] // window.groups)
  y = jnp.einsum('nhwtgc,tcgf->nhwgf', patches, kernel)
  return y.reshape(*y.shape[:3], -1)


def _images(w: jax.Array, dy: jax.Array, *, window: Any, size: tuple[int, int]) -> jax.Array:
  """dx is itself a convolution: of dy, spread out by the strides, with the turned kernel."""
  spread = [(0, 0, 0)]
  sizes = zip(size, w.shape[:2], dy.shape[1:3], *window[:3], strict=True)
  for length, k, out, s, (before, _), d in sizes:
    reach = (k - 1) * d
    spread.append((reach - before, length + before - (out - 1) * s - 1, s - 1))
  dy = lax.pad(dy, jnp.zeros((), dy.dtype), (*spread, (0, 0, 0)))
  turned = w[::-1, ::-1].reshape(*w.shape[:3], window.groups, -1).swapaxes(2, 4)
  turned = turned.reshape(*w.shape[:2], turned.shape[2], -1)
  close = window._replace(strides=(1, 1), padding=((0, 0), (0, 0)))
  return _outputs(dy, turned, window=close)


def _kernel(x: jax.Array, dy: jax.Array, *, window: Any, size: tuple[int, int]) -> jax.Array:
  split = dy.reshape(*dy.shape[:3], window.groups, -1)
  dw = jnp.einsum('nhwtgc,nhwgf->tcgf', _patches(x, size, window), split)
  return dw.reshape(*size, dw.shape[1], -1)


_COMPUTE = {'loop': _loop, 'fold': _fold, 'batch': _batch}
_PRODUCTS = {'x': _images, 'w': _kernel, 'y': _outputs}  # for one member, by what they give


def _way(call: _Call, args: Sequence[jax.Array]) -> str:
  choice = _choice.value
  if choice is None or choice in WAYS:
    return choice or 'loop'
  shapes = _shapes(call, args)
  case = _describe(call, shapes, args[0].dtype)
  if choice != 'auto':
    return dict(choice).get(case, 'loop')
  with _lock:
    if case not in _picked:
      while len(_picked) >= _KEPT:
        del _picked[next(iter(_picked))]
      _picked[case] = _quickest(call, shapes, [(x.shape, x.dtype) for x in args])
    return _picked[case]


def _shapes(call: _Call, args: Sequence[jax.Array]) -> dict[str, tuple[int, ...]]:
  """Of one member's x, w and y."""
  single = [
    jax.ShapeDtypeStruct(x.shape[1:] if role in call.mapped else x.shape, x.dtype)
    for role, x in zip(call.roles[:2], args, strict=True)
  ]
  result = jax.eval_shape(functools.partial(call.primitive.bind, **call.params), *single)
  return {role: x.shape for role, x in zip(call.roles, (*single, result), strict=True)}


def _describe(call: _Call, shapes: Mapping[str, Sequence[int]], dtype: Any) -> str:
  times = lambda values: 'x'.join(map(str, values))
  window = call.params['window']
  return ' '.join(
    (
      f'{jax.default_backend()} {call.primitive.name}{" by XLA" * window.xla} {jnp.dtype(dtype)}',
      f'{call.members} of {call.mapped}',
      *(f'{role}={times(shapes[role])}' for role in 'xwy'),
      f'strides={times(window.strides)} padding={times(sum(window.padding, ()))}',
      f'dilation={times(window.dilation)} groups={window.groups}',
    )
  )


def _quickest(
  call: _Call, shapes: Mapping[str, Sequence[int]], args: Sequence[tuple[Any, Any]]
) -> str:
  """The way that takes the least time here; 'loop' where there is nothing to gain, and where
  several processes would have to agree."""
  products = math.prod(shapes['y']) * math.prod(shapes['w'][:3])
  busy = jax.default_backend() == 'cpu' and products >= _LARGE
  if busy or jax.process_count() > 1:
    return 'loop'
  patches = call.members * math.prod(shapes['y'][:3]) * math.prod(shapes['w'][:2]) * shapes['x'][3]
  ways = WAYS if patches < _WIDE else WAYS[:2]
  # In a thread of its own: nothing of what is being traced here, its mesh or its options is there.
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    times = thread.submit(_time, call, ways, args).result()
  best = min(times, key=lambda way: times[way])
  return best if times[best] < _GAIN * times['loop'] else 'loop'


def _time(call: _Call, ways: Sequence[str], args: Sequence[tuple[Any, Any]]) -> dict[str, float]:
  """Seconds of one call, the least of several, in turn; infinite where memory is too small."""
  rng = np.random.default_rng(0)
  arrays = [jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for shape, dtype in args]
  programs: dict[str, Any] = {}
  times, repeats = dict.fromkeys(ways, math.inf), dict.fromkeys(ways, 1)
  for way in ways:
    program = jax.jit(functools.partial(_COMPUTE[way], call))
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      programs[way] = program.lower(*arrays).compile()
      jax.block_until_ready(programs[way](*arrays))
  for i in range(_ROUNDS):
    for way, program in programs.items():
      if i and times[way] > 4 * min(times.values()):
        continue
      start = time.perf_counter()
      for _ in range(repeats[way]):
        result = program(*arrays)
      jax.block_until_ready(result)
      seconds = (time.perf_counter() - start) / repeats[way]
      times[way] = min(times[way], seconds)
      repeats[way] = max(1, math.ceil(_SECONDS / seconds))
  return times
