"""Counts against numbers by hand, whatever transformation stands around the layer."""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from cnnjax import analysis, models
from cnnjax.analysis import macs
from cnnjax.errors import UserError

X = jax.ShapeDtypeStruct((1, 9, 11, 8), jnp.float32)
MATRIX = jax.ShapeDtypeStruct((6, 6), jnp.float32)
CUBE = 6**3  # MACs of the product of two such matrices


def conv_macs(x=X, **options):
  layer = nn.Conv(12, (3, 5), use_bias=False, **options)
  variables = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros(x.shape)))
  return analysis.count_fn(layer.apply, variables, x).macs


def pixels_by_loop(size, kernel, stride, dilation, pad):
  """Output positions along one axis, by sliding the window."""
  start, found = -pad[0], 0
  while start + dilation * (kernel - 1) < size + pad[1]:
    start, found = start + stride, found + 1
  return found


@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.parametrize('pad', [(0, 0), (1, 1), (3, 0)])
def test_convolutions(groups, stride, dilation, pad):
  found = conv_macs(
    feature_group_count=groups, strides=stride, kernel_dilation=dilation, padding=(pad, pad)
  )
  rows = pixels_by_loop(9, 3, stride, dilation, pad)
  columns = pixels_by_loop(11, 5, stride, dilation, pad)
  assert found == rows * columns * 12 * (3 * 5 * 8 // groups)


def test_depthwise():
  x = jax.ShapeDtypeStruct((1, 7, 7, 12), jnp.float32)
  assert conv_macs(x, feature_group_count=12, padding='SAME') == 7 * 7 * 12 * 15


def test_untied():
  """Linen copies patches by a convolution with ones and zeros, which multiplies nothing."""
  layer = nn.ConvLocal(4, (3, 3), padding='VALID', use_bias=False)
  assert analysis.count(layer, (8, 7, 3)).macs == 6 * 5 * 27 * 4


def test_transposed_convolutions_skip_the_zeros_between_pixels():
  layer = nn.ConvTranspose(12, (2, 2), strides=(2, 2), use_bias=False)
  variables = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros(X.shape)))
  # Windows don't overlap: each of 18 x 22 x 12 outputs has one tap on one pixel of 8 channels.
  assert analysis.count_fn(layer.apply, variables, X).macs == 18 * 22 * 12 * 8


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('stride', [1, 2])
def test_a_gradient_costs_twice_its_layer(groups, stride):
  layer = nn.Conv(12, (3, 3), strides=stride, padding=1, feature_group_count=groups, use_bias=False)
  variables = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.zeros(X.shape)))
  forward = analysis.count_fn(layer.apply, variables, X).macs
  both = jax.grad(lambda v, x: jnp.square(layer.apply(v, x)).sum(), (0, 1))
  assert analysis.count_fn(both, variables, X).macs == 3 * forward


def test_matrix_products():
  a = jax.ShapeDtypeStruct((5, 2, 3, 7), jnp.float32)
  b = jax.ShapeDtypeStruct((5, 7, 3, 4), jnp.float32)
  product = lambda a, b: jnp.einsum('nijk,nkjl->nil', a, b)
  assert analysis.count_fn(product, a, b).macs == 5 * 2 * 3 * 7 * 4


def _custom_jvp(x):
  f = jax.custom_jvp(lambda x: x @ x)
  f.defjvp(lambda primals, tangents: (f(*primals), tangents[0]))
  return f(x)


def _custom_vjp(x):
  f = jax.custom_vjp(lambda x: x @ x)
  f.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x,))
  return f(x)


def _shard_map(x):
  mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  spec = PartitionSpec('data')
  return jax.shard_map(lambda x: x @ jnp.ones((6, 6)), mesh=mesh, in_specs=spec, out_specs=spec)(x)


