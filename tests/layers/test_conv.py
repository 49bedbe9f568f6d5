"""Convolution against NumPy and SciPy; padding conventions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from cnnjax.errors import UserError
from cnnjax.layers.conv import conv, pads


def test_matches_scipy():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 7, 6, 2)).astype(np.float32)
  layer = conv(3, (3, 5), use_bias=True)
  variables = layer.init(jax.random.key(0), jnp.asarray(x))
  kernel = np.asarray(variables['params']['kernel'])
  assert kernel.shape == (3, 5, 2, 3)
  want = np.zeros((7, 6, 3))
  for o in range(3):
    for i in range(2):
      want[..., o] += signal.correlate2d(x[0, ..., i], kernel[..., i, o], mode='same')
  np.testing.assert_allclose(layer.apply(variables, jnp.asarray(x))[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', [7, 8])
def test_strided_symmetric_padding_is_torchs_not_tensorflows(size):
  x = jnp.arange(size, dtype=jnp.float32).reshape(1, 1, size, 1)
  centre = lambda key, shape, dtype: jnp.zeros(shape, dtype).at[0, shape[1] // 2].set(1.0)
  taps = {}
  for padding in ('SYMMETRIC', 'SAME'):
    layer = conv(1, (1, 3), strides=2, padding=padding, kernel_init=centre)
    taps[padding] = layer.init_with_output(jax.random.key(0), x)[0].ravel().tolist()
  assert taps['SYMMETRIC'] == list(range(0, size, 2))  # the centres start at pixel 0
  assert taps['SAME'] == list(range(1 - size % 2, size, 2))


def test_pads():
  assert pads('SYMMETRIC', 7) == ((3, 3), (3, 3))
  assert pads('SYMMETRIC', 3, dilation=2) == ((2, 2), (2, 2))
  assert pads('SYMMETRIC', (1, 4)) == ((0, 0), (1, 1))
  assert pads('SAME', 3) == 'SAME'
  assert pads(1, 3) == ((1, 1), (1, 1))
  assert pads((0, 1), 3) == ((0, 0), (1, 1))
  assert pads(((0, 1), (2, 3)), 3) == ((0, 1), (2, 3))
  with pytest.raises(UserError, match=r"padding='CIRCLE'.*SYMMETRIC"):
    pads('CIRCLE', 3)


def test_groups_dilation_and_another_layer():
  x = jnp.ones((1, 9, 9, 4))
  shape = lambda layer: jax.tree.map(jnp.shape, layer.init(jax.random.key(0), x)['params'])
  assert shape(conv(8, 3, groups=4)) == {'kernel': (3, 3, 1, 8)}
  assert conv(8, 3, dilation=2).init_with_output(jax.random.key(0), x)[0].shape == (1, 9, 9, 8)
  untied = conv(2, 3, padding='VALID', layer=nn.ConvLocal)
  assert shape(untied) == {'kernel': (7, 7, 36, 2)}
