"""GELU against SciPy's distribution function in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from cnnjax import ops

X = np.linspace(-12, 12, 4801)
DENSITY = np.exp(-X * X / 2) / np.sqrt(2 * np.pi)


def test_values_are_exact_relative_to_the_argument():
  ours = np.asarray(jax.jit(ops.gelu)(jnp.float32(X)), np.float64)
  x = np.float64(np.float32(X))
  assert np.all(np.abs(ours - x * special.ndtr(x)) <= 2e-7 * np.abs(x))


def test_derivatives_in_both_modes_and_of_second_order():
  first = special.ndtr(X) + X * DENSITY
  second = (2 - X * X) * DENSITY
  x = jnp.float32(X)
  reverse = jax.vmap(jax.grad(ops.gelu))(x)
  forward = jax.jvp(ops.gelu, (x,), (jnp.ones_like(x),))[1]
  for found in (reverse, forward):
    np.testing.assert_allclose(found, first, atol=1e-6)
  twice = jax.vmap(jax.grad(jax.grad(ops.gelu)))(x)
  np.testing.assert_allclose(twice, second, atol=2e-6)


def test_the_type_stays():
  assert ops.gelu(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16
