"""A convolution written as a matrix: sparse, of few weights, each many times over.

The matrix of a two-dimensional convolution is doubly block Toeplitz: equal along the diagonals of
blocks that are equal along the diagonals of blocks. Images and outputs are flattened as they lie in
memory, [H, W, C].
"""

from typing import Any

import jax
import numpy as np

from cnnjax.analysis import windows
from cnnjax.errors import UserError

Kernel = jax.Array | np.ndarray
Pair = tuple[int, int]


def matrix(
  kernel: Kernel,
  image_shape: tuple[int, int, int],
  *,
  strides: Pair = (1, 1),
  padding: windows.Padding = 'SAME',
  dilation: Pair = (1, 1),
  groups: int = 1,
) -> Any:
  """The matrix T for which `T @ image.ravel()` is the convolution's output, raveled.

  Args:
    kernel: `[kh, kw, C / groups, F]`, as in flax.
    image_shape: (H, W, C).
    strides: of the window, in pixels.
    padding: 'SAME', 'VALID', 'CIRCULAR' (as in flax), or pixels (before, after) for each side.
    dilation: distance of the kernel's taps, in pixels.
    groups: of channels that don't see each other.

  Returns:
    `scipy.sparse.csr_array` `[H' * W' * F, H * W * C]` of the kernel's type; dense by
    `.toarray()`, for JAX by `jax.experimental.sparse.BCOO.from_scipy_sparse`.

  Raises:
    UserError: shapes that don't fit.
  """
  import scipy.sparse  # slow to import

  weights, (height, width, channels) = np.asarray(kernel), image_shape
  _check(weights, groups, channels)
  by_rows, by_columns = windows.sides(padding)
  down = windows.meetings(
    height, weights.shape[0], stride=strides[0], dilation=dilation[0], padding=by_rows
  )
  right = windows.meetings(
    width, weights.shape[1], stride=strides[1], dilation=dilation[1], padding=by_columns
  )
  inner, features = weights.shape[2:]
  # An entry for each meeting along both sides, channel of a group, and feature.
  y, x, c, f = np.ix_(*map(np.arange, (len(down.tap), len(right.tap), inner, features)))
  group = f // (features // groups)
  outputs = (down.output[y] * right.outputs + right.output[x]) * features + f
  inputs = (down.input[y] * width + right.input[x]) * channels + group * inner + c
  values = weights[down.tap[y], right.tap[x], c, f]
  outputs, inputs, values = (a.ravel() for a in np.broadcast_arrays(outputs, inputs, values))
  shape = (down.outputs * right.outputs * features, height * width * channels)
  return scipy.sparse.coo_array((values, (outputs, inputs)), shape=shape).tocsr()


def singular_values(
  kernel: Kernel,
  image_size: Pair,
  *,
  strides: Pair = (1, 1),
  dilation: Pair = (1, 1),
  groups: int = 1,
) -> np.ndarray:
  """All singular values of a convolution on a torus (circular padding), largest first.

  The Fourier transform over the image turns the matrix into blocks [C, F], one for each frequency;
  a stride s lets s frequencies fall on one, so that blocks are [s C, F]. Sedghi, Gupta & Long 2018,
  https://arxiv.org/abs/1805.10408.

  Args:
    kernel: `[kh, kw, C / groups, F]`.
    image_size: (H, W), multiples of the strides.
    strides: of the window, in pixels.
    dilation: distance of the kernel's taps, in pixels.
    groups: of channels that don't see each other.

  Returns:
    float64 `[min(H' * W' * F, H * W * C)]`, where a group has no fewer or no more channels in s
    frequencies than features; as many as the blocks have otherwise.

  Raises:
    UserError: shapes that don't fit.
  """
  weights, (height, width), (down, right) = np.asarray(kernel, np.float64), image_size, strides
  _check(weights, groups)
  if height % down or width % right:
    raise UserError(f'image_size={image_size} must be multiples of strides={strides}')
  kh, kw, inner, _ = weights.shape
  spread = np.zeros((height, width, *weights.shape[2:]))
  rows, columns = np.arange(kh) * dilation[0] % height, np.arange(kw) * dilation[1] % width
  np.add.at(spread, np.ix_(rows, columns), weights)  # a kernel longer than the image goes round
  blocks = np.fft.fft2(spread, axes=(0, 1))
  # Frequencies that differ by multiples of H / s and W / s meet in one.
  blocks = blocks.reshape(down, height // down, right, width // right, inner, groups, -1)
  blocks = blocks.transpose(1, 3, 5, 0, 2, 4, 6)
  blocks = blocks.reshape(-1, down * right * inner, blocks.shape[-1])
  values = np.linalg.svd(blocks, compute_uv=False) / np.sqrt(down * right)
  return np.sort(values.ravel())[::-1]


def rank(kernel: Kernel, image_shape: tuple[int, int, int], **options: Any) -> int:
  """How many of a convolution's outputs are independent: the rank of `matrix`, in float64.

  Args:
    kernel: `[kh, kw, C / groups, F]`.
    image_shape: (H, W, C).
    **options: of `matrix`.
  """
  dense = matrix(np.asarray(kernel, np.float64), image_shape, **options).toarray()
  return int(np.linalg.matrix_rank(dense))


def lipschitz_bound(
  kernel: Kernel,
  image_size: Pair,
  *,
  strides: Pair = (1, 1),
  dilation: Pair = (1, 1),
  groups: int = 1,
) -> float:
  """A bound of |conv(x) - conv(y)| / |x - y| (Euclidean), whatever zeros the image is padded with.

  An image between zeros is a part of a torus that is longer by the kernel's reach, and the outputs
  that it has are among the torus's. So the bound is the largest singular value there.

  Args:
    kernel: `[kh, kw, C / groups, F]`.
    image_size: (H, W).
    strides: of the window, in pixels.
    dilation: distance of the kernel's taps, in pixels.
    groups: of channels that don't see each other.
  """
  height, width = (
    -(-(size + apart * (taps - 1)) // step) * step
    for size, taps, step, apart in zip(
      image_size, np.shape(kernel), strides, dilation, strict=False
    )
  )
  values = singular_values(
    kernel, (height, width), strides=strides, dilation=dilation, groups=groups
  )
  return float(values[0])


def _check(weights: np.ndarray, groups: int, channels: int | None = None) -> None:
  if weights.ndim != 4 or groups < 1 or weights.shape[3] % groups:
    raise UserError(
      f'kernel of shape {weights.shape} must be [kh, kw, C / groups, F], F a multiple of'
      f' groups={groups}'
    )
  if channels is not None and weights.shape[2] * groups != channels:
    raise UserError(
      f'kernel of shape {weights.shape} with groups={groups} is for images of'
      f' {weights.shape[2] * groups} channels, not {channels}'
    )
