"""The fast small-image network: its whitening, its initial kernels, its sizes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.errors import UserError
from cnnjax.layers.norm import BatchNorm
from cnnjax.models.airbench import _partial_identity, whiten

KEY = jax.random.key(0)


def test_whitened_outputs_are_uncorrelated_with_unit_variance():
  rng = np.random.default_rng(0)
  # Smooth colour images: neighbouring pixels and channels are correlated.
  images = np.cumsum(np.cumsum(rng.normal(size=(64, 12, 12, 3)), 1), 2) @ rng.normal(size=(3, 3))
  images = jnp.float32(images / images.std())
  model = models.create('airbench', features=(4,), act=lambda x: x)
  variables = whiten(model.init(KEY, images[:1]), images, epsilon=0.0)
  seen = models.features(model, variables, images, ['stem'])['stem']
  assert seen.shape == (64, 11, 11, 24)
  bias = variables['params']['stem']['conv']['bias']
  outputs = np.asarray(seen - bias[None, None, None], np.float64).reshape(-1, 24)
  half = np.cov(outputs[:, :12], rowvar=False)
  np.testing.assert_allclose(half, np.eye(12), atol=5e-2)
  np.testing.assert_allclose(outputs[:, 12:], -outputs[:, :12], atol=1e-2)


def test_kernels_copy_their_input():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 5, 4)), jnp.float32)
  for features in (3, 4, 7):
    kernel = _partial_identity(KEY, (3, 3, 4, features))
    y = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    copies = min(4, features)
    np.testing.assert_allclose(y[..., :copies], x[..., :copies], rtol=1e-5)
    assert jnp.abs(y[..., copies:]).sum() > 0 or features <= 4


def test_sizes_and_scale():
  model = models.create('airbench', num_classes=3, features=(4, 4))
  shape = lambda h, w: jax.eval_shape(partial(model.init_with_output, KEY), jnp.ones((2, h, w, 1)))[
    0
  ]
  assert shape(5, 8).shape == (2, 3)
  with pytest.raises(UserError, match=r'4x8.*5x5'):
    shape(4, 8)
  images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 7, 1)), jnp.float32)
  variables = model.init(KEY, images)
  assert 'scale' not in variables['params']['stage1']['norm1']
  larger = model.clone(scale=1.0).apply(variables, images)
  np.testing.assert_allclose(model.apply(variables, images), larger / 9, rtol=1e-5)


def test_stem_may_stride_pad_and_normalise():
  options = {'whitening_size': 4, 'stem_strides': 2}
  coarse = models.create('airbench', features=(4, 4), **options)
  sizes = lambda side: {
    name: x.shape[1:3]
    for name, x in jax.eval_shape(
      lambda x: models.features(coarse, coarse.init(KEY, x), x), jnp.ones((1, side, side, 1))
    ).items()
    if name in ('stem', 'stage1', 'stage2')
  }
  assert sizes(28) == {'stem': (13, 13), 'stage1': (6, 6), 'stage2': (3, 3)}
  assert sizes(10) == {'stem': (4, 4), 'stage1': (2, 2), 'stage2': (1, 1)}
  with pytest.raises(UserError, match=r'9x9.*10x10'):
    sizes(9)
  coarse = coarse.clone(stem_padding=1, stem_norm=True)
  assert sizes(28) == {'stem': (14, 14), 'stage1': (7, 7), 'stage2': (3, 3)}
  with pytest.raises(UserError, match=r'7x7.*8x8'):
    sizes(7)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 1)), jnp.float32)
  variables = coarse.init(KEY, x)
  assert set(variables['params']['stem']['conv']) == {'kernel'}
  assert set(variables['params']['stem']['norm']) == {'bias'}
  stem = lambda act: models.features(
    coarse.clone(act=act, norm=partial(BatchNorm, use_scale=False, use_running_average=False)),
    variables, x, ['stem'],
  )['stem']  # fmt: skip
  np.testing.assert_allclose(stem(lambda x: x).var((0, 1, 2)), 1.0, rtol=1e-3)
