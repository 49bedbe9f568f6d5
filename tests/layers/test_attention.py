"""Attention layers against NumPy in float64."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.errors import UserError
from cnnjax.layers.attention import CBAM, ECA, SqueezeExcite
from cnnjax.layers.norm import BatchNorm, bind

KEY = jax.random.key(0)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def run(layer, x, **options):
  """Output of the layer under noise for parameters, and these in float64."""
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(layer.init, KEY, x)
  variables = jax.tree.map(lambda p: jnp.float32(rng.normal(size=p.shape)), shapes)
  exact = jax.tree.map(partial(np.asarray, dtype=np.float64), variables['params'])
  return layer.apply(variables, x, **options), exact


def images(channels):
  return jnp.float32(np.random.default_rng(0).normal(size=(2, 5, 6, channels)))


@pytest.mark.parametrize(
  ('options', 'reduced', 'act', 'gate'),
  [
    ({}, 2, lambda x: np.maximum(x, 0), sigmoid),  # 32 / 16
    ({'reduction': 64}, 1, lambda x: np.maximum(x, 0), sigmoid),
    (
      {'reduced': 5, 'act': nn.silu, 'gate': nn.hard_sigmoid},
      5,
      lambda x: x * sigmoid(x),
      lambda x: np.clip(x / 6 + 0.5, 0, 1),
    ),
  ],
)
def test_squeeze_excite(options, reduced, act, gate):
  x = images(32)
  y, params = run(SqueezeExcite(**options), x)
  assert params['reduce']['kernel'].shape == (32, reduced)
  dense = lambda x, name: x @ params[name]['kernel'] + params[name]['bias']
  gates = gate(dense(act(dense(np.asarray(x, np.float64).mean((1, 2)), 'reduce')), 'expand'))
  np.testing.assert_allclose(y, x * gates[:, None, None], rtol=1e-4, atol=1e-5)


def test_eca():
  x = images(9)
  y, params = run(ECA(kernel_size=5), x)
  mean = np.asarray(x, np.float64).mean((1, 2))
  kernel = params['conv']['kernel'][:, 0, 0]
  gates = sigmoid(np.stack([np.correlate(row, kernel, 'same') for row in mean]))
  np.testing.assert_allclose(y, x * gates[:, None, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('channels', 'size'),
  [(1, 3), (16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)],
)
def test_eca_chooses_its_kernel(channels, size):
  shapes = jax.eval_shape(ECA().init, KEY, jnp.ones((1, 2, 2, channels)))
  assert shapes['params']['conv']['kernel'].shape == (size, 1, 1)


def test_eca_kernels_are_odd():
  with pytest.raises(UserError, match='kernel_size=4'):
    jax.eval_shape(ECA(kernel_size=4).init, KEY, images(8))


def spatial(x, kernel):
  """Convolution [N, H, W, 2] by [k, k, 2, 1], zero-padded."""
  k = kernel.shape[0]
  border = (k // 2, k // 2)
  padded = np.pad(x, ((0, 0), border, border, (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), (1, 2))
  return np.einsum('nhwcij,ijcf->nhwf', windows, kernel)


@pytest.mark.parametrize('norm', [None, bind(BatchNorm, train=True)])  # as in the authors' code
def test_cbam(norm):
  x = images(8)
  y, params = run(CBAM(reduction=4, kernel_size=3, norm=norm), x, mutable=['batch_stats'])
  y = y[0]
  assert (
    params['reduce'].keys() == params['expand'].keys() == params['spatial'].keys() == {'kernel'}
  )
  mlp = lambda x: np.maximum(x @ params['reduce']['kernel'], 0) @ params['expand']['kernel']
  want = np.asarray(x, np.float64)
  want *= sigmoid(mlp(want.mean((1, 2))) + mlp(want.max((1, 2))))[:, None, None]
  logits = spatial(np.stack([want.mean(-1), want.max(-1)], -1), params['spatial']['kernel'])
  if norm:
    logits = (logits - logits.mean()) / np.sqrt(logits.var() + 1e-5)
    logits = logits * params['norm']['scale'] + params['norm']['bias']
  np.testing.assert_allclose(y, want * sigmoid(logits), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('layer', [SqueezeExcite(2), ECA(), CBAM(reduction=4)])
def test_types_and_an_image_of_any_size(layer):
  for shape in ((1, 1, 1, 8), (3, 2, 7, 8)):
    x = jnp.ones(shape, jnp.bfloat16)
    y, variables = jax.eval_shape(partial(layer.init_with_output, KEY), x)
    assert (y.shape, y.dtype) == (shape, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
