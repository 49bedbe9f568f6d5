"""How the cost bends: the Hessian and its Gauss-Newton part, known by their products with vectors.

A product is `f(params, vector) -> vector`, the vector a tree like the parameters, with a symmetric
matrix that is never written down.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from cnnjax.errors import UserError

Params = Any
Product = Callable[[Params, Params], Params]


class Spectrum(NamedTuple):
  """The largest eigenvalues of a product's matrix A.

  Attributes:
    values: float64 `[count]`, largest first.
    residuals: float64 `[count]`, norms |A x - value x|, rounding aside: an eigenvalue of A lies so
      near each value.
    vectors: the unit vectors x, trees like the parameters.
  """

  values: np.ndarray
  residuals: np.ndarray
  vectors: tuple[Params, ...]


class Estimate(NamedTuple):
  """A mean over random draws, and the standard error of it."""

  mean: float
  standard_error: float


def hessian(loss: Callable[[Params], jax.Array]) -> Product:
  """Products with the Hessian, at the cost of about two gradients each.

  The gradient differentiated along the vector, forward over reverse (Pearlmutter 1994, "Fast exact
  multiplication by the Hessian").

  Args:
    loss: a scalar of the parameters.
  """

  def product(params: Params, vector: Params) -> Params:
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]

  return product


def gauss_newton(
  predict: Callable[[Params], jax.Array], loss: Callable[[jax.Array], jax.Array]
) -> Product:
  """Products with J^T H J of the cost `loss(predict(params))`.

  J is the network's Jacobian, H the Hessian of the loss by the outputs (Schraudolph 2002, "Fast
  curvature matrix-vector products", section 3). It is positive semi-definite where the loss is
  convex, and the whole Hessian where the network is linear.

  Args:
    predict: outputs of any shape, of the parameters.
    loss: a scalar of the outputs.
  """

  def product(params: Params, vector: Params) -> Params:
    outputs, pull = jax.vjp(predict, params)
    _, moved = jax.jvp(predict, (params,), (vector,))
    return pull(jax.jvp(jax.grad(loss), (outputs,), (moved,))[1])[0]

  return product


def eigenvalues(
  key: jax.Array, product: Product, params: Params, *, count: int = 1, steps: int = 30
) -> Spectrum:
  """The largest eigenvalues, by Lanczos's method with full reorthogonalisation.

  Golub & Van Loan 2013, *Matrix Computations*, section 10.3. For the smallest ones, give a product
  of the opposite sign.

  Args:
    key: of the first vector.
    product: with a symmetric matrix of n rows.
    params: the parameters, n numbers.
    count: how many eigenvalues.
    steps: products to take; with n of them all eigenvalues are there, to rounding. So many vectors
      like the parameters are kept.

  Raises:
    UserError: more eigenvalues than steps or parameters.
  """
  flat, unravel = ravel_pytree(params)
  steps = min(steps, flat.size)
  if not 1 <= count <= steps:
    raise UserError(f'count={count} must be from 1 to {steps}, the number of steps or parameters')
  apply, keys = jax.jit(product), jax.random.split(key, steps)
  basis, matrix = jnp.zeros((steps, flat.size), flat.dtype), np.zeros((steps, steps))
  vector, beta = _rest(basis, jax.random.normal(keys[0], flat.shape, flat.dtype))
  for i in range(steps):
    basis = basis.at[i].set(vector)
    image = ravel_pytree(apply(params, unravel(vector)))[0]
    matrix[i, i] = jnp.vdot(vector, image)
    vector, beta = _rest(basis, image)
    if i + 1 < steps:
      if beta <= 10 * jnp.finfo(flat.dtype).eps * np.abs(matrix).max():
        # All that A makes of these vectors lies among them: go on outside.
        vector, beta = _rest(basis, jax.random.normal(keys[i + 1], flat.shape, flat.dtype))
        beta = 0.0
      matrix[i, i + 1] = matrix[i + 1, i] = beta
  values, mixtures = np.linalg.eigh(matrix)
  values, mixtures = values[::-1][:count], mixtures[:, ::-1][:, :count]
  vectors = (unravel(jnp.asarray(mix, flat.dtype) @ basis) for mix in mixtures.T)
  return Spectrum(values, np.abs(float(beta) * mixtures[-1]), tuple(vectors))


@jax.jit
def _rest(basis: jax.Array, vector: jax.Array) -> tuple[jax.Array, jax.Array]:
  """What of a vector is orthogonal to the basis: its direction and its length."""
  with jax.default_matmul_precision('highest'):
    for _ in range(2):  # the second time takes away what rounding left
      vector = vector - (basis @ vector) @ basis
  length = jnp.linalg.norm(vector)
  return vector / jnp.where(length > 0, length, 1), length


def trace(key: jax.Array, product: Product, params: Params, *, samples: int = 100) -> Estimate:
  """The trace, as the mean of v^T A v over random signs v (Hutchinson 1990).

  Unbiased; one sample's variance is twice the sum of the squares off the diagonal.

  Args:
    key: of the signs.
    product: with a symmetric matrix.
    params: the parameters.
    samples: at least 2, for the standard error.

  Raises:
    UserError: fewer samples.
  """
  if samples < 2:
    raise UserError(f'samples={samples} must be at least 2')
  size, dtype = (flat := ravel_pytree(params)[0]).size, flat.dtype
  signs = (jax.random.rademacher(k, (size,), dtype) for k in jax.random.split(key, samples))
  forms = quadratic_forms(product, params, signs)
  return Estimate(float(forms.mean()), float(forms.std(ddof=1) / np.sqrt(samples)))


def quadratic_forms(product: Product, params: Params, vectors: Iterable[jax.Array]) -> np.ndarray:
  """v^T A v of each vector.

  Args:
    product: with a symmetric matrix A of n rows.
    params: the parameters, n numbers.
    vectors: `[n]` each, the parameters raveled.

  Returns:
    float64, one for each vector.
  """
  _, unravel = ravel_pytree(params)
  form = jax.jit(lambda params, v: jnp.vdot(v, ravel_pytree(product(params, unravel(v)))[0]))
  return np.array([form(params, v) for v in vectors], np.float64)
