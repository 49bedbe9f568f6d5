"""Maximum pooling whose gradient isn't a select-and-scatter, which is slow on every platform.

With the plugin on the CPU, y = max_pool(x) has the tangent `max_pool_select` (what stands where the
maxima are), whose transpose `max_pool_scatter` is the gradient.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import ad, batching

from cnnjax.ops import plugin
from cnnjax.ops.primitive import bind, define

_MOST = 9  # taps of a window that slices are folded over


class Pool(NamedTuple):
  """Windows over the two spatial axes; `pads` are ((top, bottom), (left, right))."""

  window: tuple[int, ...]
  strides: tuple[int, ...]
  pads: tuple[tuple[int, int], tuple[int, int]]


def max_pool(
  x: jax.Array,
  window: Sequence[int],
  strides: Sequence[int],
  pads: Sequence[tuple[int, int]],
) -> jax.Array:
  """Maximum of each window that fits; padding never wins.

  Where a window holds several maxima the first in row-major order takes the gradient.

  Args:
    x: floating point [N, H, W, C].
    window, strides: height and width.
    pads: ((top, bottom), (left, right)).

  Returns:
    [N, H', W', C], H' = (H + top + bottom - window) // stride + 1.
  """
  (top, bottom), (left, right) = pads
  pool = Pool(tuple(window), tuple(strides), ((top, bottom), (left, right)))
  inside = all(max(pad) < size for pad, size in zip(pool.pads, pool.window, strict=True))
  if plugin.chosen() and x.dtype == jnp.float32 and inside and x.size:
    return bind(max_pool_p, x, pool=pool)
  if window[0] * window[1] > _MOST:
    dims = ((1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0)))
    return lax.reduce_window(x, -jnp.inf, lax.max, *dims)
  return _max_pool(x, pool=pool)


def _taps(x: jax.Array, pool: Pool, padding: float) -> list[list[jax.Array]]:
  """Rows and columns of strided slices of x: what each tap of the windows sees."""
  if any(sum(pad) for pad in pool.pads):
    x = jnp.pad(x, ((0, 0), *pool.pads, (0, 0)), constant_values=padding)
  n, h, w, c = x.shape
  sizes = zip((h, w), pool.window, pool.strides, strict=True)
  bottom, right = ((size - k) // s * s + 1 for size, k, s in sizes)
  return [
    [
      lax.slice(x, (0, i, j, 0), (n, i + bottom, j + right, c), (1, *pool.strides, 1))
      for j in range(pool.window[1])
    ]
    for i in range(pool.window[0])
  ]


def _keep(a: jax.Array, b: jax.Array) -> jax.Array:
  """Where a wins over b: `>=` keeps the first of equals, `a != a` lets NaN through from either."""
  return (a >= b) | (a != a)


def _max_pool(x: jax.Array, *, pool: Pool) -> jax.Array:
  # Rows first: half as deep as one fold over all slices, and several times faster at stride 1.
  larger = lambda a, b: jnp.where(_keep(a, b), a, b)
  rows = [functools.reduce(larger, row) for row in _taps(x, pool, -jnp.inf)]
  return functools.reduce(larger, rows)


def _max_pool_select(v: jax.Array, x: jax.Array, *, pool: Pool) -> jax.Array:
  def larger(a: Any, b: Any) -> Any:
    keep = _keep(a[1], b[1])
    return jnp.where(keep, a[0], b[0]), jnp.where(keep, a[1], b[1])

  values, images = _taps(v, pool, 0.0), _taps(x, pool, -jnp.inf)
  rows = [
    functools.reduce(larger, zip(*row, strict=True)) for row in zip(values, images, strict=True)
  ]
  return functools.reduce(larger, rows)[0]


def _max_pool_scatter(dy: jax.Array, x: jax.Array, *, pool: Pool) -> jax.Array:
  select = lambda v: _max_pool_select(v, x, pool=pool)
  return jax.linear_transpose(select, jax.ShapeDtypeStruct(x.shape, dy.dtype))(dy)[0]


def _native(target: str) -> Any:
  def rule(ctx: Any, *, pool: Pool) -> Any:
    if any(aval.dtype != jnp.float32 for aval in ctx.avals_in):
      return None
    integers = functools.partial(np.array, dtype=np.int64)
    (top, _), (left, _) = pool.pads
    return plugin.call(
      target,
      plugin.threads(0, sum(aval.size for aval in (*ctx.avals_in, *ctx.avals_out))),
      window=integers(pool.window),
      strides=integers(pool.strides),
      padding=integers((top, left)),
    )

  return rule


max_pool_p = define('max_pool', _max_pool, _native('max_pool'))
max_pool_select_p = define('max_pool_select', _max_pool_select)
max_pool_scatter_p = define('max_pool_scatter', _max_pool_scatter, _native('max_pool_gradient'))


def _jvp(primals: Any, tangents: Any, *, pool: Pool) -> Any:
  x, v = primals[0], ad.instantiate_zeros(tangents[0])
  return bind(max_pool_p, x, pool=pool), bind(max_pool_select_p, v, x, pool=pool)


ad.primitive_jvps[max_pool_p] = _jvp
# Linear in the first argument; where the maxima are doesn't change with the second.
ad.defjvp(max_pool_select_p, lambda t, v, x, pool: bind(max_pool_select_p, t, x, pool=pool), None)
ad.defjvp(
  max_pool_scatter_p, lambda t, dy, x, pool: bind(max_pool_scatter_p, t, x, pool=pool), None
)
ad.primitive_transposes[max_pool_select_p] = lambda ct, v, x, pool: (
  bind(max_pool_scatter_p, ct, x, pool=pool),
  None,
)
ad.primitive_transposes[max_pool_scatter_p] = lambda ct, dy, x, pool: (
  bind(max_pool_select_p, ct, x, pool=pool),
  None,
)


def _batch(primitive: Any) -> None:
  """Under `vmap`: one call for the images of all members."""

  def rule(args: Sequence[Any], dims: Sequence[Any], *, pool: Pool) -> tuple[Any, int]:
    members = next(x.shape[dim] for x, dim in zip(args, dims, strict=True) if isinstance(dim, int))
    full = [
      jnp.moveaxis(x, dim, 0) if isinstance(dim, int) else jnp.broadcast_to(x, (members, *x.shape))
      for x, dim in zip(args, dims, strict=True)
    ]
    y = bind(primitive, *(x.reshape(-1, *x.shape[2:]) for x in full), pool=pool)
    return y.reshape(members, -1, *y.shape[1:]), 0

  batching.primitive_batchers[primitive] = rule


for _primitive in (max_pool_p, max_pool_select_p, max_pool_scatter_p):
  _batch(_primitive)
