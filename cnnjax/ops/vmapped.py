"""Convolutions under `vmap` where members have kernels of their own.

A convolution and its two gradients each take two of images x, kernel w and outputs y, and give the
third. What is mapped has a leading axis of K members. The ways, one of which `ops.ways` chooses for
every shape:

- loop: one member after the other; on the CPU with the plugin as many at a time as there are
  threads.
- fold: one convolution for all. Members stand side by side as examples where they share the
  kernel, as output features where they share the images, as input channels where they share the
  outputs (in a gradient), else as groups of channels that don't see one another.
- batch: patches of the images times the kernels, one batched matrix product.

With a shared kernel there is nothing to choose: that is K times the examples. Elsewhere all members
together are one primitive, bilinear as its parts are, so that gradients of a mapped convolution
choose for themselves as well.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching

from cnnjax.ops import convolution, plugin, ways
from cnnjax.ops.primitive import bind, define

_WIDE = 2**28  # elements of all patches, from which they aren't tried

# By what it gives: the arguments of each primitive.
_ARGUMENTS = {'y': 'xw', 'x': 'wy', 'w': 'xy'}
_PRIMITIVES = {
  'y': convolution.conv2d_p,
  'x': convolution.input_gradient_p,
  'w': convolution.weight_gradient_p,
}
_KINDS = {'y': 'forward', 'x': 'input_gradient', 'w': 'weight_gradient'}  # the plugin's names


class Call(NamedTuple):
  """One primitive for several members.

  Attributes:
    result: which of x, w and y it gives.
    mapped: which of them have a leading axis of members; always the result.
    members: how many.
    window: of all of them.
    size: height and width of x or w, where that is the result.
  """

  result: str
  mapped: str
  members: int
  window: convolution.Window
  size: tuple[int, int] | None


def _compute(*args: jax.Array, call: Call, way: str) -> jax.Array:
  return {'loop': _loop, 'fold': _fold, 'batch': _batch}[way](call, *args)


def _loop(call: Call, *args: jax.Array) -> jax.Array:
  def one(mapped: Sequence[jax.Array]) -> jax.Array:
    own = iter(mapped)
    full = [next(own) if mine else x for mine, x in zip(stacked, args, strict=True)]
    return _member(call, call.window, *full)

  stacked = [role in call.mapped for role in _ARGUMENTS[call.result]]
  return lax.map(one, [x for mine, x in zip(stacked, args, strict=True) if mine])


def _member(call: Call, window: convolution.Window, *args: jax.Array) -> jax.Array:
  size = {'size': call.size} if call.size else {}
  return bind(_PRIMITIVES[call.result], *args, window=window, **size)


def _fold(call: Call, *args: jax.Array) -> jax.Array:
  window = call.window
  # Where members stand side by side: an axis, and how many parts of it each hold all members.
  # Features and channels are ordered by groups, so there it is within each group.
  places = {
    'xy': {'x': (0, 1), 'y': (0, 1)},
    'wy': {'w': (3, window.groups), 'y': (3, window.groups)},
    'wx': {'x': (3, window.groups), 'w': (2, 1)},
    'wxy': {'x': (3, 1), 'w': (3, 1), 'y': (3, 1)},
  }[call.mapped]
  if call.mapped == 'wxy':
    window = window._replace(groups=call.members * window.groups)
  packed = [
    _pack(x, *places[role]) if role in places else x
    for role, x in zip(_ARGUMENTS[call.result], args, strict=True)
  ]
  return _unpack(_member(call, window, *packed), call.members, *places[call.result])


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


def _batch(call: Call, *args: jax.Array) -> jax.Array:
  size = {'size': call.size} if call.size else {}
  one = functools.partial(_PRODUCTS[call.result], window=call.window, **size)
  dims = tuple(0 if role in call.mapped else None for role in _ARGUMENTS[call.result])
  return jax.vmap(one, dims)(*args)


def _patches(x: jax.Array, size: Sequence[int], window: convolution.Window) -> jax.Array:
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


def _outputs(x: jax.Array, w: jax.Array, *, window: convolution.Window) -> jax.Array:
  patches = _patches(x, w.shape[:2], window)
  kernel = w.reshape(-1, w.shape[2], window.groups, w.shape[3] // window.groups)
  y = jnp.einsum('nhwtgc,tcgf->nhwgf', patches, kernel)
  return y.reshape(*y.shape[:3], -1)


def _images(
  w: jax.Array, dy: jax.Array, *, window: convolution.Window, size: tuple[int, int]
) -> jax.Array:
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


def _kernel(
  x: jax.Array, dy: jax.Array, *, window: convolution.Window, size: tuple[int, int]
) -> jax.Array:
  split = dy.reshape(*dy.shape[:3], window.groups, -1)
  dw = jnp.einsum('nhwtgc,nhwgf->tcgf', _patches(x, size, window), split)
  return dw.reshape(*size, dw.shape[1], -1)


_PRODUCTS = {'x': _images, 'w': _kernel, 'y': _outputs}  # for one member


def _native(ctx: Any, *, call: Call, way: str) -> Any:
  roles = _ARGUMENTS[call.result] + call.result
  avals = dict(zip(roles, (*ctx.avals_in, *ctx.avals_out), strict=True))
  shapes = {role: avals[role].shape[role in call.mapped :] for role in 'xwy'}
  if way != 'loop' or not _takes(call, shapes, ctx.avals_in[0].dtype):
    return None
  products = call.members * math.prod(shapes['y']) * math.prod(shapes['w'][:3])
  return plugin.call(
    'members',
    plugin.threads(products, avals['x'].size + avals['y'].size),
    kind=np.int64(plugin.load().KINDS.index(_KINDS[call.result])),
    members=np.int64(call.members),
    **plugin.window_attributes(call.window),
  )


def _takes(call: Call, shapes: dict[str, tuple[int, ...]], dtype: Any) -> bool:
  """Whether the plugin, which is installed, takes all members at once."""
  if call.window.xla or 'members' not in plugin.load().TARGETS:
    return False
  x, w, y = (shapes[role] for role in 'xwy')
  return plugin.takes(plugin.problem(_KINDS[call.result], x, w, y, call.window, dtype))


members_p = define('conv2d_members', _compute, _native)


def _together(call: Call, *args: jax.Array) -> jax.Array:
  """All members' results, [K, ...], in the way that is chosen."""
  if call.mapped == 'xy':
    return _fold(call, *args)
  way = ways.choose(lambda: _case(call, args))
  return bind(members_p, *args, call=call, way=way)


