import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnnjax import ops

POOLS = [
  ((2, 2), (2, 2), ((0, 0), (0, 0))),
  ((3, 3), (2, 2), ((1, 1), (1, 1))),
  ((3, 2), (1, 2), ((0, 2), (1, 0))),
  ((5, 5), (1, 1), ((2, 2), (2, 2))),
  ((2, 2), (3, 3), ((0, 0), (0, 0))),
]


def images(shape=(3, 9, 8, 5), ties=False):
  x = np.random.default_rng(0).standard_normal(shape)
  return np.round(x) if ties else x


def plain(x, window, strides, pads):
  dims = ((1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0)))
  return lax.reduce_window(x, -jnp.inf, lax.max, *dims)


def everything(fn, x):
  loss = lambda x: jnp.sin(fn(x)).sum()
  return (
    fn(x),
    jax.grad(loss)(x),
    jax.jvp(fn, (x,), (jnp.cos(x),))[1],
    jax.jvp(jax.grad(loss), (x,), (jnp.cos(x),))[1],
    jax.vmap(jax.grad(loss))(jnp.stack([x, -x])),
    jax.vmap(lambda t: jax.vjp(fn, x)[1](t)[0])(jnp.stack([fn(x), jnp.cos(fn(x))])),
  )


@pytest.mark.parametrize('choice', ['auto', 'xla'])
@pytest.mark.parametrize('pool', POOLS)
def test_derivatives(pool, choice):
  x = images()
  with jax.enable_x64(True):
    exact = jax.jit(lambda x: everything(lambda x: plain(x, *pool), x))(x)
  with ops.using(choice):
    ours = jax.jit(lambda x: everything(lambda x: ops.max_pool(x, *pool), x))(x.astype(np.float32))
  for a, b in zip(ours, exact, strict=True):
    b = np.asarray(b)
    np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())


@pytest.mark.parametrize('choice', ['auto', 'xla'])
def test_the_first_maximum_takes_the_gradient(choice):
  x, (window, strides, pads) = images(ties=True).astype(np.float32), POOLS[1]
  with ops.using(choice):
    gradient = jax.grad(lambda x: ops.max_pool(x, window, strides, pads).sum())(x)
  expected = np.zeros_like(x)
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  for n, i, j, c in np.ndindex(3, 5, 4, 5):
    part = padded[n, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
    k, m = np.unravel_index(part.argmax(), part.shape)
    expected[n, 2 * i + k - 1, 2 * j + m - 1, c] += 1
  np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize('choice', ['auto', 'xla'])
@pytest.mark.parametrize('place', [(0, 0), (1, 1), (2, 2)])
def test_nan_comes_through(choice, place):
  x = np.ones((1, 4, 4, 2), np.float32)
  x[0, *place, 0] = np.nan
  with ops.using(choice):
    y = np.asarray(ops.max_pool(x, (2, 2), (2, 2), ((0, 0), (0, 0))))
  assert np.isnan(y).sum() == 1
  assert np.isnan(y[0, place[0] // 2, place[1] // 2, 0])
