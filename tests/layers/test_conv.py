"""Convolution against NumPy and SciPy; padding conventions."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from cnnjax.errors import UserError
from cnnjax.layers.conv import (
  ScaledWSConv,
  SeparableConv,
  WSConv,
  channel_shuffle,
  conv,
  depthwise,
  pads,
  standardise,
  untied,
)


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


@pytest.mark.parametrize('scaled', [False, True])
def test_weight_standardisation(scaled):
  rng = np.random.default_rng(0)
  x = rng.normal(1, 2, size=(2, 6, 5, 4)).astype(np.float32)
  options = {'gamma': 1.7, 'epsilon': 1e-2} if scaled else {'epsilon': 1e-2}
  layer = functools.partial(ScaledWSConv if scaled else WSConv, **options)
  layer = conv(6, 3, groups=2, strides=2, use_bias=True, layer=layer)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.asarray(x))['params']
  assert jax.tree.map(jnp.shape, shapes) == {
    'kernel': (3, 3, 2, 6),
    'bias': (6,),
    **({'gain': (6,)} if scaled else {}),
  }
  params = jax.tree.map(lambda p: rng.normal(0.3, 0.5, size=p.shape).astype(np.float32), shapes)
  taps = params['kernel'].astype(np.float64).reshape(18, 6)
  kernel = (taps - taps.mean(0)) / np.sqrt(taps.var(0) + 1e-2)
  if scaled:
    kernel *= 1.7 * params['gain'] / np.sqrt(18)
  plain = conv(6, 3, groups=2, strides=2, use_bias=True)
  want = plain.apply(
    {'params': {'kernel': np.float32(kernel.reshape(3, 3, 2, 6)), 'bias': params['bias']}}, x
  )
  np.testing.assert_allclose(layer.apply({'params': params}, x), want, rtol=1e-4, atol=1e-5)


def test_standardised_kernels_ignore_scale_and_shift():
  kernel = jnp.float32(np.random.default_rng(0).normal(size=(3, 3, 4, 5)))
  want = standardise(kernel, epsilon=0.0)
  np.testing.assert_allclose(standardise(3 * kernel + 2, epsilon=0.0), want, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(want.mean((0, 1, 2)), 0, atol=1e-6)
  np.testing.assert_allclose(want.var((0, 1, 2)), 1, rtol=1e-5)
  # A kernel's scale then doesn't matter, so the gradient is orthogonal to it.
  target = jnp.float32(np.random.default_rng(1).normal(size=kernel.shape))
  slope = jax.grad(lambda k: (standardise(k, epsilon=0.0) * target).sum())(kernel)
  np.testing.assert_allclose((slope * kernel).sum((0, 1, 2)), 0, atol=1e-3)


def test_a_weight_standardised_convolution_computes_in_its_type():
  layer = conv(4, 3, layer=ScaledWSConv, dtype=jnp.bfloat16)
  y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 5, 5, 2)))
  assert y.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_untied_convolution_has_its_own_kernel_at_every_pixel():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 6, 5, 3)).astype(np.float32)
  layer = conv(4, (3, 2), strides=(1, 2), padding=((1, 0), (0, 1)), use_bias=True, layer=untied)
  start = layer.init(jax.random.key(0), jnp.asarray(x))['params']
  kernel = rng.normal(size=start['kernel'].shape).astype(np.float32)  # (H', W', C kh kw, features)
  bias = rng.normal(size=start['bias'].shape).astype(np.float32)
  y = layer.apply({'params': {'kernel': kernel, 'bias': bias}}, jnp.asarray(x))
  assert y.shape == (2, 5, 3, 4)
  padded = np.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0)))
  for i in range(5):
    for j in range(3):
      patch = padded[:, i : i + 3, 2 * j : 2 * j + 2].transpose(0, 3, 1, 2).reshape(2, -1)
      np.testing.assert_allclose(
        y[:, i, j], patch @ kernel[i, j] + bias[i, j], rtol=1e-4, atol=1e-5
      )


def test_untied_kernels_start_as_the_convolutions_would():
  kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
  x = jnp.float32(np.random.default_rng(1).normal(size=(1, 6, 7, 4)))
  run = lambda **options: conv(
    5, 3, kernel_init=lambda *_: jnp.asarray(kernel), **options
  ).init_with_output(jax.random.key(0), x)[0]
  np.testing.assert_allclose(run(layer=untied), run(), rtol=1e-4, atol=1e-5)
  drawn = conv(64, 3, layer=untied).init(jax.random.key(0), x)['params']['kernel']
  np.testing.assert_allclose(drawn.std(), (2 / (9 * 64)) ** 0.5, rtol=0.02)  # he_fan_out
  assert (drawn[0, 0] != drawn[0, 1]).all()


def test_depthwise_filters_each_channel_by_itself():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 6, 5, 3)).astype(np.float32)
  kernel = rng.normal(size=(3, 3, 1, 6)).astype(np.float32)
  y = depthwise(3, 3, multiplier=2).apply({'params': {'kernel': kernel}}, jnp.asarray(x))
  for out in range(6):
    want = signal.correlate(x[0, :, :, out // 2], kernel[:, :, 0, out], 'same')
    np.testing.assert_allclose(y[0, :, :, out], want, rtol=1e-4, atol=1e-5)


def test_separable_convolution_is_a_convolution_of_rank_one_kernels():
  x = jnp.float32(np.random.default_rng(0).normal(size=(2, 7, 6, 3)))
  layer = SeparableConv(4, 3, multiplier=2, use_bias=True, spatial=(('strides', 2),))
  y, variables = layer.init_with_output(jax.random.key(0), x)
  inner, outer = variables['params']['depthwise'], variables['params']['pointwise']
  full = jnp.einsum(
    'ijcm,cmf->ijcf', inner['kernel'].reshape(3, 3, 3, 2), outer['kernel'].reshape(3, 2, 4)
  )
  want = conv(4, 3, strides=2).apply({'params': {'kernel': full}}, x)
  assert set(inner) == {'kernel'}
  np.testing.assert_allclose(y, want + outer['bias'][None, None, None], rtol=1e-4, atol=1e-5)


def test_channel_shuffle_deals_the_groups_out():
  x = jnp.arange(2 * 6).reshape(2, 6)
  want = [[0, 3, 1, 4, 2, 5], [6, 9, 7, 10, 8, 11]]
  np.testing.assert_array_equal(channel_shuffle(x, groups=2), want)
  np.testing.assert_array_equal(channel_shuffle(channel_shuffle(x, groups=2), groups=3), x)
  with pytest.raises(UserError, match='groups=4 must divide the 6 channels'):
    channel_shuffle(x, groups=4)
