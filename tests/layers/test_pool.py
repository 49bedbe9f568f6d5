"""Pooling against NumPy loops; ties, NaN, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.errors import UserError
from cnnjax.layers.pool import (
  GeM,
  adaptive_avg_pool,
  avg_pool,
  blur_pool,
  gem_pool,
  global_avg_pool,
  max_pool,
)

CASES = [
  # shape, window, strides, padding
  ((2, 6, 4, 3), 2, None, 0),
  ((2, 7, 5, 3), 2, None, 0),
  ((2, 7, 6, 3), 3, 2, 1),
  ((1, 5, 5, 2), 3, 1, 1),
  ((1, 8, 9, 2), (2, 3), (1, 2), 0),
  ((1, 8, 9, 2), 5, 1, 2),  # the large windows go through reduce_window
  ((1, 8, 9, 2), 4, None, ((0, 3), (2, 1))),
]


def windows(x, window, strides, padding, fill):
  """Yields (n, i, j, the window's pixels [k, C], their (row, column))."""
  pair = lambda v: (v, v) if isinstance(v, int) else v
  kh, kw = pair(window)
  sh, sw = pair(window if strides is None else strides)
  pads = [pair(p) for p in pair(padding)]
  rows, columns = np.meshgrid(np.arange(x.shape[1]), np.arange(x.shape[2]), indexing='ij')
  padded = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
  rows, columns = (np.pad(a, pads, constant_values=-1) for a in (rows, columns))
  for i in range((padded.shape[1] - kh) // sh + 1):
    for j in range((padded.shape[2] - kw) // sw + 1):
      view = np.s_[i * sh : i * sh + kh, j * sw : j * sw + kw]
      pixels = padded[(slice(None), *view)].reshape(x.shape[0], kh * kw, -1)
      yield i, j, pixels, rows[view].ravel(), columns[view].ravel()


@pytest.mark.parametrize(('shape', 'window', 'strides', 'padding'), CASES)
def test_max_pool_and_its_gradient_with_ties(shape, window, strides, padding):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 3, shape).astype(np.float32)  # three values: nearly every window has a tie
  pool = lambda x: max_pool(x, window, strides=strides, padding=padding)
  y, vjp = jax.vjp(jax.jit(pool), jnp.asarray(x))
  dy = rng.normal(size=y.shape).astype(np.float32)
  want, want_dx = np.empty(y.shape), np.zeros(shape)
  for i, j, pixels, rows, columns in windows(x, window, strides, padding, -np.inf):
    want[:, i, j] = pixels.max(1)
    first = pixels.argmax(1)  # NumPy's, too, is the first of equals
    for n in range(shape[0]):
      for c in range(shape[3]):
        want_dx[n, rows[first[n, c]], columns[first[n, c]], c] += dy[n, i, j, c]
  np.testing.assert_array_equal(y, want)
  np.testing.assert_allclose(vjp(jnp.asarray(dy))[0], want_dx, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('include', [True, False])
@pytest.mark.parametrize(('shape', 'window', 'strides', 'padding'), CASES)
def test_avg_pool_and_its_gradient(shape, window, strides, padding, include):
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape)
  pool = lambda x: avg_pool(x, window, strides=strides, padding=padding, count_include_pad=include)
  y, vjp = jax.vjp(jax.jit(pool), jnp.float32(x))
  dy = rng.normal(size=y.shape)
  want, want_dx = np.empty(y.shape), np.zeros(shape)
  for i, j, pixels, rows, columns in windows(x, window, strides, padding, 0):
    count = len(rows) if include else (rows >= 0).sum()
    want[:, i, j] = pixels.sum(1) / count
    for row, column in zip(rows, columns, strict=True):
      if row >= 0 and column >= 0:
        want_dx[:, row, column] += dy[:, i, j] / count
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(vjp(jnp.float32(dy))[0], want_dx, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('window', [2, 4])
def test_max_pool_lets_nan_through(window):
  for i in range(window * window):
    x = np.zeros((1, window, window, 1), np.float32)
    x.flat[i] = np.nan
    assert np.isnan(max_pool(jnp.asarray(x), window)).all()


def test_small_windows_have_no_select_and_scatter():
  x = jnp.ones((1, 8, 8, 1))
  for options in ({'window': 2}, {'window': 3, 'strides': 2, 'padding': 1}):
    grad = jax.grad(lambda x, o=options: max_pool(x, **o).sum())
    text = jax.jit(grad).lower(x).as_text()
    assert 'select_and_scatter' not in text


def ceil_starts(size, k, s, pad):
  """First pixels of the windows: on until one reaches the end, but none starts beyond the image."""
  start = -pad[0]
  while start < size:
    yield start
    if start + k >= size + pad[1]:
      break
    start += s


@pytest.mark.parametrize(
  ('shape', 'window', 'strides', 'padding'),
  [
    ((2, 7, 10, 3), 3, 2, 0),
    ((1, 8, 9, 2), 3, 2, 1),
    ((1, 2, 5, 2), 3, 2, 0),  # fits only because it is cut off
    ((1, 5, 5, 2), 2, 3, 1),  # the last would start in the padding
    ((1, 10, 3, 2), 2, 4, 0),
    ((1, 11, 4, 2), 4, 3, ((2, 1), (1, 3))),
    ((1, 6, 7, 2), (2, 3), (3, 2), (1, 1)),
  ],
)
def test_ceil_mode(shape, window, strides, padding):
  x = np.random.default_rng(0).normal(size=shape)
  pair = lambda v: (v, v) if isinstance(v, int) else v
  (kh, kw), (sh, sw) = pair(window), pair(strides)
  top, left = (pair(p) for p in pair(padding))
  rows = list(ceil_starts(shape[1], kh, sh, top))
  columns = list(ceil_starts(shape[2], kw, sw, left))
  want = {kind: np.empty((shape[0], len(rows), len(columns), shape[3])) for kind in (0, 1, 2)}
  for i, row in enumerate(rows):
    for j, column in enumerate(columns):
      pixels = x[:, max(row, 0) : row + kh, max(column, 0) : column + kw]
      high = min(row + kh, shape[1] + top[1]) - row
      wide = min(column + kw, shape[2] + left[1]) - column
      want[0][:, i, j] = pixels.max((1, 2))
      want[1][:, i, j] = pixels.mean((1, 2))
      want[2][:, i, j] = pixels.sum((1, 2)) / (high * wide)
  options = {'window': window, 'strides': strides, 'padding': padding, 'ceil_mode': True}
  x = jnp.float32(x)
  found = (
    max_pool(x, **options),
    avg_pool(x, **options, count_include_pad=False),
    avg_pool(x, **options),
  )
  for kind, ours in enumerate(found):
    np.testing.assert_allclose(ours, want[kind], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('shape', 'size', 'rows'),
  [
    # By hand: floor(7 i / 3) to ceil(7 (i + 1) / 3), and so on.
    ((2, 7, 4, 3), (3, 2), [(0, 3), (2, 5), (4, 7)]),
    ((1, 2, 3, 2), (5, 1), [(0, 1), (0, 1), (0, 2), (1, 2), (1, 2)]),
    ((1, 6, 6, 2), 3, [(0, 2), (2, 4), (4, 6)]),
    ((1, 4, 4, 1), 4, [(0, 1), (1, 2), (2, 3), (3, 4)]),
  ],
)
def test_adaptive_avg_pool(shape, size, rows):
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  high, wide = (size, size) if isinstance(size, int) else size
  tall = adaptive_avg_pool(jnp.asarray(x), (high, 1))
  for i, (first, last) in enumerate(rows):
    np.testing.assert_allclose(tall[:, i, 0], x[:, first:last].mean((1, 2)), rtol=1e-5, atol=1e-6)
  y = adaptive_avg_pool(jnp.asarray(x), size)
  assert y.shape == (shape[0], high, wide, shape[3])
  in_turn = adaptive_avg_pool(adaptive_avg_pool(jnp.asarray(x), (shape[1], wide)), (high, wide))
  np.testing.assert_allclose(y, in_turn, rtol=1e-5, atol=1e-6)
  turned = adaptive_avg_pool(jnp.asarray(x.swapaxes(1, 2)), (wide, high))
  np.testing.assert_allclose(turned, y.swapaxes(1, 2), rtol=1e-5, atol=1e-6)


def test_gem_pool():
  x = jnp.asarray([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
  np.testing.assert_allclose(gem_pool(x), [[25 ** (1 / 3)]], rtol=1e-6)  # (1 + 8 + 27 + 64) / 4
  np.testing.assert_allclose(gem_pool(x, p=1.0), [[2.5]], rtol=1e-6)
  np.testing.assert_allclose(gem_pool(x, p=500.0), [[4.0]], rtol=0.01)
  np.testing.assert_allclose(gem_pool(1e20 * x), [[1e20 * 25 ** (1 / 3)]], rtol=1e-6)
  np.testing.assert_allclose(gem_pool(-x), [[1e-6]], rtol=1e-5)
  both = gem_pool(jnp.concatenate([x, x], -1), p=jnp.asarray([1.0, 3.0]), keepdims=True)
  np.testing.assert_allclose(both, [[[[2.5, 25 ** (1 / 3)]]]], rtol=1e-6)


def test_gem_learns_its_exponent():
  x = np.random.default_rng(0).uniform(0.1, 2, (2, 3, 5, 4))
  layer = GeM()
  variables = layer.init(jax.random.key(0), jnp.float32(x))
  assert jax.tree.map(jnp.shape, variables) == {'params': {'p': (1,)}}
  total = lambda p, x: ((x**p).mean((1, 2)) ** (1 / p)).sum()
  run = lambda variables, x: layer.apply(variables, x).sum()
  grad, dx = jax.grad(run, argnums=(0, 1))(variables, jnp.float32(x))
  slope = (total(3 + 1e-5, x) - total(3 - 1e-5, x)) / 2e-5
  np.testing.assert_allclose(grad['params']['p'], [slope], rtol=1e-4)
  mean = (x**3).mean((1, 2), keepdims=True)
  np.testing.assert_allclose(dx, mean ** (1 / 3 - 1) * x**2 / 15, rtol=1e-4)


def test_bfloat16_keeps_its_type_and_averages_in_float32():
  x = jnp.full((1, 64, 64, 1), 1.0, jnp.bfloat16)
  for y in (
    avg_pool(x, 64),
    avg_pool(x, 64, strides=1),
    global_avg_pool(x),
    max_pool(x, 2),
    adaptive_avg_pool(x, 7),
    gem_pool(x),
  ):
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y, np.float32), 1.0)


def test_global_avg_pool():
  x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
  np.testing.assert_allclose(global_avg_pool(jnp.asarray(x)), x.mean((1, 2)), rtol=1e-5, atol=1e-6)
  assert global_avg_pool(jnp.asarray(x), keepdims=True).shape == (2, 1, 1, 4)


def test_errors_name_the_sizes():
  with pytest.raises(UserError, match=r'5x5 .* 3x4'):
    max_pool(jnp.ones((1, 3, 4, 1)), 5)
  with pytest.raises(UserError, match='smaller than the window'):
    avg_pool(jnp.ones((1, 8, 8, 1)), 2, padding=2)
  with pytest.raises(UserError, match=r'\(8, 8, 1\)'):
    avg_pool(jnp.ones((8, 8, 1)), 2)
  with pytest.raises(UserError, match=r'3x3 .* 1x8'):
    max_pool(jnp.ones((1, 1, 8, 1)), 3, strides=2, ceil_mode=True)
  with pytest.raises(UserError, match=r'\(8, 8, 1\)'):
    adaptive_avg_pool(jnp.ones((8, 8, 1)), 2)
  with pytest.raises(UserError, match='8x8 to 0x2'):
    adaptive_avg_pool(jnp.ones((1, 8, 8, 1)), (0, 2))


@pytest.mark.parametrize(
  ('shape', 'window', 'strides', 'mode'),
  [
    ((2, 6, 7, 3), 3, 2, 'reflect'),
    ((1, 5, 4, 2), 3, (1, 3), 'constant'),
    ((1, 3, 9, 1), 5, 2, 'reflect'),
    ((1, 4, 4, 2), 4, 2, 'edge'),
    ((1, 2, 2, 1), 1, 2, 'reflect'),
  ],
)
def test_blur_pool(shape, window, strides, mode):
  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  row = np.array({1: [1], 3: [1, 2, 1], 4: [1, 3, 3, 1], 5: [1, 4, 6, 4, 1]}[window])
  kernel = np.outer(row, row) / row.sum() ** 2
  pad = ((window - 1) // 2, window // 2)
  padded = np.pad(x.astype(np.float64), ((0, 0), pad, pad, (0, 0)), mode)
  dense = np.lib.stride_tricks.sliding_window_view(padded, (window, window), (1, 2))
  sh, sw = (strides, strides) if isinstance(strides, int) else strides
  want = np.einsum('nhwcij,ij->nhwc', dense, kernel)[:, ::sh, ::sw]
  y = blur_pool(jnp.asarray(x), window=window, strides=strides, mode=mode)
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)


def test_blur_pool_keeps_constants_and_types_and_refuses_what_it_cannot_reflect():
  y = blur_pool(jnp.full((1, 5, 5, 2), 3.0, jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.asarray(y, np.float32), 3.0)
  with pytest.raises(UserError, match=r'3x3 .* 1x9'):
    blur_pool(jnp.ones((1, 1, 9, 1)))
  with pytest.raises(UserError, match=r'\(8, 8, 1\)'):
    blur_pool(jnp.ones((8, 8, 1)))
