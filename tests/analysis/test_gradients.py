"""Gradients and kernels against explicit Jacobians; noise against formula and every batch."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.analysis import gradients
from cnnjax.errors import UserError


class Small(nn.Module):
  @nn.compact
  def __call__(self, images, train=False):
    x = nn.tanh(nn.Conv(2, (2, 2), padding='VALID')(images))
    return nn.Dense(3)(x.reshape(len(x), -1))


MODEL = Small()
IMAGES = np.float32(np.random.default_rng(0).standard_normal((5, 3, 3, 1)))
VARIABLES = jax.jit(MODEL.init)(jax.random.key(0), IMAGES)


def jacobian(images):
  """[N, C, P], of all images at once."""
  whole = jax.jit(jax.jacfwd(lambda v: MODEL.apply(v, images)))
  leaves = jax.tree.leaves(whole(VARIABLES))
  return np.concatenate([np.reshape(x, (len(images), 3, -1)) for x in leaves], -1)


def test_per_example():
  labels = np.arange(5) % 3

  def loss(variables, example):
    logits = MODEL.apply(variables, example[0][None])[0]
    return -jax.nn.log_softmax(logits)[example[1]]

  found = jax.jit(lambda v: gradients.per_example(loss, v, (IMAGES, labels)))(VARIABLES)
  chain = jax.nn.softmax(MODEL.apply(VARIABLES, IMAGES)) - np.eye(3)[labels]
  expected = np.einsum('nc,ncp->np', chain, jacobian(IMAGES))
  rows = [np.reshape(x, (5, -1)) for x in jax.tree.leaves(found)]
  np.testing.assert_allclose(np.concatenate(rows, 1), expected, atol=1e-6)


def test_noise_scale_by_hand():
  # Mean (2, 1); distances squared 1 + 1, 1 + 1, 0, 0.
  rows = {'a': jnp.array([[1.0], [3], [2], [2]]), 'b': jnp.array([0.0, 2, 1, 1])}
  assert gradients.noise_scale(rows) == (1, 5, pytest.approx(1 / 5))
  still = gradients.noise_scale({'a': jnp.zeros((3, 2))})
  assert still[:2] == (0, 0)
  assert np.isnan(still.scale)


def test_noise_scale_of_random_gradients():
  rows = np.random.default_rng(1).standard_normal((7, 4)) + 1
  found = gradients.noise_scale({'a': rows[:, :1], 'b': rows[:, 1:].reshape(7, 3, 1)})
  trace, norm = np.trace(np.cov(rows.T, bias=True)), np.linalg.norm(rows.mean(0)) ** 2
  np.testing.assert_allclose(found, (trace, norm, trace / norm), rtol=1e-6)


def test_two_batches_are_unbiased():
  """The mean over every batch there is, drawn with replacement, is the exact figure."""
  rows = np.random.default_rng(2).standard_normal((3, 4))
  norms = [
    [np.square(np.mean(batch, 0)).sum() for batch in itertools.product(rows, repeat=size)]
    for size in (2, 5)
  ]
  found = gradients.estimated_noise_scale(*norms, batch_sizes=(2, 5))
  np.testing.assert_allclose(found, gradients.noise_scale({'a': rows}), rtol=1e-9)
  with pytest.raises(UserError, match='the smaller first'):
    gradients.estimated_noise_scale(1.0, 2.0, batch_sizes=(4, 4))


def test_kernel_of_a_linear_model():
  x, y = IMAGES.reshape(5, 9), IMAGES[:3].reshape(3, 9) + 1
  params = {'w': jnp.ones((9, 2)), 'b': jnp.zeros(2)}
  predict = lambda p, x: x @ p['w'] + p['b'].reshape(1, -1)
  expected = x @ y.T + 1
  found = gradients.tangent_kernel(predict, params, x, y, batch_size=2)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  whole = gradients.tangent_kernel(predict, params, x, y, by_output=True)
  expected = expected[..., None, None] * np.eye(2).reshape(1, 1, 2, 2)
  np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5)


def test_kernel_is_the_product_of_jacobians():
  rows = jacobian(IMAGES)
  expected = np.einsum('ncp,mdp->nmcd', rows, rows)
  whole = gradients.tangent_kernel(MODEL.apply, VARIABLES, IMAGES, by_output=True, batch_size=3)
  np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-5)
  found = gradients.tangent_kernel(MODEL.apply, VARIABLES, IMAGES, batch_size=8)
  np.testing.assert_allclose(found, np.einsum('nmcc->nm', expected) / 3, rtol=1e-4, atol=1e-5)


def test_kernel_foretells_a_step():
  """What a short step on the squared error of two images does to the others."""
  seen, target = IMAGES[:2], np.ones((2, 3), np.float32)
  predict = jax.jit(lambda v: MODEL.apply(v, IMAGES))
  error = predict(VARIABLES)[:2] - target
  cost = lambda v: jnp.square(predict(v)[:2] - target).sum() / 2
  gradient = jax.jit(jax.grad(cost))(VARIABLES)
  moved = predict(jax.tree.map(lambda x, g: x - 1e-3 * g, VARIABLES, gradient))
  kernel = gradients.tangent_kernel(MODEL.apply, VARIABLES, IMAGES, seen, by_output=True)
  change = np.asarray(moved - predict(VARIABLES)) / 1e-3
  expected = -np.einsum('nmcd,md->nc', kernel, error)
  np.testing.assert_allclose(change, expected, atol=0.02 * np.abs(expected).max())
