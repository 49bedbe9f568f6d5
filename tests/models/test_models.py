"""The zoo's contract: exact sizes, names, options, types, features, input errors."""

import csv
import importlib
import inspect
import pathlib
import pkgutil
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cnnjax.layers
import cnnjax.models
from cnnjax import models
from cnnjax.errors import UserError
from cnnjax.layers.norm import BatchNorm, with_batch_norm
from cnnjax.models import resnet
from cnnjax.models.entry import Entry

KEY = jax.random.key(0)
COUNTS = pathlib.Path(__file__).parent / 'reference' / 'model_counts.csv'
with COUNTS.open(newline='') as file:
  TABLE = {row['model']: (int(row['input']), int(row['params'])) for row in csv.DictReader(file)}


def shapes(model, image):
  return jax.eval_shape(partial(model.init, KEY), jax.ShapeDtypeStruct((1, *image), jnp.float32))


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def init(model, images):
  """Variables of the right shapes without compiling an initialiser: He-like noise."""
  rng = np.random.default_rng(1)

  def leaf(path, like):
    noise = rng.normal(size=like.shape)
    if path[-1].key == 'kernel':
      noise = noise * (2 / np.prod(like.shape[:-1])) ** 0.5
    elif path[-1].key in ('scale', 'var'):
      noise = 1 + 0.1 * np.abs(noise)
    return jnp.asarray(noise, jnp.float32)

  return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(partial(model.init, KEY), images))


def small(name, **overrides):
  """The named model, cut down to what a test can afford, and images that suit it."""
  entry = models.REGISTRY[name]
  if name.startswith(('resnet', 'cifar_resnet')):
    overrides = {'stage_sizes': (1, 2), 'features': 8, **overrides}
  model = models.create(name, num_classes=7, **overrides)
  images = np.random.default_rng(0).normal(size=(2, 21, 26, entry.image[-1]))
  return model, jnp.float32(images)


@pytest.mark.parametrize(
  ('name', 'block', 'sizes'),
  [
    ('resnext50_32x4d', {'groups': 32, 'base_width': 4}, (3, 4, 6, 3)),
    ('wide_resnet50_2', {'base_width': 128}, (3, 4, 6, 3)),
  ],
)
def test_a_variant_is_a_partial_of_the_block(name, block, sizes):
  model = resnet.ResNet(sizes, partial(resnet.Bottleneck, **block))
  assert size(shapes(model, (224, 224, 3))['params']) == TABLE[name][1]


def smallest(name):
  """The least side of a square image that the model says it takes."""
  model = models.create(name, num_classes=7)
  try:
    shapes(model, (1, 1, models.REGISTRY[name].image[-1]))
  except UserError as error:
    return int(re.search(r'smallest that works is (\d+)x', str(error))[1])
  return 1


@pytest.mark.parametrize('name', models.names())
def test_any_size_from_the_smallest_on_any_channels_in_float32_and_bfloat16(name):
  side = smallest(name)
  rounded, model = (
    models.create(name, num_classes=7, dtype=dtype) for dtype in ('bfloat16', 'float32')
  )
  images = jax.ShapeDtypeStruct((2, side, side + 3, 2), jnp.float32)
  first, variables = jax.eval_shape(partial(rounded.init_with_output, KEY), images)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  for logits in (first, jax.eval_shape(model.apply, variables, images)):
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
  if side > 1:
    with pytest.raises(UserError, match=f'smallest that works is {side}x{side}'):
      shapes(model, (side + 3, side - 1, 2))


@pytest.mark.parametrize('name', ['lenet5', 'cnn', 'mlp', 'resnet50'])
def test_bfloat16_is_near_float32(name):
  model, images = small(name)
  variables = init(model, images)
  exact = model.apply(variables, images)
  rounded = small(name, dtype='bfloat16')[0].apply(variables, images)
  assert (exact != rounded).any()  # something was computed in bfloat16
  np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())


@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_remat_changes_no_number(name):
  def run(remat):
    model, images = small(name, remat=remat, stage_sizes=(1,))
    variables = init(model, images)

    def loss(params):
      logits, new = model.apply(
        {**variables, 'params': params}, images, train=True, mutable=['batch_stats']
      )
      return jnp.square(logits).sum(), new

    grad = jax.grad(loss, has_aux=True)
    text = str(jax.make_jaxpr(grad)(variables['params']))
    return jax.jit(grad)(variables['params']), 'remat' in text or 'checkpoint' in text

  (plain, without), (again, used) = run(False), run(True)
  assert used
  assert not without
  scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5 * scale), plain, again)


def test_training_updates_statistics_and_evaluation_does_not():
  model, images = small('resnet18')
  variables = init(model, images)
  for train in (True, False):
    _, new = model.apply(variables, images, train=train, mutable=['batch_stats'])
    changed = jax.tree.map(
      lambda a, b: bool((a != b).any()), variables['batch_stats'], new['batch_stats']
    )
    assert set(jax.tree.leaves(changed)) == {train}


