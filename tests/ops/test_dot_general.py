"""Products of pixels with a matrix, against XLA's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from cnnjax import ops
from cnnjax.ops import plugin

NUMBERS = (((3,), (0,)), ((), ()))


def drawn(*shapes):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def test_values_and_derivatives():
  x, w = drawn((2, 3, 5, 17), (17, 33))
  both = [
    lambda x, w, f=f: jnp.sin(f(x, w, NUMBERS)).sum() for f in (ops.dot_general, lax.dot_general)
  ]
  for derivative in (lambda f: f, lambda f: jax.grad(f, (0, 1)), lambda f: jax.hessian(f, 1)):
    ours, theirs = (jax.jit(derivative(f))(x, w) for f in both)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4), ours, theirs)


@pytest.mark.parametrize(
  ('shapes', 'numbers'),
  [
    (((6, 4), (4, 5)), (((1,), (0,)), ((), ()))),
    (((2, 3, 4, 5), (6, 4)), (((2,), (1,)), ((), ()))),
    (((2, 3, 3, 4), (2, 4, 5)), (((3,), (1,)), ((0,), (0,)))),
  ],
)
def test_other_products_are_xlas(shapes, numbers):
  a, b = drawn(*shapes)
  program = jax.jit(lambda a, b: ops.dot_general(a, b, numbers))
  assert 'cnnjax_onednn' not in program.lower(a, b).as_text()
  np.testing.assert_allclose(program(a, b), lax.dot_general(a, b, numbers), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(plugin.load() is None, reason='cnnjax-onednn is not installed')
def test_a_dense_layer_over_pixels_is_onednns_here_and_plain_when_exported():
  dense = nn.Dense(16, dot_general=ops.dot_general)
  (x,) = drawn((2, 4, 4, 8))
  variables = dense.init(jax.random.key(0), x)
  assert variables['params']['kernel'].shape == (8, 16)
  program = jax.jit(dense.apply)
  assert 'cnnjax_onednn' in program.lower(variables, x).as_text()
  exported = export.export(program, platforms=['cpu', 'cuda'])(variables, x)
  assert 'cnnjax_onednn' not in exported.mlir_module()
  with ops.using('xla'):
    assert 'cnnjax_onednn' not in jax.jit(dense.apply).lower(variables, x).as_text()
