"""Compiled inference against `model.apply`, and what it takes into one call."""

import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnnjax import inference, models, ops
from cnnjax.errors import UserError
from cnnjax.layers.conv import conv
from cnnjax.layers.norm import BatchNorm, LayerScale
from cnnjax.ops import plugin

# A small variant of each kind of network, and images [H, W, C] of odd sizes where they may be.
# (efficientnet_v2 isn't among them: under random weights its rounding grows without bound.)
SMALL = {
  'lenet5': (27, 28, 1),
  'lenet5_1998': (32, 32, 1),
  'cnn': (27, 29, 1),
  'mlp': (9, 11, 1),
  'airbench': (31, 33, 3),
  'cifar_resnet20': (17, 19, 3),
  'convnextv2_atto': (33, 35, 3),
  'densenet_40_12': (17, 19, 3),
  'mobilenet_v3_small': (33, 35, 3),
  'repvgg_a0': (33, 35, 3),
  'shufflenet_v2_x0_5': (33, 35, 3),
  'squeezenet1_1': (33, 35, 3),
  'vgg11_bn': (33, 35, 3),
}
FEWER = {  # layers of a kind
  'vgg11_bn': {'stage_sizes': (1, 2)},
  'densenet_40_12': {'stage_sizes': (2, 2, 2)},
  'convnextv2_atto': {'stage_sizes': (1, 1, 2, 1)},
}
CHOICES = ('xla', 'onednn') if plugin.load() else ('xla',)
NUMBERS = ('NHWC', 'HWIO', 'NHWC')
TARGETS = {'xla': 'stablehlo.convolution', 'onednn': '@cnnjax_onednn_inference'}


def normal(*shape: int) -> jax.Array:
  return jnp.asarray(np.random.RandomState(len(shape)).standard_normal(shape), jnp.float32)


def trained(model: nn.Module, images: jax.Array):
  """Variables as after training: no statistic, scale or bias is 0 or 1, and no map dies out."""
  rng = np.random.RandomState(0)

  def fill(path, like):
    z = rng.standard_normal(like.shape)
    if len(like.shape) > 1:
      z *= math.sqrt(2 / math.prod(like.shape[:-1]))
    elif path[-1].key == 'var':
      z = 1 + 0.2 * np.abs(z)
    else:
      z = 0.1 * z + (path[-1].key in ('scale', 'gain', 'gamma', 'p'))
    return jnp.asarray(z, like.dtype)

  return jax.tree_util.tree_map_with_path(
    fill, jax.eval_shape(model.init, jax.random.key(0), images)
  )


def check(model: nn.Module, images: jax.Array, calls: int | None = None) -> None:
  """Compares with `apply`, by XLA and oneDNN; `calls` convolutions must be in the program."""
  variables = trained(model, images)
  expected = np.asarray(jax.jit(model.apply)(variables, images))
  for choice in CHOICES:
    with ops.using(choice):
      predict = inference.compile(model, variables, images.shape)
      found = np.asarray(predict(images))
      program = jax.jit(predict).lower(images).as_text()
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    if calls is not None:
      assert program.count(TARGETS[choice]) == calls
      if choice == 'onednn':  # and nothing is left to do beside them
        assert not re.search(
          r'stablehlo\.(add|multiply|maximum|logistic|tanh|convolution)', program
        )


@pytest.mark.parametrize('name', SMALL)
def test_zoo(name):
  check(models.create(name, num_classes=7, **FEWER.get(name, {})), normal(2, *SMALL[name]))


class Network(nn.Module):
  """Whatever `body` does with images, as a model."""

  body: Any

  @nn.compact
  def __call__(self, images, train=False):
    del train
    return self.body(images)


def conv_norm(x, name, features=8, **options):
  x = conv(features, 3, name=f'{name}_conv', **options)(x)
  return BatchNorm(use_running_average=True, name=f'{name}_norm')(x)


ACTIVATIONS = {
  'none': lambda x: x,
  'relu': nn.relu,
  'maximum': lambda x: jnp.maximum(0, x),
  'relu6': nn.relu6,
  'clip': lambda x: jnp.clip(x, 0, 6),
  'silu': nn.silu,
  'swish': lambda x: jax.nn.sigmoid(x) * x,
  'hard_swish': nn.hard_swish,
  'gelu': lambda x: nn.gelu(x, approximate=False),
  'gelu by erf': lambda x: x * 0.5 * (1 + jax.scipy.special.erf(x * np.float32(0.5**0.5))),
  'tanh': jnp.tanh,
  'scaled tanh': lambda x: jnp.tanh(2 / 3 * x),
  'sigmoid': nn.sigmoid,
}


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_convolution_norm_and_activation_are_one_call(name):
  check(Network(lambda x: ACTIVATIONS[name](conv_norm(x, 'a'))), 4 * normal(2, 9, 11, 8), calls=1)


@pytest.mark.parametrize('act', [nn.leaky_relu, nn.elu, nn.softplus, nn.gelu, nn.hard_sigmoid])
def test_other_activations_stay(act):
  check(Network(lambda x: act(conv_norm(x, 'a'))), normal(2, 9, 11, 8))


