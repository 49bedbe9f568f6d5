"""State dicts in and out: strict, exact, and open to another head."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from cnnjax import models, pretrained
from cnnjax.errors import UserError
from cnnjax.pretrained import layout
from tests.models import golden

CLASSES = 1000


@pytest.fixture(scope='module')
def state():
  return golden.load('resnet18')[0]


def assert_identical(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], strict=True)


def test_round_trip_keeps_every_bit(state):
  state = state | {'bn1.num_batches_tracked': np.array(12345678901, np.int64)}
  state['conv1.weight'] = state['conv1.weight'].copy()
  state['conv1.weight'].flat[:4] = -0.0, 1e-45, np.inf, np.nan
  variables = pretrained.from_torch('resnet18', state)
  back = pretrained.to_torch('resnet18', variables)
  assert_identical(back, state)
  assert np.signbit(back['conv1.weight'].flat[0])
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(variables['params']))


def test_without_counts_of_batches(state):
  """Older weights don't have them; weights trained here get zeros."""
  old = {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')}
  variables = pretrained.from_torch('resnet18', old)
  assert_identical(pretrained.to_torch('resnet18', variables), old)
  trained = {k: variables[k] for k in ('params', 'batch_stats')}
  assert_identical(pretrained.to_torch('resnet18', trained), state)
  del state['bn1.num_batches_tracked']
  with pytest.raises(UserError, match=r'1 missing: bn1\.num_batches_tracked'):
    pretrained.from_torch('resnet18', state)
  state['bn1.num_batches_tracked'] = np.zeros((), np.int64)


def test_all_that_is_wrong_is_listed(state):
  state = dict(state)
  del state['layer1.0.conv1.weight'], state['bn1.running_var']
  state['foo.weight'] = np.zeros(3, np.float32)
  state['bn1.bias'] = state['bn1.bias'][None]
  state['bn1.weight'] = np.ones(64, np.int32)
  state['fc.weight'] = state['fc.weight'].T
  with pytest.raises(UserError) as error:
    pretrained.from_torch('resnet18', state)
  message = str(error.value)
  assert len(message.splitlines()) == 1
  for part in (
    '2 missing: ',
    'layer1.0.conv1.weight',
    'bn1.running_var',
    '1 extra: foo.weight',
    '3 mis-shaped: ',
    'bn1.bias is [1, 64], not [64]',
    'bn1.weight is int32, not floating point',
    'fc.weight is [512, 1000], not [1000, 512]',
  ):
    assert part in message
  with pytest.raises(UserError, match=r'102 missing: .*, \.\.\.'):
    pretrained.from_torch('resnet18', {'foo': np.zeros(3)})


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_widths_become_float32(state, dtype):
  narrow = {k: v.astype(dtype) if v.dtype == np.float32 else v for k, v in state.items()}
  variables = pretrained.from_torch('resnet18', narrow)
  kernel = variables['params']['stem']['conv']['kernel']
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(
    kernel, narrow['conv1.weight'].astype(np.float32).transpose(2, 3, 1, 0)
  )


def test_another_head(state):
  key = jax.random.key(3)
  variables = pretrained.from_torch('resnet18', state, num_classes=7, skip_head=True, key=key)
  model = models.create('resnet18', num_classes=7)
  shapes = jax.eval_shape(model.init, key, jnp.zeros((1, 64, 64, 3)))
  for part in ('params', 'batch_stats'):
    assert jax.tree.map(np.shape, variables[part]) == jax.tree.map(np.shape, shapes[part])
  # The head is what the model's own initialisation would make of the key; the rest is imported.
  expected = jax.jit(lambda k: model.init(k, jnp.zeros((1, 64, 64, 3)))['params']['head'])(key)
  jax.tree.map(np.testing.assert_array_equal, variables['params']['head'], expected)
  whole = pretrained.from_torch('resnet18', state)
  body = lambda v: {k: x for k, x in v['params'].items() if k != 'head'}
  jax.tree.map(np.testing.assert_array_equal, body(variables), body(whole))

  without = {k: v for k, v in state.items() if not k.startswith('fc.')}
  assert pretrained.from_torch('resnet18', without, skip_head=True)['params']['head']
  with pytest.raises(UserError, match=r'fc\.weight is \[1000, 512\], not \[7, 512\]'):
    pretrained.from_torch('resnet18', state, num_classes=7)
  with pytest.raises(UserError, match=r'2 missing: fc\.'):
    pretrained.from_torch('resnet18', without)


def test_channels_stem_and_dropped_entries(state):
  grey = state | {'conv1.weight': state['conv1.weight'][:, :1], 'aux1.fc.weight': np.ones((3, 3))}
  with pytest.raises(UserError, match='aux1'):
    pretrained.from_torch('resnet18', grey, image=(224, 224, 1))
  variables = pretrained.from_torch('resnet18', grey, image=(224, 224, 1), drop=('^aux',))
  assert variables['params']['stem']['conv']['kernel'].shape == (7, 7, 1, 64)
  small = state | {'conv1.weight': state['conv1.weight'][..., :3, :3]}
  variables = pretrained.from_torch('resnet18', small, stem='cifar')
  assert variables['params']['stem']['conv']['kernel'].shape == (3, 3, 3, 64)


def test_unknown_names(state):
  with pytest.raises(UserError, match='resnet18'):
    pretrained.from_torch('resnt18', state)
  with pytest.raises(UserError, match='no public PyTorch weights'):
    pretrained.from_torch('mlp', state)
  with pytest.raises(UserError, match='no public PyTorch weights'):
    pretrained.to_torch('mlp', {})


def rule(kind, shape, *, flatten=None):
  names = layout._Names('resnet18', None)
  names.flatten = {'head/logits': flatten} if flatten else {}
  return names.rule('head/logits', kind, shape)


def test_a_flattened_map_changes_its_order():
  """A dense layer after a flatten gives PyTorch's result for the same image."""
  rng = np.random.default_rng(0)
  images, weight = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(7, 5 * 3 * 4))
  theirs = images.transpose(0, 3, 1, 2).reshape(2, -1) @ weight.T
  found = rule('kernel', (60, 7), flatten=(5, 3, 4))
  assert (found.name, found.shape) == ('fc.weight', (7, 60))
  np.testing.assert_allclose(images.reshape(2, -1) @ found.ours(weight), theirs)
  np.testing.assert_array_equal(found.theirs(found.ours(weight)), weight)


