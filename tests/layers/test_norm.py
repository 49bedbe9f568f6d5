"""BatchNorm against float64 NumPy, over devices, and as a part of models."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from cnnjax.layers.norm import (
  BatchNorm,
  GlobalResponseNorm,
  LayerScale,
  LocalResponseNorm,
  bind,
  with_batch_norm,
)

EPS = 1e-5
KEY = jax.random.key(0)


def data(seed=0, shape=(4, 3, 5, 2)):
  rng = np.random.default_rng(seed)
  x = rng.normal(3.0, 2.0, shape)
  dy = rng.normal(size=shape)
  variables = {
    'params': {'scale': rng.normal(1, 0.3, shape[-1]), 'bias': rng.normal(size=shape[-1])},
    'batch_stats': {'mean': rng.normal(size=shape[-1]), 'var': rng.uniform(0.5, 2, shape[-1])},
  }
  return x, dy, variables


def reference(x, dy, scale, bias):
  """Output and gradients (x, scale, bias), by hand, float64."""
  axes, n = (0, 1, 2), x.size // x.shape[-1]
  mean, var = x.mean(axes), x.var(axes)
  inverse = 1 / np.sqrt(var + EPS)
  hat = (x - mean) * inverse
  dhat = dy * scale
  dx = inverse / n * (n * dhat - dhat.sum(axes) - hat * (dhat * hat).sum(axes))
  return hat * scale + bias, dx, (dy * hat).sum(axes), dy.sum(axes)


def as_float32(tree):
  return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def test_training_matches_numpy_forward_backward_and_running_statistics():
  x, dy, variables = data()
  params, stats = as_float32(variables['params']), as_float32(variables['batch_stats'])

  def loss(params, x):
    y, new = BatchNorm().apply(
      {'params': params, 'batch_stats': stats},
      x,
      use_running_average=False,
      mutable=['batch_stats'],
    )
    return (y * jnp.float32(dy)).sum(), (y, new['batch_stats'])

  grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  (_, (y, new)), (dparams, dx) = jax.jit(grad)(params, jnp.float32(x))
  want_y, want_dx, dscale, dbias = reference(x, dy, **variables['params'])
  np.testing.assert_allclose(y, want_y, rtol=2e-5, atol=2e-5)
  np.testing.assert_allclose(dx, want_dx, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(dparams['scale'], dscale, rtol=1e-4)
  np.testing.assert_allclose(dparams['bias'], dbias, rtol=1e-4)
  old = variables['batch_stats']
  np.testing.assert_allclose(new['mean'], 0.9 * old['mean'] + 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
  # PyTorch: the running variance is the unbiased one.
  unbiased = x.var((0, 1, 2), ddof=1)
  np.testing.assert_allclose(new['var'], 0.9 * old['var'] + 0.1 * unbiased, rtol=1e-5)


def test_evaluation_uses_the_running_statistics_and_changes_nothing():
  x, _, variables = data()
  y, new = BatchNorm(use_running_average=True).apply(
    as_float32(variables), jnp.float32(x), mutable=['batch_stats']
  )
  params, stats = variables['params'], variables['batch_stats']
  want = (x - stats['mean']) / np.sqrt(stats['var'] + EPS) * params['scale'] + params['bias']
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(new['batch_stats']['var'], np.float32(stats['var']))


def test_the_variance_survives_a_mean_far_from_zero():
  x = 4096 + np.random.default_rng(0).choice([-0.5, 0.5], size=(8, 4, 4, 1))
  y, new = BatchNorm(momentum=0.0).apply(
    {
      'batch_stats': {'mean': jnp.zeros(1), 'var': jnp.zeros(1)},
      'params': {'scale': jnp.ones(1), 'bias': jnp.zeros(1)},
    },
    jnp.float32(x),
    use_running_average=False,
    mutable=['batch_stats'],
  )
  np.testing.assert_allclose(new['batch_stats']['var'], x.var(ddof=1), rtol=1e-4)
  np.testing.assert_allclose(y.std(), 1, rtol=1e-3)


def test_one_value_per_channel_stays_finite():
  x = jnp.ones((1, 1, 1, 3))
  variables = BatchNorm().init(jax.random.key(0), x, use_running_average=False)
  y, new = BatchNorm().apply(variables, x, use_running_average=False, mutable=['batch_stats'])
  assert np.isfinite(y).all()
  assert np.isfinite(new['batch_stats']['var']).all()


def test_bfloat16_computes_statistics_in_float32():
  x, _, variables = data(shape=(16, 8, 8, 2))
  x = jnp.asarray(x + 100, jnp.bfloat16)
  y, new = BatchNorm(dtype=jnp.bfloat16).apply(
    as_float32(variables), x, use_running_average=False, mutable=['batch_stats']
  )
  assert y.dtype == jnp.bfloat16
  assert {a.dtype for a in jax.tree.leaves(new)} == {jnp.dtype('float32')}
  exact = np.asarray(x, np.float64).mean((0, 1, 2))
  want = 0.9 * variables['batch_stats']['mean'] + 0.1 * exact
  np.testing.assert_allclose(new['batch_stats']['mean'], want, rtol=1e-6)


def local_step(variables, x, dy):
  """Sum-loss gradient and new statistics of one device; in the parallel tests, of its share."""

  def loss(params, x):
    y, new = BatchNorm(axis_name='devices').apply(
      {**variables, 'params': params}, x, use_running_average=False, mutable=['batch_stats']
    )
    return (y * dy).sum(), new['batch_stats']

  (dparams, dx), stats = jax.grad(loss, argnums=(0, 1), has_aux=True)(variables['params'], x)
  return dparams, dx, stats


@pytest.mark.parametrize('driver', ['pmap', 'shard_map'])
def test_two_devices_equal_the_global_batch(driver):
  x, dy, variables = data()
  _, want_dx, dscale, dbias = reference(x, dy, **variables['params'])
  args = as_float32(variables), jnp.float32(x), jnp.float32(dy)
  if driver == 'pmap':
    split = lambda a: a.reshape(2, 2, *a.shape[1:])
    step = jax.pmap(local_step, 'devices', in_axes=(None, 0, 0))
    dparams, dx, stats = step(args[0], split(args[1]), split(args[2]))
    dparams = jax.tree.map(lambda a: a.sum(0), dparams)
    np.testing.assert_array_equal(*stats['var'])
    stats = jax.tree.map(lambda a: a[0], stats)
  else:
    rows = PartitionSpec('devices')
    mesh = Mesh(np.array(jax.devices()[:2]), ('devices',))
    spec = (PartitionSpec(), rows, PartitionSpec())
    step = jax.shard_map(
      local_step, mesh=mesh, in_specs=(PartitionSpec(), rows, rows), out_specs=spec
    )
    dparams, dx, stats = jax.jit(step)(*args)  # shard_map sums the gradient of what is replicated
  np.testing.assert_allclose(dx.reshape(x.shape), want_dx, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(dparams['scale'], dscale, rtol=1e-4)
  np.testing.assert_allclose(dparams['bias'], dbias, rtol=1e-4)
  old = variables['batch_stats']
  unbiased = x.var((0, 1, 2), ddof=1)
  np.testing.assert_allclose(stats['mean'], 0.9 * old['mean'] + 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
  np.testing.assert_allclose(stats['var'], 0.9 * old['var'] + 0.1 * unbiased, rtol=1e-5)


def test_bind_gives_only_what_a_norm_has_and_the_caller_wins():
  x = jnp.ones((2, 3, 3, 4))
  for norm in (partial(nn.GroupNorm, num_groups=2), nn.LayerNorm, BatchNorm, nn.BatchNorm):
    module = bind(norm, train=True, dtype=jnp.bfloat16)(name='norm')
    y, _ = module.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
  assert bind(partial(BatchNorm, use_running_average=True), train=True)().use_running_average
  assert bind(None, train=True)(name='norm')(x) is x


class Outer(nn.Module):
  inner: nn.Module
  norm: object = BatchNorm
  other: object = nn.GroupNorm


def test_options_of_batch_norm_are_set_and_of_nothing_else():
  class Plain(nn.Module):
    norm: object = partial(BatchNorm, momentum=0.5)

  model = with_batch_norm(Outer(Plain()), axis_name='devices')
  assert model.norm().axis_name == 'devices'
  assert model.inner.norm().axis_name == 'devices'
  assert model.inner.norm().momentum == 0.5
  assert model.other is nn.GroupNorm
  without = Outer(Plain(norm=None), norm=None)
  assert with_batch_norm(without, axis_name='devices') is without


@pytest.mark.parametrize('size', [1, 2, 5, 9])
def test_local_response_norm(size):
  rng = np.random.default_rng(0)
  x = rng.normal(0, 3, (2, 3, 2, 7))
  want = np.empty(x.shape)
  for c in range(7):
    window = x[..., max(c - size // 2, 0) : c + (size - 1) // 2 + 1]
    want[..., c] = x[..., c] / (2 + 0.1 * (window**2).sum(-1)) ** 0.75
  y = LocalResponseNorm(size, alpha=0.1).apply({}, jnp.float32(x))
  np.testing.assert_allclose(y, want, rtol=1e-5)


def test_local_response_norm_by_hand_and_in_bfloat16():
  x = jnp.asarray([[1.0, 2.0, 3.0]])
  layer = LocalResponseNorm(3, alpha=1.0, beta=0.5, k=1.0)
  want = [[1 / 6**0.5, 2 / 15**0.5, 3 / 14**0.5]]
  np.testing.assert_allclose(layer.apply({}, x), want, rtol=1e-6)
  assert layer.apply({}, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
  assert bind(LocalResponseNorm, train=True, dtype=jnp.bfloat16)()(x).dtype == jnp.bfloat16


def test_global_response_norm_by_hand():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 4, 5))
  x[0, :, :, 2] = 0  # a channel that is dark all over
  params = {'scale': rng.normal(size=5), 'bias': rng.normal(size=5)}
  length = np.sqrt(np.square(x).sum((1, 2), keepdims=True))
  ratio = length / (length.mean(-1, keepdims=True) + 1e-6)
  expected = x + params['scale'] * x * ratio + params['bias']
  variables = as_float32({'params': params})
  found = GlobalResponseNorm().apply(variables, jnp.float32(x))
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  loss = lambda x: GlobalResponseNorm().apply(variables, x).sum()
  gradient = np.asarray(jax.grad(loss)(jnp.float32(x)))
  assert np.isfinite(gradient).all()
  step = 1e-6 * rng.normal(size=x.shape) * (x != 0)

  def value(x):
    length = np.sqrt(np.square(x).sum((1, 2), keepdims=True))
    ratio = length / (length.mean(-1, keepdims=True) + 1e-6)
    return (x + params['scale'] * x * ratio + params['bias']).sum()

  change = (value(x + step) - value(x - step)) / 2
  np.testing.assert_allclose((gradient * step).sum(), change, rtol=1e-4)


def test_global_response_norm_and_layer_scale_start_gently():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4, 5)), jnp.float32)
  np.testing.assert_array_equal(GlobalResponseNorm().init_with_output(KEY, x)[0], x)
  y, variables = LayerScale(0.25).init_with_output(KEY, x)
  np.testing.assert_array_equal(y, x / 4)
  variables['params']['gamma'] = jnp.arange(5.0)
  np.testing.assert_allclose(LayerScale().apply(variables, x)[..., 3], 3 * x[..., 3])
  for layer in (GlobalResponseNorm(), LayerScale()):
    variables = layer.init(KEY, x)
    assert layer.apply(variables, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
