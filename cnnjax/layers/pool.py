"""Pooling over the two spatial axes of [N, H, W, C].

`window`, `strides` and `padding` are an int for both axes or a pair (height, width); `padding` is
what goes on each side, as in PyTorch, or explicitly ((top, bottom), (left, right)). Windows that
don't fit at the end are dropped (floor).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.errors import UserError
from cnnjax.layers.geometry import Padding, Pads, Pair, pair, sides


def max_pool(
  x: jax.Array, window: Pair, *, strides: Pair | None = None, padding: Padding = 0
) -> jax.Array:
  """Maximum of each window; the padding is -inf, so it never wins.

  Where a window holds several maxima the first in row-major order takes the gradient, as in
  PyTorch. Small windows are a fold over strided slices: the gradient of `reduce_window`
  (select-and-scatter) is several times slower on every platform.

  Args:
    x: floating point [N, H, W, C].
    window: height and width of the window.
    strides: step between windows; the window itself by default.
    padding: see the module's docstring.

  Returns:
    [N, H', W', C], H' = (H + padding - window) // stride + 1.
  """
  window, strides, pads = _geometry(x, window, strides, padding)
  if window[0] * window[1] > 9:
    dims = ((1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0)))
    return lax.reduce_window(x, -jnp.inf, lax.max, *dims)
  if any(sum(pad) for pad in pads):
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
  n, h, w, c = x.shape
  last = [(size - k) // s * s for size, k, s in zip((h, w), window, strides, strict=True)]
  slices = [
    lax.slice(x, (0, i, j, 0), (n, i + last[0] + 1, j + last[1] + 1, c), (1, *strides, 1))
    for i in range(window[0])
    for j in range(window[1])
  ]
  # `>=` keeps the first of equals; `a != a` lets NaN through from either side.
  return functools.reduce(lambda a, b: jnp.where((a >= b) | (a != a), a, b), slices)


def avg_pool(
  x: jax.Array,
  window: Pair,
  *,
  strides: Pair | None = None,
  padding: Padding = 0,
  count_include_pad: bool = True,
) -> jax.Array:
  """Mean of each window.

  Args:
    x: floating point [N, H, W, C].
    window: height and width of the window.
    strides: step between windows; the window itself by default.
    padding: see the module's docstring.
    count_include_pad: padding counts as zeros in the mean (PyTorch's default); else each window
      is divided by the number of its real pixels (TensorFlow's).

  Returns:
    [N, H', W', C], H' = (H + padding - window) // stride + 1.
  """
  window, strides, pads = _geometry(x, window, strides, padding)
  n, h, w, c = x.shape
  padded = any(sum(pad) for pad in pads)
  if not padded and window == strides and h % window[0] == 0 and w % window[1] == 0:
    return x.reshape(n, h // window[0], window[0], w // window[1], window[1], c).mean((2, 4))
  dims = ((1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0)))
  total = lax.reduce_window(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 0.0, lax.add, *dims)
  if count_include_pad or not padded:
    mean = total / (window[0] * window[1])
  else:
    mean = total / lax.reduce_window(jnp.ones((1, h, w, 1), total.dtype), 0.0, lax.add, *dims)
  return mean.astype(x.dtype)


def global_avg_pool(x: jax.Array, *, keepdims: bool = False) -> jax.Array:
  """Mean over height and width: [N, H, W, C] -> [N, C], or [N, 1, 1, C] with `keepdims`."""
  return x.mean((1, 2), keepdims=keepdims)


def _geometry(
  x: jax.Array, window: Pair, strides: Pair | None, padding: Padding
) -> tuple[tuple[int, int], tuple[int, int], Pads]:
  """Window, strides and ((top, bottom), (left, right)), checked against the size of x."""
  if x.ndim != 4:
    raise UserError(f'pooling takes [N, H, W, C], got shape {x.shape}')
  window = pair(window)
  strides = window if strides is None else pair(strides)
  pads = sides(padding)
  for size, k, pad in zip(x.shape[1:3], window, pads, strict=True):
    if size + sum(pad) < k:
      raise UserError(
        f'a {window[0]}x{window[1]} pooling window with padding {pads} does not fit into '
        f'{x.shape[1]}x{x.shape[2]}: the input must be larger'
      )
    if max(pad) >= k:  # such a window would hold nothing but padding
      raise UserError(f'pooling padding {pads} must be smaller than the window {window}')
  return window, strides, pads