@pytest.mark.parametrize('norm_first', [True, False])
def test_layer_scale_and_arithmetic_fold(norm_first):
  def body(x):
    y = conv_norm(x, 'a') if norm_first else conv(8, 3, use_bias=True, name='a')(x)
    y = LayerScale(0.3, name='scale')(y) / 3 - 1
    return 2 - (-y)

  check(Network(body), normal(2, 9, 11, 8), calls=1)


def test_residuals_join_the_call():
  def body(x):
    shortcut = conv_norm(x, 'shortcut', 16)
    y = nn.relu(shortcut + conv_norm(nn.relu(conv_norm(x, 'a', 16)), 'b', 16))
    return nn.relu(conv_norm(y, 'c', 16) + y)

  check(Network(body), normal(2, 9, 11, 8), calls=4)


def test_residual_that_is_used_again_survives():
  def body(x):
    y = nn.relu(conv_norm(x, 'a'))
    z = nn.relu(y + conv_norm(y, 'b'))
    w = x + conv_norm(z, 'c')
    return jnp.concatenate([y, z, w, x], -1)

  check(Network(body), normal(2, 9, 11, 8), calls=3)


def test_convolution_that_is_used_twice_is_computed_once():
  def body(x):
    y = conv_norm(x, 'a')
    return jnp.concatenate([y, nn.relu(y), nn.silu(y), y * y, y + y], -1)

  images = normal(2, 9, 11, 8)
  check(Network(body), images)
  for choice in CHOICES:
    with ops.using(choice):
      model = Network(body)
      predict = inference.compile(model, trained(model, images), images.shape)
      assert jax.jit(predict).lower(images).as_text().count(TARGETS[choice]) == 1


@pytest.mark.parametrize('shape', [(5, 12), (2, 3, 4, 12), (2, 7, 12)])
def test_matrix_products(shape):
  def body(x):
    y = nn.gelu(nn.Dense(16, name='a')(x), approximate=False)
    return LayerScale(0.3, name='scale')(nn.Dense(12, name='b')(y)) + x

  check(Network(body), normal(*shape))


@pytest.mark.parametrize(
  'options',
  [
    {'strides': 2},
    {'dilation': (2, 1), 'padding': ((2, 0), (1, 3))},
    {'groups': 4},
    {'groups': 8},
    {'padding': 'SAME', 'strides': (2, 3)},
  ],
)
def test_windows(options):
  def body(x):
    x = jnp.pad(x, ((0, 0), (1, 0), (2, 1), (0, 0)))
    return nn.relu(conv_norm(x, 'a', 8, **options))

  check(Network(body), normal(2, 9, 11, 8))


def test_what_does_not_fold_stays_as_it_is():
  def body(x):
    y = conv(1, 3, name='a')(x) * nn.sigmoid(normal(8))[None, None, None]  # widens
    z = conv(8, 3, name='b')(x) * normal(1, 9, 11, 1)  # varies over the image
    w = lax.conv_general_dilated(x, x[:3, :3, :8], (1, 1), 'SAME', dimension_numbers=NUMBERS)
    return jnp.concatenate([y, z, jnp.sort(z, 1), jnp.broadcast_to(w.sum(), z.shape)], -1)

  check(Network(body), normal(8, 9, 11, 8))


def test_bfloat16_is_left_to_jax():
  model = models.create('cifar_resnet20', num_classes=7, dtype='bfloat16')
  images = normal(2, 16, 16, 3)
  variables = trained(model, images)
  expected = np.asarray(jax.jit(model.apply)(variables, images))
  found = np.asarray(inference.compile(model, variables, images.shape)(images))
  np.testing.assert_allclose(found, expected, rtol=0, atol=0.03 * np.abs(expected).max())


def test_outlives_the_variables_and_works_under_jit():
  model, images = models.create('lenet5', num_classes=10), normal(2, 28, 28, 1)
  variables = trained(model, images)
  expected = 2 * model.apply(variables, images)
  predict = inference.compile(model, variables, images.shape)
  jax.tree.map(lambda x: x.delete(), variables)
  found = jax.jit(lambda x: 2 * predict(x))(images)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'images', [np.zeros((3, 28, 28, 1), np.float32), np.zeros((2, 28, 28, 1), np.float16)]
)
def test_other_images_are_refused(images):
  model = models.create('lenet5', num_classes=10)
  variables = trained(model, normal(2, 28, 28, 1))
  predict = inference.compile(model, variables, (2, 28, 28, 1))
  with pytest.raises(UserError, match=r'compiled for images of shape \(2, 28, 28, 1\)'):
    predict(images)


def test_model_that_does_not_take_the_shape():
  model = models.create('resnet18', num_classes=10)
  variables = trained(model, normal(1, 32, 32, 3))
  with pytest.raises(UserError, match=r'takes images \[N, H, W, C\]'):
    inference.compile(model, variables, (32, 32, 3))
