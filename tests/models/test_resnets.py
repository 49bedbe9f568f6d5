"""What the ResNet families add to one another: order, drop, blur, variance. Small networks."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.errors import UserError
from cnnjax.layers.conv import ScaledWSConv, conv
from cnnjax.models import nf_resnet, resnet, resnetv2

KEY = jax.random.key(0)
IMAGES = jnp.float32(np.random.default_rng(0).normal(size=(4, 19, 23, 3)))
SMALL = {
  'resnet50': {'stage_sizes': (2,), 'features': 8},
  'cifar_resnet110_v2': {'stage_sizes': (2,), 'features': 8},
  'resnetv2_50': {'stage_sizes': (2,), 'features': 8},
  'wrn_40_4': {'stage_sizes': (2,), 'features': 8},
  'nf_resnet50': {'stage_sizes': (2,), 'features': 8},
}


def small(name, **overrides):
  """The model and its variables."""
  model = models.create(name, num_classes=5, **{**SMALL[name], **overrides})
  return model, noise(model, IMAGES)


def noise(module, x):
  """Variables without compiling `init`; positive, as a variance must be."""
  rng = np.random.default_rng(1)
  fill = lambda p: jnp.float32(0.5 + 0.2 * np.abs(rng.normal(size=p.shape)))
  return jax.tree.map(fill, jax.eval_shape(module.init, KEY, x))


def outputs(model, variables, names, **options):
  """What the named submodules give in training mode, the state, and the logits in evaluation."""
  keep = lambda module, _: '/'.join(module.path) in names

  @jax.jit
  def run(variables):
    mutable = ['batch_stats', 'examples', 'intermediates']
    _, state = model.apply(
      variables, IMAGES, train=True, mutable=mutable, capture_intermediates=keep, **options
    )
    return state, model.apply(variables, IMAGES)

  state, logits = run(variables)
  found = state['intermediates']
  for part in names[0].split('/')[:-1]:
    found = found[part]
  return [found[name.rpartition('/')[2]]['__call__'][0] for name in names], state, logits


@pytest.mark.parametrize('name', ['resnet50', 'resnetv2_50', 'wrn_40_4', 'nf_resnet50'])
def test_a_dropped_branch_leaves_the_shortcut(name):
  model, variables = small(name, drop_path_rate=1.0)  # of the last block; the first has 0
  blocks = ['stage1/block1', 'stage1/block2']
  (first, second), state, _ = outputs(model, variables, blocks, rngs={'dropout': KEY})
  np.testing.assert_array_equal(first, second)
  ids = jax.tree_util.tree_leaves_with_path(state['examples'])
  assert [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in ids] == [
    'stage1/block2/drop_path/id'
  ]


def test_drop_path_rates_grow_linearly():
  model = models.create('resnet18', stage_sizes=(2, 3), features=4, drop_path_rate=0.4)
  rates = []
  modules = lambda f, a, k, context: (
    rates.append(context.module.rate) if context.module.name == 'drop_path' else None,
    f(*a, **k),
  )[1]
  with nn.intercept_methods(modules):
    jax.eval_shape(model.init, KEY, IMAGES)
  np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4])  # and 0, without a layer


@pytest.mark.parametrize('name', ['resnet50', 'wrn_40_4'])
def test_dropout_stands_before_the_last_convolution(name):
  model, variables = small(name, dropout=1.0)
  last = 'conv3' if name == 'resnet50' else 'conv2'
  (zero,), _, logits = outputs(model, variables, [f'stage1/block1/{last}'], rngs={'dropout': KEY})
  assert not zero.any()
  plain = jax.jit(small(name)[0].apply)(variables, IMAGES)
  np.testing.assert_allclose(logits, plain, rtol=1e-5)  # in evaluation nothing is dropped


def block(kind, features, strides=1, **options):
  norm = lambda **_: lambda x: 2 * x
  return kind(features, strides, conv=conv, norm=norm, act=nn.relu, **options)


@pytest.mark.parametrize('kind', [resnetv2.PreActBasicBlock, resnetv2.PreActBottleneck])
def test_zero_init_of_preactivation_starts_as_the_shortcut(kind):
  x = jnp.ones((1, 3, 3, 4))
  y, variables = block(kind, 4 if 'Basic' in kind.__name__ else 1, zero_init=True).init_with_output(
    KEY, x
  )
  kernels = {name: bool(leaf['kernel'].any()) for name, leaf in variables['params'].items()}
  assert [name for name, any_ in kernels.items() if not any_] == [max(kernels)]
  np.testing.assert_array_equal(y, x)


def test_preactivation_shares_its_activation_where_the_shape_changes():
  x = IMAGES[..., :2] - 0.1
  activated = 2 * nn.relu(x)
  for features, strides, options, start in (
    (2, 1, {}, x),
    (2, 2, {}, activated),
    (3, 1, {}, activated),
    (3, 2, {'activated': True}, x),
  ):
    layer = block(resnetv2.PreActBasicBlock, features, strides, shortcut=resnet.ZeroPad, **options)
    silent = jax.tree.map(jnp.zeros_like, noise(layer, x))
    y = jax.jit(layer.apply)(silent, x)
    np.testing.assert_allclose(y[..., :2], start[:, ::strides, ::strides], rtol=1e-6)
    assert not y[..., 2:].any()


@pytest.mark.parametrize(('stem', 'smallest'), [('imagenet', 17), ('cifar', 5)])
def test_the_smallest_image_of_the_blurred_resnet(stem, smallest):
  model = models.create('resnetblur50', stem=stem, stage_sizes=(1, 1, 1, 1), features=4)
  shape = lambda side: jax.eval_shape(model.init, KEY, jnp.ones((1, side, side, 3)))
  assert shape(smallest)
  with pytest.raises(UserError, match=f'smallest that works is {smallest}x{smallest}'):
    shape(smallest - 1)


def test_stems_of_every_family():
  for name in ('resnet50d', 'resnetblur50', 'resnetv2_50', 'nf_resnet50'):
    for stem, side in (('imagenet', 8), ('cifar', 32)):
      model = models.create(name, stem=stem, stage_sizes=(1,), features=4)
      run = lambda images, model=model: models.features(
        model, model.init(KEY, images), images, ['stem']
      )
      seen = jax.eval_shape(run, jnp.ones((1, 32, 32, 3)))
      assert seen['stem'].shape == (1, side, side, 4)
    with pytest.raises(UserError, match=r"model\.stem='imagnet'"):
      jax.eval_shape(models.create(name, stem='imagnet').init, KEY, IMAGES)


def test_a_branch_without_normalisation_keeps_the_variance():
  layer = partial(conv, layer=partial(ScaledWSConv, gamma=nf_resnet.RELU_GAIN), use_bias=True)
  module = nf_resnet.NFBottleneck(64, 1, layer, nn.relu, alpha=0.5, beta=1.0)
  rng = np.random.default_rng(0)
  x = jnp.float32(rng.normal(size=(2, 9, 9, 256)))
  params = jax.eval_shape(module.init, KEY, x)['params']
  fill = {
    'kernel': rng.normal,
    'gain': lambda size: np.ones(size),
    'bias': lambda size: np.zeros(size),
  }
  params = {
    name: {kind: jnp.float32(fill[kind](size=leaf.shape)) for kind, leaf in leaves.items()}
    for name, leaves in params.items()
  }
  run = jax.jit(lambda params: (module.apply({'params': params}, x) - x) / 0.5)
  # The zeros around the 3 x 3 take some.
  np.testing.assert_allclose(run(params).var((0, 1, 2)).mean(), 0.9, atol=0.15)
  params['conv3']['gain'] = jnp.zeros(256)
  assert not run(params).any()


def test_expected_variances_start_again_at_every_stage():
  betas = []
  record = lambda f, a, k, context: (
    betas.append(context.module.beta)
    if isinstance(context.module, nf_resnet.NFBottleneck)
    else None,
    f(*a, **k),
  )[1]
  model = models.create('nf_resnet50', stage_sizes=(3, 2), features=4, alpha=0.2)
  with nn.intercept_methods(record):
    jax.eval_shape(model.init, KEY, IMAGES)
  np.testing.assert_allclose(np.power(betas, -2.0), [1, 1.04, 1.08, 1.12, 1.04])


def test_remat_with_stochastic_depth():
  plain, again = (small('nf_resnet50', remat=remat, drop_path_rate=0.5) for remat in (False, True))
  run = lambda model: (
    lambda variables: model.apply(variables, IMAGES, train=True, rngs={'dropout': KEY})
  )
  a, b = (jax.jit(run(model))(variables) for model, variables in (plain, again))
  np.testing.assert_allclose(a, b, rtol=1e-5)
  model, variables = again
  grad = jax.grad(lambda variables: run(model)(variables).sum())
  assert 'remat' in str(jax.make_jaxpr(grad)(variables))
