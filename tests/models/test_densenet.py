"""DenseNet's options; its numbers are in test_golden, test_cases and test_zoo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.errors import UserError

SMALL = {'stage_sizes': (2, 2), 'growth': 4, 'features': 8, 'num_classes': 5}


def images(height, width):
  return jnp.float32(np.random.default_rng(0).normal(size=(2, height, width, 3)))


def noise(model, x):
  """Variables without compiling `init`; positive, as a variance must be."""
  rng = np.random.default_rng(1)
  fill = lambda p: jnp.float32(0.05 + 0.1 * np.abs(rng.normal(size=p.shape)))
  return jax.tree.map(fill, jax.eval_shape(model.init, jax.random.key(0), x))


def test_a_stage_keeps_what_came_before():
  model = models.create('densenet121', **SMALL, stem='cifar')
  x = images(9, 6)
  seen = jax.jit(lambda variables: models.features(model, variables, x))(noise(model, x))
  for stage, before, size in (('stage1', 'stem', (9, 6)), ('stage2', 'stage2/transition', (4, 3))):
    parts = [seen[before], seen[f'{stage}/layer1'], seen[f'{stage}/layer2']]
    np.testing.assert_array_equal(seen[stage], jnp.concatenate(parts, -1))
    assert parts[1].shape == (2, *size, 4)
  assert seen['stage2/transition'].shape[-1] == seen['stage1'].shape[-1] // 2


def test_remat_changes_no_number():
  def run(remat):
    model = models.create('densenet121', **SMALL, stem='cifar', remat=remat)
    variables = noise(model, images(8, 8))

    def loss(params):
      options = {'train': True, 'mutable': ['batch_stats']}
      logits, new = model.apply({**variables, 'params': params}, images(8, 8), **options)
      return jnp.square(logits).sum(), new

    grad = jax.grad(loss, has_aux=True)
    used = 'remat' in str(jax.make_jaxpr(grad)(variables['params']))
    return jax.jit(grad)(variables['params']), used

  (plain, without), (again, used) = run(False), run(True)
  assert used
  assert not without
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
  jax.tree.map(close, plain, again)


def test_dropout_follows_each_layer():
  model = models.create('densenet121', **SMALL, stem='cifar', dropout=0.5)
  x = images(8, 8)
  options = {'rngs': {'dropout': jax.random.key(1)}, 'mutable': True}
  run = lambda variables: model.apply(
    variables, x, train=True, capture_intermediates=True, **options
  )
  _, state = jax.jit(run)(noise(model, x))
  layers = [state['intermediates'][f'stage{i}'][f'layer{j}'] for i in (1, 2) for j in (1, 2)]
  for layer in layers:
    assert 0.35 < (layer['__call__'][0] == 0).mean() < 0.65


@pytest.mark.parametrize(
  ('name', 'options', 'smallest'),
  [('densenet121', {}, 29), ('densenet121', {'stem': 'cifar'}, 8), ('densenet_bc_100_12', {}, 4)],
)
def test_smallest_image(name, options, smallest):
  model = models.create(name, **options)
  run = lambda size: jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x), jnp.zeros((1, size, smallest + 3, 1))
  )
  run(smallest)
  with pytest.raises(UserError, match=f'{smallest}x{smallest}'):
    run(smallest - 1)


def test_unknown_stem_and_compression():
  x = jnp.zeros((1, 32, 32, 3))
  for options, words in (
    ({'stem': 'cifr'}, r'model\.stem.*cifar'),
    ({'compression': 0.0}, r'model\.compression=0'),
  ):
    model = models.create('densenet_bc_100_12', **options)
    with pytest.raises(UserError, match=words):
      model.init(jax.random.key(0), x)
