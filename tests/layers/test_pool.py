"""Pooling against NumPy loops; ties, NaN, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.errors import UserError
from cnnjax.layers.pool import avg_pool, global_avg_pool, max_pool

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


def test_bfloat16_keeps_its_type_and_averages_in_float32():
  x = jnp.full((1, 64, 64, 1), 1.0, jnp.bfloat16)
  for y in (avg_pool(x, 64), avg_pool(x, 64, strides=1), global_avg_pool(x), max_pool(x, 2)):
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