def _case(call: Call, args: Sequence[jax.Array]) -> ways.Case:
  single = [
    jax.ShapeDtypeStruct(x.shape[1:] if role in call.mapped else x.shape, x.dtype)
    for role, x in zip(_ARGUMENTS[call.result], args, strict=True)
  ]
  result = jax.eval_shape(functools.partial(_member, call, call.window), *single)
  roles = _ARGUMENTS[call.result] + call.result
  shapes = {role: x.shape for role, x in zip(roles, (*single, result), strict=True)}
  patches = call.members * math.prod((*shapes['y'][:3], *shapes['w'][:2], shapes['x'][3]))
  # The plugin's loop was 1.6 to 9 times as fast as patches in all that was measured.
  looped = jax.default_backend() == 'cpu' and _takes(call, shapes, args[0].dtype)
  tried = ('loop', 'fold') if looped or patches >= _WIDE else ways.WAYS
  return ways.Case(
    name=_name(call, shapes, args[0].dtype),
    products=math.prod(shapes['y']) * math.prod(shapes['w'][:3]),
    arguments=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in args),
    ways={way: functools.partial(members_p.bind, call=call, way=way) for way in tried},
  )


def _name(call: Call, shapes: dict[str, tuple[int, ...]], dtype: Any) -> str:
  times = lambda values: 'x'.join(map(str, values))
  window = call.window
  return ' '.join(
    (
      f'{jax.default_backend()} {_KINDS[call.result]}{" by XLA" if window.xla else ""} {dtype}',
      f'{call.members} of {call.mapped}',
      *(f'{role}={times(shapes[role])}' for role in 'xwy'),
      f'strides={times(window.strides)} padding={times(sum(window.padding, ()))}',
      f'dilation={times(window.dilation)} groups={window.groups}',
    )
  )


def _rule(result: str) -> Callable[..., tuple[jax.Array, int]]:
  """Of `vmap` for the primitive that gives `result`."""

  def batched(
    args: Sequence[Any],
    dims: Sequence[Any],
    *,
    window: convolution.Window,
    size: tuple[int, int] | None = None,
  ) -> tuple[jax.Array, int]:
    pairs = list(zip(args, dims, strict=True))
    members = next(x.shape[d] for x, d in pairs if d is not None)
    stacked = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in pairs]
    mapped = {r for r, d in zip(_ARGUMENTS[result], dims, strict=True) if d is not None}
    return _together(Call(result, _sorted(mapped | {result}), members, window, size), *stacked), 0

  return batched


def _sorted(roles: set[str]) -> str:
  return ''.join(sorted(roles))


def _transpose(place: int) -> Callable[..., jax.Array]:
  """The transpose with respect to the argument at this place, of which only the type is known."""

  def rule(ct: jax.Array, *args: Any, call: Call, way: str) -> jax.Array:
    del way
    roles = _ARGUMENTS[call.result]
    role, known = roles[place], {roles[1 - place]: args[1 - place], call.result: ct}
    shape = args[place].aval.shape[role in call.mapped :]
    size = {'x': tuple(shape[1:3]), 'w': tuple(shape[:2]), 'y': None}[role]
    own = Call(role, _sorted({*call.mapped, role}), call.members, call.window, size)
    all_members = _together(own, *(known[r] for r in _ARGUMENTS[role]))
    return all_members if role in call.mapped else all_members.sum(0)

  return rule


def _nested(args: Sequence[Any], dims: Sequence[Any], **params: Any) -> tuple[jax.Array, int]:
  return jax.vmap(functools.partial(_compute, **params), tuple(dims))(*args), 0


ad.defbilinear(members_p, _transpose(0), _transpose(1))
batching.primitive_batchers[members_p] = _nested
for _result, _primitive in _PRIMITIVES.items():
  batching.primitive_batchers[_primitive] = _rule(_result)