@pytest.mark.parametrize(
  ('shape', 'theirs', 'order'),
  [
    ((3, 5, 2, 7), (7, 2, 3, 5), 'hwio->oihw'),
    ((3, 1, 1), (1, 1, 3), 'wio->oiw'),
    ((4, 6), (6, 4), 'io->oi'),
  ],
)
def test_kernels(shape, theirs, order):
  kernel = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  found = rule('kernel', shape)
  assert found.shape == theirs
  np.testing.assert_array_equal(found.theirs(kernel), np.einsum(order, kernel))
  np.testing.assert_array_equal(found.ours(found.theirs(kernel)), kernel)


def test_shapes_that_only_pytorch_has_survive(state):
  """A dense layer that is a 1 x 1 convolution there."""
  state = state | {'fc.weight': state['fc.weight'][:, :, None, None]}
  variables = pretrained.from_torch('resnet18', state)
  assert variables['params']['head']['logits']['kernel'].shape == (512, 1000)
  assert_identical(pretrained.to_torch('resnet18', variables), state)


def test_models_ignore_the_collection_torch(state):
  """And parameters that nest one module in another are found."""
  variables = pretrained.from_torch('resnet18', state)
  assert 'num_batches_tracked' in variables['torch']['stage1']['block1']['norm1']
  model, images = models.create('resnet18'), jnp.ones((1, 33, 47, 3))
  rest = {k: v for k, v in variables.items() if k != 'torch'}
  apply = jax.jit(model.apply)
  np.testing.assert_array_equal(apply(variables, images), apply(rest, images))