@pytest.mark.parametrize(('block', 'last'), [('BasicBlock', 'norm2'), ('Bottleneck', 'norm3')])
def test_zero_init_residual_starts_as_the_shortcut(block, last):
  model = resnet.ResNet((2,), getattr(resnet, block), features=4, zero_init_residual=True)
  images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 3)), jnp.float32)
  variables = model.init(KEY, images)
  params = variables['params']['stage1']['block2']
  assert not params[last]['scale'].any()
  assert params['norm1']['scale'].all()
  seen = models.features(model, variables, images, ['stage1/block1', 'stage1/block2'])
  np.testing.assert_array_equal(seen['stage1/block1'], seen['stage1/block2'])


def test_option_a_shortcut_subsamples_and_pads_with_zeros():
  x = jnp.arange(2 * 5 * 4 * 3, dtype=jnp.float32).reshape(2, 5, 4, 3)
  y = resnet.ZeroPad(5, 2, conv=None, norm=None).apply({}, x)
  np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
  assert y.shape == (2, 3, 2, 5)
  assert not y[..., 3:].any()


def test_stems():
  images = jnp.ones((1, 32, 32, 3))
  for stem, side in (('imagenet', 8), ('cifar', 32)):
    model = models.create('resnet18', stem=stem, stage_sizes=[1], features=4)
    seen = jax.eval_shape(
      lambda images, model=model: models.features(
        model, model.init(KEY, images), images, ['stem', 'stage1']
      ),
      images,
    )
    assert seen['stem'].shape == seen['stage1'].shape == (1, side, side, 4)
  with pytest.raises(UserError, match=r"model\.stem='imagnet'.*'imagenet'"):
    shapes(models.create('resnet18', stem='imagnet'), (32, 32, 3))


def test_other_norms_are_partials_and_words():
  for norm in ('none', 'layer', partial(nn.GroupNorm, num_groups=4), BatchNorm):
    for name in ('cnn', 'mlp', 'resnet18'):
      model, images = small(name, norm=norm)
      variables = jax.eval_shape(partial(model.init, KEY), images)
      assert ('batch_stats' in variables) == (norm is BatchNorm)
  model, images = small('resnet18', norm=partial(BatchNorm, use_running_average=True))
  variables = init(model, images)
  frozen = model.apply(variables, images, train=True)
  np.testing.assert_array_equal(frozen, model.apply(variables, images, train=False))


def test_synchronised_resnet_over_two_devices_equals_one():
  model, images = small('resnet18')
  variables = init(model, images)
  run = lambda model: (
    lambda images: model.apply(variables, images, train=True, mutable=['batch_stats'])
  )
  logits, state = run(model)(images)
  shared = jax.pmap(run(with_batch_norm(model, axis_name='devices')), 'devices')
  split_logits, split_state = shared(images[:, None])
  np.testing.assert_allclose(split_logits[:, 0], logits, rtol=1e-4, atol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(b[0], a, rtol=1e-4, atol=1e-5), state, split_state
  )


def test_cnn_options():
  images = jnp.ones((2, 20, 14, 3))
  count = lambda **options: size(
    shapes(models.create('cnn', num_classes=10, **options), (20, 14, 3))['params']
  )
  base = (28 * 8, 73 * 16)  # features (8, 16)
  assert count(features=[8, 16], dense=[]) == sum(base) + (5 * 3 * 16 + 1) * 10
  assert count(features=[8, 16], dense=[], global_pool=True) == sum(base) + 17 * 10
  assert count(features=[8, 16], dense=[], pool='none') == sum(base) + (20 * 14 * 16 + 1) * 10
  assert count(features=[8], convs=2, dense=[4], kernel_size=5, padding='VALID') == (
    76 * 8 + 201 * 8 + (6 * 3 * 8 + 1) * 4 + 5 * 10
  )
  assert count(features=[8], dense=[], norm='batch') == 27 * 8 + 16 + (10 * 7 * 8 + 1) * 10
  tanh, relu = (
    models.create('cnn', features=(4,), act=act).init_with_output(KEY, images)[0]
    for act in ('tanh', 'relu')
  )
  assert (tanh != relu).any()


@pytest.mark.parametrize('options', [{'dense': (8,)}, {'dense': ()}])
def test_dropout_of_the_cnn_needs_training_and_a_key(options):
  model = models.create('cnn', features=(4,), dropout=0.5, **options)
  images = jnp.ones((4, 8, 8, 1))
  variables = init(model, images)
  plain = model.apply(variables, images)
  np.testing.assert_array_equal(plain, model.apply(variables, images))
  noisy = model.apply(variables, images, train=True, rngs={'dropout': KEY})
  assert (noisy != plain).any()
  _, state = jax.eval_shape(
    lambda: model.apply(variables, images, train=True, rngs={'dropout': KEY}, mutable=['examples'])
  )
  assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(4,)]


