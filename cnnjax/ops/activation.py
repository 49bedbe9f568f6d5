"""Activations whose derivatives XLA would otherwise compute at length."""

import math

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
  """x Phi(x), Phi the standard normal distribution function: Hendrycks and Gimpel 2016, "Gaussian
  error linear units", arXiv:1606.08415.

  By erf, as PyTorch has it, where `jax.nn.gelu(x, approximate=False)` takes erfc: with the gradient
  half of the time on CPUs, and as exact relative to |x|, if not to a result nearly 0 far below 0.
  """
  return x * _distribution(x)


@gelu.defjvp
def _(primals, tangents):
  (x,), (tangent,) = primals, tangents
  density = jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
  return gelu(x), tangent * (_distribution(x) + x * density)


def _distribution(x: jax.Array) -> jax.Array:
  return 0.5 + 0.5 * lax.erf(x * math.sqrt(0.5))
