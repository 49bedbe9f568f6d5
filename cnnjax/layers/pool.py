"""Pooling over the two spatial axes of [N, H, W, C].

`window`, `strides` and `padding` are an int for both axes or a pair (height, width); `padding` is
what goes on each side, as in PyTorch, or explicitly ((top, bottom), (left, right)). Windows that
don't fit at the end are dropped (floor). With `ceil_mode` they are kept, cut off at the end, unless
they would start in the padding there: PyTorch's rule.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.layers.geometry import Padding, Pads, Pair, pair, sides


def max_pool(
  x: jax.Array,
  window: Pair,
  *,
  strides: Pair | None = None,
  padding: Padding = 0,
  ceil_mode: bool = False,
) -> jax.Array:
  """Maximum of each window; the padding is -inf, so it never wins.

  Where a window holds several maxima the first in row-major order takes the gradient, as in
  PyTorch.

  Args:
    x: floating point [N, H, W, C].
    window: height and width of the window.
    strides: step between windows; the window itself by default.
    padding: see the module's docstring.
    ceil_mode: keep the windows that don't fit at the end; see the module's docstring.

  Returns:
    [N, H', W', C], H' = (H + padding - window) // stride + 1, or that rounded up.
  """
  window, strides, _, pads = _geometry(x, window, strides, padding, ceil_mode)
  return ops.max_pool(x, window, strides, pads)


def _mean(x: jax.Array, window: tuple[int, int]) -> jax.Array:
  n, h, w, c = x.shape
  return x.reshape(n, h // window[0], window[0], w // window[1], window[1], c).mean((2, 4))


# A sum of slices takes a CPU a third of the time of a reduction; but its gradient, a sum of padded
# arrays, takes far longer than the reduction's, which is a broadcast.
@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _mean_of_slices(x: jax.Array, window: tuple[int, int]) -> jax.Array:
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  taps = [wide[:, i :: window[0], j :: window[1]] for i, j in np.ndindex(*window)]
  return (functools.reduce(jnp.add, taps) / len(taps)).astype(x.dtype)


@_mean_of_slices.defjvp
def _mean_of_slices_jvp(
  window: tuple[int, int], primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
  return _mean_of_slices(*primals, window), _mean(*tangents, window)


def avg_pool(
  x: jax.Array,
  window: Pair,
  *,
  strides: Pair | None = None,
  padding: Padding = 0,
  count_include_pad: bool = True,
  ceil_mode: bool = False,
) -> jax.Array:
  """Mean of each window.

  Args:
    x: floating point [N, H, W, C].
    window: height and width of the window.
    strides: step between windows; the window itself by default.
    padding: see the module's docstring.
    count_include_pad: padding counts as zeros in the mean (PyTorch's default); else each window
      is divided by the number of its real pixels (TensorFlow's).
    ceil_mode: keep the windows that don't fit at the end; see the module's docstring. What they
      lack there never counts.

  Returns:
    [N, H', W', C], H' = (H + padding - window) // stride + 1, or that rounded up.
  """
  window, strides, given, pads = _geometry(x, window, strides, padding, ceil_mode)
  h, w = x.shape[1:3]
  padded = any(sum(pad) for pad in pads)
  if not padded and window == strides and h % window[0] == 0 and w % window[1] == 0:
    return _mean_of_slices(x, window) if math.prod(window) <= 4 else _mean(x, window)
  dims = ((1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0)))
  total = lax.reduce_window(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 0.0, lax.add, *dims)
  counts = [
    _counts(length, k, s, pad, real, count_include_pad)
    for length, k, s, pad, real in zip(
      total.shape[1:3], window, strides, given, (h, w), strict=True
    )
  ]
  area = jnp.asarray(counts[0][:, None, None] * counts[1][:, None], total.dtype)  # (H', W', 1)
  return (total / area[None]).astype(x.dtype)


def adaptive_avg_pool(x: jax.Array, size: Pair) -> jax.Array:
  """Mean over a grid of `size` bins that covers the image, whatever its size; PyTorch's edges.

  Bin i of n over H pixels is floor(i H / n) to ceil((i + 1) H / n): bins overlap by a pixel where n
  doesn't divide H, and repeat pixels where n > H.

  Args:
    x: floating point [N, H, W, C].
    size: height and width of the grid.

  Returns:
    [N, *size, C].
  """
  if x.ndim != 4:
    raise UserError(f'pooling takes [N, H, W, C], got shape {x.shape}')
  size, dtype = pair(size), x.dtype
  if min(size) < 1 or min(x.shape[1:3]) < 1:
    raise UserError(
      f'adaptive pooling of {x.shape[1]}x{x.shape[2]} to {size[0]}x{size[1]} is empty'
    )
  if not (x.shape[1] % size[0] or x.shape[2] % size[1]):
    return avg_pool(x, (x.shape[1] // size[0], x.shape[2] // size[1]))
  x = x.astype(jnp.promote_types(dtype, jnp.float32))
  for axis, bins in zip((1, 2), size, strict=True):
    length = x.shape[axis]
    edges = [(i * length // bins, -(-(i + 1) * length // bins)) for i in range(bins)]
    means = [lax.slice_in_dim(x, *edge, axis=axis).mean(axis) for edge in edges]
    x = jnp.stack(means, axis)
  return x.astype(dtype)


def blur_pool(
  x: jax.Array, *, window: int = 3, strides: Pair = 2, mode: str = 'reflect'
) -> jax.Array:
  """Low-pass filters each channel by binomial weights, then subsamples (Zhang 2019,
  arXiv:1904.11486): [1, 2, 1] / 4 in height and width for a window of 3.

  A depthwise convolution with constant weights, and counted as one.

  Args:
    x: floating point [N, H, W, C].
    window: height and width of the filter.
    strides: step in pixels.
    mode: of `jnp.pad`, by (window - 1) // 2 before and window // 2 after: 'reflect', which needs
      an image larger than the padding, 'constant' for zeros, or 'edge'.

  Returns:
    [N, H', W', C], H' = (H - 1) // stride + 1.
  """
  if x.ndim != 4:
    raise UserError(f'pooling takes [N, H, W, C], got shape {x.shape}')
  if mode == 'reflect' and min(x.shape[1:3]) <= window // 2:
    raise UserError(
      f'a blur of {window}x{window} reflects {window // 2} pixels and does not fit into '
      f'{x.shape[1]}x{x.shape[2]}: the input must be larger'
    )
  weights = np.array([math.comb(window - 1, i) for i in range(window)]) / 2 ** (window - 1)
  kernel = np.broadcast_to(
    np.outer(weights, weights)[:, :, None, None], (window, window, 1, x.shape[-1])
  )
  pad = ((window - 1) // 2, window // 2)
  return ops.conv_general_dilated(
    jnp.pad(x, ((0, 0), pad, pad, (0, 0)), mode=mode),
    jnp.asarray(kernel, x.dtype),
    window_strides=pair(strides),
    padding='VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x.shape[-1],
  )


def global_avg_pool(x: jax.Array, *, keepdims: bool = False) -> jax.Array:
  """Mean over height and width: [N, H, W, C] -> [N, C], or [N, 1, 1, C] with `keepdims`."""
  return x.mean((1, 2), keepdims=keepdims)


def gem_pool(
  x: jax.Array, *, p: float | jax.Array = 3.0, epsilon: float = 1e-6, keepdims: bool = False
) -> jax.Array:
  """Generalised mean over height and width, (mean xᵖ)^(1/p) (Radenović et al. 2018,
  arXiv:1711.02512, equation 3): the average at p = 1, towards the maximum as p grows.

  Args:
    x: floating point [N, H, W, C]; what is below `epsilon` counts as `epsilon`.
    p: exponent, a number or [C].
    epsilon: keeps the power and its gradient finite.
    keepdims: keep height and width, as ones.

  Returns:
    [N, C], or [N, 1, 1, C] with `keepdims`.
  """
  dtype = x.dtype
  x = jnp.maximum(x.astype(jnp.promote_types(dtype, jnp.float32)), epsilon)
  # Relative to the maximum, so that no power overflows or vanishes.
  top = lax.stop_gradient(x.max((1, 2), keepdims=True))
  p = jnp.asarray(p, x.dtype)
  lift = lambda p: p.reshape((1, 1, 1, -1))
  mean = jnp.power(x / top, lift(p)).mean((1, 2), keepdims=True)
  y = (top * jnp.power(mean, lift(1 / p))).astype(dtype)
  return y if keepdims else y[:, 0, 0]


class GeM(nn.Module):
  """`gem_pool` with a learned exponent, one for all channels: [N, H, W, C] -> [N, C].

  Attributes:
    p: initial exponent; the parameter `p`, float32 [1].
    epsilon: see `gem_pool`.
    keepdims: see `gem_pool`.
  """

  p: float = 3.0
  epsilon: float = 1e-6
  keepdims: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    p = self.param('p', nn.initializers.constant(self.p), (1,), jnp.float32)
    return gem_pool(x, p=p, epsilon=self.epsilon, keepdims=self.keepdims)


def _counts(length: int, k: int, s: int, pad: tuple[int, int], size: int, padded: bool) -> Any:
  """Pixels along one axis in each of `length` windows; those of the padding too, if `padded`."""
  starts = np.arange(length) * s - pad[0]
  low, high = (-pad[0], size + pad[1]) if padded else (0, size)
  return np.minimum(starts + k, high) - np.maximum(starts, low)


def _geometry(
  x: jax.Array, window: Pair, strides: Pair | None, padding: Padding, ceil_mode: bool
) -> tuple[tuple[int, int], tuple[int, int], Pads, Pads]:
  """Window, strides, ((top, bottom), (left, right)) as given and as needed: with what the last
  windows lack in `ceil_mode`. Checked against the size of x.
  """
  if x.ndim != 4:
    raise UserError(f'pooling takes [N, H, W, C], got shape {x.shape}')
  window = pair(window)
  strides = window if strides is None else pair(strides)
  pads, needed = sides(padding), []
  for size, k, s, pad in zip(x.shape[1:3], window, strides, pads, strict=True):
    room = size + sum(pad) - k
    count = (-(-room // s) if ceil_mode else room // s) + 1
    if ceil_mode and (count - 1) * s >= size + pad[0]:
      count -= 1
    needed.append((pad[0], pad[1] + max((count - 1) * s - room, 0)))
    if count < 1:
      raise UserError(
        f'a {window[0]}x{window[1]} pooling window with padding {pads} does not fit into '
        f'{x.shape[1]}x{x.shape[2]}: the input must be larger'
      )
    if max(pad) >= k:  # such a window would hold nothing but padding
      raise UserError(f'pooling padding {pads} must be smaller than the window {window}')
  return window, strides, pads, (needed[0], needed[1])