def test_features_are_the_outputs_of_submodules():
  model, images = small('resnet50')
  variables = init(model, images)
  everything = jax.jit(partial(models.features, model))(variables, images)
  assert {'stem', 'stem/conv', 'stage1', 'stage2/block2/norm3', 'head'} <= everything.keys()
  assert '' not in everything
  np.testing.assert_allclose(everything['head'], model.apply(variables, images), rtol=1e-4)
  names = ['stage2', 'stage2/block1']
  some = models.features(model, variables, images, names)
  assert list(some) == names
  np.testing.assert_allclose(some['stage2'], everything['stage2'], rtol=1e-3, atol=1e-4)
  np.testing.assert_array_equal(  # the head pools the last stage
    everything['head'],
    resnet.Head(7).apply({'params': variables['params']['head']}, everything['stage2']),
  )
  with pytest.raises(UserError, match="'stage2/blok1' is unknown: did you mean 'stage2/block1'"):
    models.features(model, variables, images, ['stage2/blok1'])


def test_features_with_remat():
  model, images = small('resnet18', remat=True)
  variables = init(model, images)
  plain = models.features(model.clone(remat=False), variables, images, ['stage1/block1'])
  again = models.features(model, variables, images, ['stage1/block1'])
  np.testing.assert_allclose(again['stage1/block1'], plain['stage1/block1'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('options', 'smallest'),
  [
    ({}, 4),
    ({'features': (4, 4, 4)}, 8),
    ({'pool': 'none'}, 1),
    ({'padding': 'VALID', 'kernel_size': 5}, 16),
    ({'padding': 'VALID', 'convs': 2, 'pool': 'avg'}, 16),
  ],
)
def test_the_smallest_image_works_and_the_next_smaller_is_refused(options, smallest):
  model = models.create('cnn', num_classes=3, **options)
  assert jax.tree.leaves(shapes(model, (smallest, smallest, 1)))
  with pytest.raises(UserError, match=f'{smallest - 1}x40 .*smallest.*{smallest}x{smallest}'):
    shapes(model, (smallest - 1, 40, 1))


@pytest.mark.parametrize('name', models.names())
def test_images_that_are_no_images(name):
  model = models.create(name)
  for images, message in (
    (jnp.ones((8, 8, 3)), r'\(8, 8, 3\)'),
    (jnp.ones((1, 32, 32, 3), jnp.uint8), 'uint8'),
    (jnp.ones((1, 0, 32, 3)), '0x32'),
  ):
    with pytest.raises(UserError, match=message):
      jax.eval_shape(partial(model.init, KEY), images)


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('resnet51', {}, r"model\.name='resnet51' is unknown: did you mean 'resnet50'"),
    (
      'lenet5',
      {'dropuot': 0.1},
      r"model.dropuot=0.1 is not an option of 'lenet5'.*Allowed: act, conv, dtype",
    ),
    ('cnn', {'kernal_size': 3}, "did you mean 'kernel_size'"),
    ('cnn', {'parent': None}, 'parent'),
    ('cnn', {'act': 'rellu'}, r"model\.act='rellu' is unknown: did you mean 'relu'"),
    ('cnn', {'dtype': 'float8'}, r"model\.dtype='float8'.*bfloat16"),
    ('cnn', {'norm': 'bach'}, "'batch'"),
    ('cnn', {'features': 32}, r'model\.features=32 must be of type tuple'),
    ('cnn', {'kernel_size': True}, 'must be of type int'),
    ('cnn', {'dropout': '0.5'}, "dropout='0.5' must be of type float"),
    ('resnet18', {'remat': 'yes'}, 'must be of type bool'),
    ('cnn', {'num_classes': 0}, 'num_classes=0'),
  ],
)
def test_mistakes_are_named(name, options, message):
  with pytest.raises(UserError, match=message):
    models.create(name, **options)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'pool': 'maxi'}, "model.pool='maxi'"),
    ({'padding': 'same'}, 'SAME'),
    ({'convs': 0}, 'convs=0'),
    ({'dropout': 1.5}, 'rate=1.5'),
  ],
)
def test_mistakes_in_values_are_named_when_the_model_runs(options, message):
  with pytest.raises(UserError, match=message):
    shapes(models.create('cnn', **options), (28, 28, 1))


def public_functions():
  for package in (cnnjax.layers, cnnjax.models):
    names = [package.__name__] + [
      f'{package.__name__}.{m.name}' for m in pkgutil.iter_modules(package.__path__)
    ]
    for name in names:
      for function in vars(importlib.import_module(name)).values():
        public = inspect.isfunction(function) and not function.__name__.startswith(('_', '<'))
        if public and function.__module__ == name:
          yield pytest.param(function, id=f'{name}.{function.__name__}')


@pytest.mark.parametrize('function', list(public_functions()))
def test_options_are_keyword_only_typed_and_documented(function):
  signature = inspect.signature(function)
  assert function.__doc__
  assert signature.return_annotation is not inspect.Signature.empty
  for p in signature.parameters.values():
    assert p.annotation is not inspect.Parameter.empty
    if (function.__name__, p.name) != ('features', 'names'):  # DESIGN's contract
      assert p.default is p.empty or p.kind is p.KEYWORD_ONLY


def test_every_family_file_is_listed():
  for module in pkgutil.iter_modules(cnnjax.models.__path__):
    variants = getattr(importlib.import_module(f'cnnjax.models.{module.name}'), 'VARIANTS', {})
    assert all(isinstance(entry, Entry) for entry in variants.values())
    assert variants.keys() <= set(models.names())
