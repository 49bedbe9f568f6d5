"""Beyond the given logits: odd and non-square images, batches, gradients, running statistics.

The references are PyTorch's definitions in float64 (`make_cases.py`), from the same weights; ours
is float32. Differences are relative to the largest logit, and to an array's own norm.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax import models, pretrained
from tests.models import golden, quick

FOLDER = golden.FOLDER.parent / 'cases'
NAMES = sorted(path.stem for path in FOLDER.glob('*.npz'))
TRAINED = []
for _name in NAMES:
  with np.load(FOLDER / f'{_name}.npz') as _file:
    if 'loss' in _file:
      TRAINED.append(_name)


def create(name, **options):
  return models.create(name, num_classes=models.REGISTRY[name].num_classes, **options)


def load(name):
  with np.load(FOLDER / f'{name}.npz') as file:
    case = dict(file)
  state = golden.state_dict(name, case['names'], case['shapes'])
  return case, state, pretrained.from_torch(name, state)


@pytest.mark.parametrize('name', NAMES)
def test_logits_and_names(name):
  case, state, variables = load(name)
  apply = jax.jit(create(name).apply, compiler_options=quick.UNOPTIMISED)
  ours = apply(variables, golden.images(case['input']))
  assert np.abs(ours - case['logits']).max() <= 1e-4 * np.abs(case['logits']).max()

  back = pretrained.to_torch(name, variables)
  assert back.keys() == state.keys()
  for entry, value in state.items():
    assert (back[entry].dtype, back[entry].shape) == (value.dtype, value.shape)
    assert np.array_equal(back[entry], value)  # ten times as fast as NumPy's own assertion


@pytest.mark.parametrize('name', TRAINED)
def test_training_mode(name):
  """In float64: float32 decides the slope of ReLU near 0 by rounding, and some pixels' gradients
  differ altogether. PyTorch's own float32 gradients are up to 2 % off its float64 ones.
  """
  with jax.enable_x64(True):
    _check_training_mode(name)


def _check_training_mode(name):
  with np.load(FOLDER / f'{name}.npz') as file:
    case = dict(file)
  which, cut = ('names', 'shapes'), {}
  if 'train_stages' in case:  # deep stages of equal blocks are cut to two
    which, cut = ('train_names', 'train_shapes'), {'stage_sizes': case['train_stages'].tolist()}
  variables = pretrained.from_torch(name, golden.state_dict(name, *map(case.get, which)), **cut)
  images = jnp.float64(golden.images(case['train_input']))
  model = _without_dropout(create(name, dtype=jnp.float64, **cut))
  variables = {
    part: tree if part == 'torch' else jax.tree.map(jnp.float64, tree)
    for part, tree in variables.items()
  }

  def loss(params, rest):
    logits, updated = model.apply(
      {**rest, 'params': params}, images, train=True, mutable=['batch_stats']
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(images)))
    return losses.mean(), updated.get('batch_stats', {})

  rest = {k: v for k, v in variables.items() if k == 'batch_stats'}
  step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=quick.HARDLY_OPTIMISED)
  (value, statistics), gradients = step(variables['params'], rest)
  found = pretrained.to_torch(
    name, {'params': gradients, 'batch_stats': statistics, 'torch': variables['torch']}
  )
  found = {k: v for k, v in found.items() if not k.endswith('num_batches_tracked')}
  assert found.keys() == set(case['keys'].tolist())

  np.testing.assert_allclose(value, case['loss'], rtol=1e-5)
  # A bias before batch normalisation has no gradient but noise, which is to the others' scale.
  floor = 1e-4 * np.median(case['norms'])
  statistics, gradients = [], []
  for key, norm, probe in zip(case['keys'].tolist(), case['norms'], case['probes'], strict=True):
    errors = golden.probe(key, found[key]) - probe, np.linalg.norm(found[key]) - norm
    if golden.is_statistic(key):
      statistics.append(np.abs(errors).max() / norm)
    else:
      gradients.append(max(np.abs(errors).max() - floor, 0) / (norm + floor))
  assert max(statistics, default=0) < 1e-5
  assert max(gradients) < 1e-5


def _without_dropout(model):
  """The model with every rate of dropout and stochastic depth at 0."""
  rates = [field for field in ('dropout', 'drop_path_rate') if hasattr(model, field)]
  return model.clone(**dict.fromkeys(rates, 0.0))
