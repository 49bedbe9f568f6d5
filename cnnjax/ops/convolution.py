"""Two-dimensional convolution, on the CPU by oneDNN where `cnnjax-onednn` is installed.

y = conv2d(x, w) is linear in each argument, and so are its two gradients

  dx = conv2d_input_gradient(w, dy)       dw = conv2d_weight_gradient(x, dy).

Differentiating any of the three gives the other two, so as JAX primitives with these transposes
they have derivatives of every order, forward and reverse. On other platforms, in exported programs,
and where oneDNN has only naive loops, each becomes the XLA operations that
`jax.lax.conv_general_dilated` and its gradients become. `cnnjax.ops.vmapped` has what becomes of
them under `vmap`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad

from cnnjax.ops import plugin, ways
from cnnjax.ops.primitive import bind, define

_NUMBERS = ('NHWC', 'HWIO', 'NHWC')
_OF_PIXELS = (((3,), (0,)), ((), ()))  # `dot_general`'s axes


class Window(NamedTuple):
  """Where a convolution's taps lie.

  Attributes:
    strides: (height, width).
    padding: ((top, bottom), (left, right)), not negative.
    dilation: (height, width), of the kernel.
    groups: of channels.
    xla: left to XLA even where the plugin is installed.
  """

  strides: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]
  dilation: tuple[int, ...]
  groups: int
  xla: bool = False


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  batch_group_count: int = 1,
  precision: Any = None,
  preferred_element_type: Any = None,
  **options: Any,
) -> jax.Array:
  """`jax.lax.conv_general_dilated`, faster on CPUs; the same arguments and result.

  oneDNN takes two-dimensional NHWC convolutions with HWIO kernels in float32 and bfloat16;
  everything else is left to XLA.
  """
  numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
  ours = (
    lhs.ndim == 4
    and numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NUMBERS)
    and lhs.dtype == rhs.dtype
    and lhs.dtype in (jnp.float32, jnp.bfloat16)
    and all(step == 1 for step in lhs_dilation or ())
    and batch_group_count == 1
    and preferred_element_type in (None, lhs.dtype)
    and not options
    and (plugin.chosen() or (ways.active() and precision is None))
  )
  if ours:
    dilation = tuple(rhs_dilation or (1, 1))
    if isinstance(padding, str):
      taps = [(k - 1) * d + 1 for k, d in zip(rhs.shape[:2], dilation, strict=True)]
      padding = lax.padtype_to_pads(lhs.shape[1:3], taps, window_strides, padding)
    pads = tuple((int(before), int(after)) for before, after in padding)
    strides = tuple(window_strides)
    window = Window(strides, pads, dilation, feature_group_count, xla=not plugin.chosen())
    sizes = _output_size(lhs.shape, rhs.shape, window)
    if min(min(pads)) >= 0 and min(*sizes, *lhs.shape, *rhs.shape) > 0:
      return bind(conv2d_p, lhs, rhs, window=window)
  return lax.conv_general_dilated(
    lhs,
    rhs,
    window_strides,
    padding,
    lhs_dilation,
    rhs_dilation,
    dimension_numbers,
    feature_group_count,
    batch_group_count,
    precision,
    preferred_element_type,
    **options,
  )


def dot_general(
  lhs: jax.Array,
  rhs: jax.Array,
  dimension_numbers: Any,
  precision: Any = None,
  preferred_element_type: Any = None,
  **options: Any,
) -> jax.Array:
  """`jax.lax.dot_general`, faster on CPUs for pixels [N, H, W, C] times a matrix [C, F].

  Such a product, a dense layer over the channels, becomes a 1 x 1 convolution there: the matrix's
  gradient takes four to nine tenths of XLA's time. Everything else is left to XLA. The same
  arguments and result.
  """
  pixels = _plain(dimension_numbers) == _OF_PIXELS and (lhs.ndim, rhs.ndim) == (4, 2)
  if pixels and not options and jax.default_backend() == 'cpu' and plugin.chosen():
    return conv_general_dilated(
      lhs,
      rhs[None, None],
      (1, 1),
      'VALID',
      dimension_numbers=_NUMBERS,
      precision=precision,
      preferred_element_type=preferred_element_type,
    )
  return lax.dot_general(lhs, rhs, dimension_numbers, precision, preferred_element_type, **options)


def _plain(numbers: Any) -> tuple[tuple[tuple[int, ...], ...], ...]:
  return tuple(tuple(tuple(map(int, axes)) for axes in pair) for pair in numbers)


def _output_size(image: Sequence[int], kernel: Sequence[int], window: Window) -> tuple[int, ...]:
  return tuple(
    (size + sum(pad) - (k - 1) * d - 1) // s + 1
    for size, k, s, pad, d in zip(image[1:3], kernel[:2], *window[:3], strict=True)
  )


def _conv2d(x: jax.Array, w: jax.Array, *, window: Window) -> jax.Array:
  return lax.conv_general_dilated(
    x,
    w,
    window.strides,
    window.padding,
    rhs_dilation=window.dilation,
    dimension_numbers=_NUMBERS,
    feature_group_count=window.groups,
  )


def _input_gradient(
  w: jax.Array, dy: jax.Array, *, window: Window, size: tuple[int, int]
) -> jax.Array:
  shape = (dy.shape[0], *size, w.shape[2] * window.groups)
  return _transpose(lambda x: _conv2d(x, w, window=window), shape, dy)


def _weight_gradient(
  x: jax.Array, dy: jax.Array, *, window: Window, size: tuple[int, int]
) -> jax.Array:
  shape = (*size, x.shape[-1] // window.groups, dy.shape[-1])
  return _transpose(lambda w: _conv2d(x, w, window=window), shape, dy)


def _transpose(forward: Callable[..., Any], shape: Sequence[int], dy: jax.Array) -> jax.Array:
  like = jnp.zeros(shape, dy.dtype)
  # Inside `shard_map` it varies with the device as dy does, or JAX would add the devices' up.
  if axes := jax.typeof(dy).manual_axis_type.varying:
    like = lax.pcast(like, tuple(axes), to='varying')
  return jax.linear_transpose(forward, like)(dy)[0]


def _native(kind: str, order: Sequence[int]) -> Callable[..., Any]:
  """`order`: where images, kernel and outputs are among the arguments and the result."""

  def rule(ctx: Any, *, window: Window, **_: Any) -> Any:
    avals = (*ctx.avals_in, *ctx.avals_out)
    images, kernel, outputs = (avals[i].shape for i in order)
    problem = plugin.problem(kind, images, kernel, outputs, window, avals[0].dtype)
    if window.xla or not plugin.takes(problem):
      return None
    return plugin.call(kind, problem[-1], **plugin.window_attributes(window))

  return rule


conv2d_p = define('conv2d', _conv2d, _native('forward', (0, 1, 2)))
input_gradient_p = define(
  'conv2d_input_gradient', _input_gradient, _native('input_gradient', (2, 0, 1))
)
weight_gradient_p = define(
  'conv2d_weight_gradient', _weight_gradient, _native('weight_gradient', (0, 2, 1))
)


def _dx(w: jax.Array, dy: jax.Array, like: Any, window: Window) -> jax.Array:
  return bind(input_gradient_p, w, dy, window=window, size=tuple(like.aval.shape[1:3]))


def _dw(x: jax.Array, dy: jax.Array, like: Any, window: Window) -> jax.Array:
  return bind(weight_gradient_p, x, dy, window=window, size=tuple(like.aval.shape[:2]))


def _y(x: jax.Array, w: jax.Array, window: Window) -> jax.Array:
  return bind(conv2d_p, x, w, window=window)


# Each rule: the cotangent, the arguments (one of them unknown), and the primitive's parameters.
ad.defbilinear(
  conv2d_p,
  lambda ct, x, w, window: _dx(w, ct, x, window),
  lambda ct, x, w, window: _dw(x, ct, w, window),
)
ad.defbilinear(
  input_gradient_p,
  lambda ct, w, dy, window, size: _dw(ct, dy, w, window),
  lambda ct, w, dy, window, size: _y(ct, w, window),
)
ad.defbilinear(
  weight_gradient_p,
  lambda ct, x, dy, window, size: _dx(ct, dy, x, window),
  lambda ct, x, dy, window, size: _y(x, ct, window),
)
