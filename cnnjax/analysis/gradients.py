"""Gradients of single examples: how much they differ, and what a step on one does to another."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.errors import UserError

Params = Any


class Noise(NamedTuple):
  """How single examples' gradients spread around the true one, G.

  McCandlish et al. 2018, "An empirical model of large-batch training", section 2.2,
  https://arxiv.org/abs/1812.06162.

  Attributes:
    trace: tr(Sigma), the sum of the variances of all the gradient's components.
    squared_norm: |G|^2.
    scale: B_simple = tr(Sigma) / |G|^2: the batch at which the noise of its mean gradient is as
      long as G (equation 2.9).
  """

  trace: float
  squared_norm: float
  scale: float


def per_example(loss: Callable[[Params, Any], jax.Array], params: Params, examples: Any) -> Params:
  """The gradient of every example.

  Args:
    loss: a scalar of the parameters and one example.
    params: the parameters.
    examples: a tree of arrays `[N, ...]`.

  Returns:
    A tree like the parameters, of arrays `[N, ...]`.
  """
  return jax.vmap(jax.grad(loss), (None, 0))(params, examples)


def noise_scale(gradients: Params) -> Noise:
  """The noise scale of a set of examples, taken for all there are.

  Args:
    gradients: of every example; a tree of arrays `[N, ...]`.
  """
  rows = _rows(gradients)
  mean = rows.mean(0)
  return _noise(np.square(rows - mean).sum(1).mean(), np.square(mean).sum())


def estimated_noise_scale(
  small: np.ndarray | jax.Array | float,
  large: np.ndarray | jax.Array | float,
  *,
  batch_sizes: tuple[int, int],
) -> Noise:
  """The noise scale from the gradients of batches of two sizes, as training has them anyway.

  tr(Sigma) and |G|^2 are unbiased for independent draws (McCandlish et al. 2018, appendix A.1,
  equation A.2) and may come out negative; their ratio isn't unbiased, so average many.

  Args:
    small: |G|^2 of small batches' mean gradients, one or many, e.g. of each device.
    large: that of large ones, e.g. of all devices' mean.
    batch_sizes: examples in a small and in a large batch.

  Raises:
    UserError: sizes that don't differ.
  """
  few, many = batch_sizes
  if not 0 < few < many:
    raise UserError(f'batch_sizes={batch_sizes} must be two sizes, the smaller first')
  a, b = (float(np.mean(x, dtype=np.float64)) for x in (small, large))
  return _noise((a - b) / (1 / few - 1 / many), (many * b - few * a) / (many - few))


def _noise(trace: float, squared_norm: float) -> Noise:
  with np.errstate(divide='ignore', invalid='ignore'):
    scale = np.float64(trace) / np.float64(squared_norm)
  return Noise(float(trace), float(squared_norm), float(scale))


def _rows(gradients: Params) -> np.ndarray:
  """float64 [N, P]"""
  leaves = jax.tree.leaves(gradients)
  return np.concatenate([np.asarray(x, np.float64).reshape(len(x), -1) for x in leaves], 1)


def tangent_kernel(
  predict: Callable[[Params, jax.Array], jax.Array],
  params: Params,
  images: jax.Array | np.ndarray,
  others: jax.Array | np.ndarray | None = None,
  *,
  by_output: bool = False,
  batch_size: int = 32,
) -> np.ndarray:
  """The empirical neural tangent kernel: products of the outputs' gradients by the parameters.

  K(x, y) = J(x) J(y)^T: how far a small step of gradient descent on y moves the outputs at x (Jacot
  et al. 2018, https://arxiv.org/abs/1806.07572). The Jacobians of two batches are held at a time,
  `batch_size * C` times the parameters each.

  Args:
    predict: `(params, images [n, ...]) -> [n, C]`, each row of its image alone.
    params: the parameters.
    images: `[N, ...]`.
    others: y, `[M, ...]`; `images` again if None.
    by_output: the kernel of every pair of outputs; else the mean of each output with itself, to
      which that of a network tends with its width.
    batch_size: images at a time.

  Returns:
    `[N, M]`, or `[N, M, C, C]`: float32, of parameters in float32.
  """

  @jax.jit
  def jacobian(params: Params, rows: jax.Array) -> jax.Array:
    single = jax.jacrev(lambda params, x: predict(params, x[None])[0])
    leaves = jax.tree.leaves(jax.vmap(single, (None, 0))(params, rows))
    return jnp.concatenate([x.reshape(*x.shape[:2], -1) for x in leaves], -1)  # (n, C, P)

  @jax.jit
  def contract(a: jax.Array, b: jax.Array) -> jax.Array:
    if by_output:
      return jnp.einsum('ncp,mdp->nmcd', a, b, precision='highest')
    return jnp.einsum('ncp,mcp->nm', a, b, precision='highest') / a.shape[1]

  def batches(x: jax.Array | np.ndarray) -> list[jax.Array | np.ndarray]:
    return [x[i : i + batch_size] for i in range(0, len(x), batch_size)]

  rows = []
  for a in batches(images):
    left = jacobian(params, a)
    right = batches(images if others is None else others)
    rows.append(np.concatenate([contract(left, jacobian(params, b)) for b in right], 1))
  return np.concatenate(rows)
