"""Compared with the plain definition in float64, derivatives of both orders included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnnjax import ops


def plain(x, scale, bias):
  axes = tuple(range(x.ndim - 1))
  lift = lambda v: v.reshape((1,) * (x.ndim - 1) + v.shape)
  mean = x.mean(axes)
  var = jnp.square(x - lift(mean)).mean(axes)
  y = (x - lift(mean)) / lift(jnp.sqrt(var + 1e-5)) * lift(scale) + lift(bias)
  return y, mean, var


def ours(x, scale, bias):
  return ops.batch_norm(x, scale, bias, epsilon=1e-5)[:3]


def loss(fn, factors):
  def apply(*args):
    y, mean, var = fn(*args)
    return (jnp.sin(y) * factors).sum() + (mean * var).sum()

  return apply


@pytest.mark.parametrize('choice', ['auto', 'xla'])
@pytest.mark.parametrize(
  'shape', [(8, 7, 5, 24), (3, 2), (2, 3, 3, 1), (1, 40, 40, 3), (2, 9, 9, 1030), (2, 1, 1, 4)]
)
def test_derivatives(choice, shape):
  rng = np.random.default_rng(0)
  args = [3 * rng.standard_normal(shape) + 5, *rng.standard_normal((2, shape[-1]))]
  other = [rng.standard_normal(np.shape(a)) for a in args]
  factors = rng.standard_normal(shape)

  def everything(fn, args, other, factors):
    f = loss(fn, factors)
    gradient = jax.grad(f, (0, 1, 2))
    return (
      fn(*args),
      gradient(*args),
      jax.jvp(f, args, other)[1],
      jax.jvp(gradient, args, other)[1],
      jax.grad(lambda *args: sum((g**2).sum() for g in gradient(*args)), (0, 1, 2))(*args),
    )

  with jax.enable_x64(True):
    exact = jax.jit(lambda *a: everything(plain, *a))(tuple(args), tuple(other), factors)
  single = lambda arrays: tuple(np.asarray(a, np.float32) for a in arrays)
  with ops.using(choice):
    result = jax.jit(lambda *a: everything(ours, *a))(
      single(args), single(other), factors.astype(np.float32)
    )
  for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(exact), strict=True):
    b = np.asarray(b)
    assert np.abs(a - b).max() <= 2e-5 * np.abs(b).max() + 1e-6


def test_values_far_from_zero_keep_their_variance():
  rng = np.random.default_rng(0)
  x = (1e4 + rng.standard_normal((64, 16, 16, 8))).astype(np.float32)
  _, mean, var = ours(x, np.ones(8, np.float32), np.zeros(8, np.float32))
  # E[x²] - E[x]² in float32 would be off by about 10 here, where the variance is 1.
  np.testing.assert_allclose(mean, x.mean((0, 1, 2), np.float64), rtol=1e-5)
  np.testing.assert_allclose(var, x.var((0, 1, 2), np.float64), rtol=1e-2)


@pytest.mark.skipif(jax.device_count() < 2, reason='needs two devices')
@pytest.mark.parametrize('choice', ['auto', 'xla'])
def test_two_devices_share_a_batch(choice):
  rng = np.random.default_rng(0)
  x = (
    rng.standard_normal((2, 4, 3, 3, 5)).astype(np.float32)
    + np.arange(2)[:, None, None, None, None]
  )
  x = x.astype(np.float32)
  scale, bias = rng.standard_normal((2, 5)).astype(np.float32)
  factors = rng.standard_normal(x.shape).astype(np.float32)

  def member(x, factors):
    def f(x):
      y, mean, var, _ = ops.batch_norm(x, scale, bias, epsilon=1e-5, axis_name='i')
      return (y * factors).sum(), (y, mean, var)

    gradient, out = jax.grad(f, has_aux=True)(x)
    return gradient, *out

  with ops.using(choice):
    gradient, y, mean, var = jax.pmap(member, axis_name='i', devices=jax.devices()[:2])(x, factors)
  whole, together = x.reshape(8, 3, 3, 5), factors.reshape(8, 3, 3, 5)
  exact = plain(whole, scale, bias)
  exact_gradient = jax.grad(lambda x: (plain(x, scale, bias)[0] * together).sum())(whole)
  np.testing.assert_allclose(y.reshape(whole.shape), exact[0], atol=2e-5)
  np.testing.assert_allclose(mean[0], exact[1], atol=1e-6)
  np.testing.assert_allclose(var[1], exact[2], rtol=1e-5)
  np.testing.assert_allclose(gradient.reshape(whole.shape), exact_gradient, atol=2e-5)


def test_vmap():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, 4, 5, 5, 2)).astype(np.float32)
  ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
  mapped = jax.vmap(jax.grad(lambda x: jnp.sin(ours(x, ones, zeros)[0]).sum()))(x)
  one = lax.map(jax.grad(lambda x: jnp.sin(plain(x, ones, zeros)[0]).sum()), x)
  np.testing.assert_allclose(mapped, one, atol=1e-5)