TRANSFORMED = {
  'plain': (lambda x: x @ x, 1),
  'jit': (jax.jit(jax.jit(lambda x: x @ x)), 1),
  'checkpoint': (jax.checkpoint(lambda x: x @ x), 1),
  'vmap': (lambda x: jax.vmap(lambda row: row @ x)(x), 1),
  'custom_jvp': (_custom_jvp, 1),
  'custom_vjp': (_custom_vjp, 1),
  'scan': (lambda x: lax.scan(lambda c, _: (c @ x, None), x, None, length=5)[0], 5),
  'scan in scan': (
    lambda x: lax.fori_loop(0, 3, lambda _, c: lax.fori_loop(0, 4, lambda _, d: d @ x, c), x),
    12,
  ),
  'cond': (lambda x: lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x), 2),
  'switch': (lambda x: lax.switch(1, [lambda: x, lambda: x @ x, lambda: x @ x @ x]), None),
  'while without products': (lambda x: lax.while_loop(lambda c: c.sum() < 9, jnp.exp, x) @ x, 1),
  'shard_map': (_shard_map, 1),
  'grad': (jax.grad(lambda x: (x @ x).sum()), 3),
}


@pytest.mark.parametrize('name', TRANSFORMED)
def test_transformations(name):
  fn, products = TRANSFORMED[name]
  found = analysis.count_fn(fn, MATRIX).macs
  assert found == CUBE * products if products else found in (CUBE, 2 * CUBE)


def test_a_while_loop_is_refused():
  with pytest.raises(UserError, match="'while'"):
    analysis.count_fn(lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ c, x), MATRIX)


def test_a_registered_foreign_function(monkeypatch):
  monkeypatch.setattr(macs, '_RULES', dict(macs._RULES))

  def call(x):
    with jax.named_scope('fast'):
      return jax.ffi.ffi_call('cnnjax_test_product', MATRIX)(x, x)

  assert analysis.count_fn(call, MATRIX).macs == 0
  analysis.register('ffi_call:cnnjax_test_product', lambda eqn: eqn.invars[0].aval.shape[0] ** 3)
  counted = analysis.count_fn(call, MATRIX)
  assert counted.layers == (analysis.Layer('fast', 0, CUBE, (6, 6)),)


class _Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.relu(nn.Conv(4, (3, 3), name='conv')(x))


class _Net(nn.Module):
  """Its block is applied twice: its parameters count once, its MACs twice."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(4, name='stem')(x)
    block = nn.remat(_Block)(name='block')
    x = block(block(x))
    scale = self.param('scale', nn.initializers.ones, ())
    return nn.BatchNorm(use_running_average=True, name='norm')(x) * scale


def test_layers():
  counted = analysis.count(_Net(), (5, 6, 3))
  conv = 5 * 6 * 4 * 36
  assert counted.layers == (
    analysis.Layer('stem', 16, 5 * 6 * 12, (1, 5, 6, 4)),
    analysis.Layer('block/conv', 148, 2 * conv, (1, 5, 6, 4)),
    analysis.Layer('', 1, 0, (1, 5, 6, 4)),  # what hands the image from module to module
    analysis.Layer('norm', 8, 0, (1, 5, 6, 4)),
  )
  assert (counted.parameters, counted.macs) == (173, 5 * 6 * 12 + 2 * conv)


def test_rematerialised_and_reduced_precision_models_count_the_same():
  counts = [
    analysis.count(models.create('cifar_resnet20', **options), (32, 32, 3))
    for options in ({}, {'remat': True}, {'dtype': 'bfloat16'})
  ]
  assert counts[0] == counts[1] == counts[2]


def test_more_classes_and_channels():
  small, large = (
    analysis.count(models.create('cifar_resnet20', num_classes=n), (32, 32, c))
    for n, c in ((10, 3), (11, 5))
  )
  assert large.parameters - small.parameters == 65 + 2 * 9 * 16
  assert large.macs - small.macs == 64 + 2 * 9 * 16 * 32 * 32
  assert type(small.macs) is int


def test_no_backend_is_asked():
  code = (
    'from cnnjax import analysis, models;'
    "print(analysis.count(models.create('lenet5', num_classes=10), (32, 32, 1)).macs)"
  )
  run = subprocess.run(
    [sys.executable, '-c', code],
    env={**os.environ, 'JAX_PLATFORMS': 'nosuchplatform'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (run.stdout.strip(), run.returncode) == ('416520', 0), run.stderr
