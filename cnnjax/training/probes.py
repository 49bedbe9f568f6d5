"""What a network has learnt, read off its features by classifiers that leave it as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

_BLOCK = 1024  # test examples compared at once with all training examples


def knn(
  train: Array,
  labels: Array,
  test: Array,
  *,
  num_classes: int,
  neighbours: int = 20,
  temperature: float = 0.07,
) -> np.ndarray:
  """Classes by the weighted vote of the nearest training examples.

  Wu et al. 2018, arXiv:1805.01978, section 3.4: neighbours by cosine similarity s vote with
  weight exp(s / temperature).

  Args:
    train: features `[N, D]`.
    labels: integer `[N]`.
    test: features `[M, D]`.
    num_classes: C.
    neighbours: how many vote; all, if there are fewer.
    temperature: of the weights.

  Returns:
    integer `[M]`.
  """
  keys, votes = _unit(train), jax.nn.one_hot(labels, num_classes)
  nearest = min(neighbours, len(keys))

  @jax.jit
  def classify(queries: Array) -> Array:
    similarity, index = jax.lax.top_k(_unit(queries) @ keys.T, nearest)  # [M, k]
    # Relative to the nearest: the same vote, and no overflow at a low temperature.
    weights = jnp.exp((similarity - similarity[:, :1]) / temperature)
    return jnp.einsum('mk,mkc->mc', weights, votes[index]).argmax(axis=-1)

  blocks = [classify(test[start : start + _BLOCK]) for start in range(0, len(test), _BLOCK)]
  return np.concatenate([np.asarray(block) for block in blocks])


def linear(
  train: Array,
  labels: Array,
  test: Array,
  *,
  num_classes: int,
  l2: float = 1e-4,
  iterations: int = 200,
) -> np.ndarray:
  """Classes by logistic regression (Alain & Bengio 2016, arXiv:1610.01644).

  Features are standardised on the training set. The cost, mean cross-entropy and `l2` / 2 times
  the squared weights without biases, is convex and goes to its minimum by L-BFGS, from zero.

  Args:
    train: features `[N, D]`.
    labels: integer `[N]`.
    test: features `[M, D]`.
    num_classes: C.
    l2: strength of the penalty.
    iterations: most of L-BFGS; it ends where the gradient's norm is below 1e-5.

  Returns:
    integer `[M]`.
  """
  mean, std = jnp.mean(train, 0, keepdims=True), jnp.std(train, 0, keepdims=True)
  standard = lambda x: (x - mean) / jnp.where(std > 0, std, 1.0)
  weights = _regress(standard(train), labels, num_classes, l2, iterations)
  return np.asarray(_logits(weights, standard(test)).argmax(axis=-1))


@functools.partial(jax.jit, static_argnums=(2, 4))
def _regress(x: Array, labels: Array, num_classes: int, l2: float, iterations: int):
  def cost(weights):
    losses = optax.softmax_cross_entropy_with_integer_labels(_logits(weights, x), labels)
    return losses.mean() + l2 / 2 * (weights['kernel'] ** 2).sum()

  optimizer = optax.lbfgs()
  value_and_gradient = optax.value_and_grad_from_state(cost)
  start = {
    'kernel': jnp.zeros((x.shape[1], num_classes), x.dtype),
    'bias': jnp.zeros((1, num_classes), x.dtype),
  }

  def unfinished(carry):
    iteration, _, state = carry
    steep = optax.tree.norm(optax.tree.get(state, 'grad')) >= 1e-5
    return (iteration == 0) | ((iteration < iterations) & steep)

  def improve(carry):
    iteration, weights, state = carry
    value, gradient = value_and_gradient(weights, state=state)
    updates, state = optimizer.update(
      gradient, state, weights, value=value, grad=gradient, value_fn=cost
    )
    return iteration + 1, optax.apply_updates(weights, updates), state

  return jax.lax.while_loop(unfinished, improve, (0, start, optimizer.init(start)))[1]


def _logits(weights, x: Array) -> Array:
  return x @ weights['kernel'] + weights['bias']


def _unit(x: Array) -> Array:
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


PROBES = {'knn': knn, 'linear': linear}
