"""The zoo's tests compile much and run it once: let XLA not optimise it."""

import jax
import pytest


@pytest.fixture(autouse=True, scope='module')
def _unoptimised():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
