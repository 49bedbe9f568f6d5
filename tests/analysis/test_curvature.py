"""Products against dense matrices, eigenvalues against NumPy's, the trace against every sign."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from cnnjax.analysis import curvature
from cnnjax.errors import UserError


def network():
  """A tanh network of 24 parameters on five examples: parameters, outputs, loss of outputs."""
  rng = np.random.default_rng(0)
  shapes = {'w1': (3, 4), 'b1': (4,), 'w2': (4, 2)}
  params = {name: np.float32(rng.standard_normal(shape)) for name, shape in shapes.items()}
  x, labels = np.float32(rng.standard_normal((5, 3))), rng.integers(0, 2, 5)

  def predict(params):
    return jnp.tanh(x @ params['w1'] + params['b1'].reshape(1, -1)) @ params['w2']

  def loss(logits):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

  return params, predict, loss


def dense(product, params):
  """The matrix of a product, column by column."""
  flat, unravel = ravel_pytree(params)
  column = lambda v: ravel_pytree(product(params, unravel(v)))[0]
  return np.asarray(jax.jit(jax.vmap(column))(jnp.eye(flat.size))).T


def of(matrix):
  """The product with a given matrix."""
  return lambda params, vector: {'x': jnp.asarray(matrix, jnp.float32) @ vector['x']}


def test_hessian():
  params, predict, loss = network()
  flat, unravel = ravel_pytree(params)
  expected = jax.jit(jax.hessian(lambda x: loss(predict(unravel(x)))))(flat)
  found = dense(curvature.hessian(lambda p: loss(predict(p))), params)
  assert np.abs(expected).max() > 0.01
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gauss_newton():
  params, predict, loss = network()
  flat, unravel = ravel_pytree(params)
  outputs = jax.jit(predict)(params)
  jacobian = np.reshape(jax.jit(jax.jacobian(lambda x: predict(unravel(x))))(flat), (-1, flat.size))
  of_loss = np.reshape(jax.jit(jax.hessian(loss))(outputs), (outputs.size, outputs.size))
  found = dense(curvature.gauss_newton(predict, loss), params)
  np.testing.assert_allclose(found, jacobian.T @ of_loss @ jacobian, atol=1e-6)
  linear, x = {'w': np.ones((3, 2), np.float32)}, np.float32(np.eye(5)[:, :3])
  whole = dense(curvature.hessian(lambda p: loss(x @ p['w'])), linear)
  np.testing.assert_allclose(
    dense(curvature.gauss_newton(lambda p: x @ p['w'], loss), linear), whole, atol=1e-6
  )


def test_eigenvalues():
  params, predict, loss = network()
  product = curvature.hessian(lambda p: loss(predict(p)))
  matrix = dense(product, params)
  expected = np.linalg.eigh(np.float64(matrix + matrix.T) / 2)[0][::-1]
  every = curvature.eigenvalues(jax.random.key(2), product, params, count=24, steps=100)
  np.testing.assert_allclose(every.values, expected, atol=3e-6 * expected[0])
  assert expected[-1] < -0.01  # negative ones are found as well
  few = curvature.eigenvalues(jax.random.key(3), product, params, count=3, steps=9)
  for value, residual, vector in zip(few.values, few.residuals, few.vectors, strict=True):
    x = np.float64(ravel_pytree(vector)[0])
    assert np.linalg.norm(x) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(matrix @ x - value * x) == pytest.approx(residual, abs=1e-5)
    assert np.abs(expected - value).min() <= residual + 1e-5
  assert few.residuals[0] < 0.01 * few.values[0]


@pytest.mark.parametrize('diagonal', [(5, 5, 5, 1, 0, 0, -2), (0,) * 7, (3,) * 7])
def test_eigenvalues_that_are_the_same(diagonal):
  start = {'x': jnp.ones(7)}
  found = curvature.eigenvalues(jax.random.key(0), of(np.diag(diagonal)), start, count=7)
  np.testing.assert_allclose(found.values, diagonal, atol=2e-5)
  kept = np.stack([v['x'] for v in found.vectors])
  np.testing.assert_allclose(kept @ kept.T, np.eye(7), atol=1e-5)


def test_every_sign_gives_the_trace():
  matrix = np.random.default_rng(0).standard_normal((6, 6))
  matrix = np.float32(matrix + matrix.T)
  signs = np.float32(list(itertools.product((-1, 1), repeat=6)))
  forms = curvature.quadratic_forms(of(matrix), {'x': jnp.ones(6)}, signs)
  assert forms.shape == (64,)
  assert forms.mean() == pytest.approx(np.trace(matrix), rel=1e-5)
  # The variance of one sample is what Hutchinson says, and the standard error that of their mean.
  variance = 2 * (np.square(matrix).sum() - np.square(np.diag(matrix)).sum())
  assert forms.var() == pytest.approx(variance, rel=1e-5)
  found = curvature.trace(jax.random.key(0), of(matrix), {'x': jnp.ones(6)}, samples=400)
  assert found.standard_error == pytest.approx(np.sqrt(variance / 400), rel=0.2)
  assert abs(found.mean - np.trace(matrix)) < 3 * found.standard_error


def test_a_diagonal_trace_is_exact():
  found = curvature.trace(jax.random.key(0), of(np.diag([1, 2, 4])), {'x': jnp.ones(3)}, samples=2)
  assert found == (7, 0)


def test_refused():
  start, key = {'x': jnp.ones(3)}, jax.random.key(0)
  for count, steps in ((0, 3), (4, 5), (3, 2)):
    with pytest.raises(UserError, match=f'count={count} must be from 1 to {min(steps, 3)}'):
      curvature.eigenvalues(key, of(np.eye(3)), start, count=count, steps=steps)
  with pytest.raises(UserError, match='samples=1 must be at least 2'):
    curvature.trace(key, of(np.eye(3)), start, samples=1)
