"""From config to compiled steps: one device equals two, and numbers of steps are right."""

import jax
import numpy as np
import pytest

from cnnjax import config, models
from cnnjax.data import pipeline, sources
from cnnjax.errors import UserError
from cnnjax.training import checkpoint, experiment

DEVICES = (('pmap', 1), ('pmap', 2), ('shard_map', 2))


def small_config(**overrides):
  """A network with everything that could depend on how a batch is split over devices."""
  c = config.default()
  c.model = {'name': 'cnn', 'features': (4, 8), 'dense': (16,), 'norm': 'batch', 'dropout': 0.3}
  c.augment = 'random_crop(padding=2)|flip_alternating'
  c.batch_size = 16
  c.optimizer.name = 'momentum'
  c.optimizer.learning_rate = 0.05
  for key, value in overrides.items():
    c[key] = value
  return c


def run(c, workdir, strategy, devices, steps=4):
  c.parallel.strategy, c.parallel.devices = strategy, devices
  setup = experiment.create(config.validate(c), str(workdir))
  state = setup.devices.replicate(setup.init())
  history = []
  batches = setup.train_batches(0)
  for _ in range(steps):
    state, metrics = setup.train_step(state, next(batches))
    history.append(jax.device_get(metrics))
  batches.close()
  return setup, state, history


@pytest.mark.parametrize('resident_megabytes', [1024, 0], ids=['resident', 'streamed'])
def test_devices_and_strategies_make_the_same_update(tmp_path, resident_megabytes):
  c = small_config(mix='mixup(alpha=0.2)|cutmix(alpha=1.0)')
  c.data.resident_megabytes = resident_megabytes
  results = [run(c, tmp_path, *how) for how in DEVICES]
  _, reference, history = results[0]
  start = jax.device_get(results[0][0].init())
  moved = max(
    np.abs(np.asarray(a) - b).max()
    for a, b in zip(jax.tree.leaves(reference.params), jax.tree.leaves(start.params), strict=True)
  )
  assert moved > 0.01  # the comparison is of something
  for _, state, other in results[1:]:
    for a, b in zip(jax.tree.leaves(reference), jax.tree.leaves(state), strict=True):
      np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
    for a, b in zip(history, other, strict=True):
      assert (a['count'], a['correct']) == (b['count'], b['correct'])
      np.testing.assert_allclose(a['loss'], b['loss'], rtol=1e-5)


def test_streamed_equals_resident_to_the_bit(tmp_path):
  c = small_config()
  _, resident, _ = run(c, tmp_path, 'pmap', 1)
  c.data.resident_megabytes = 0
  _, streamed, _ = run(c, tmp_path, 'pmap', 1)
  for a, b in zip(jax.tree.leaves(resident), jax.tree.leaves(streamed), strict=True):
    np.testing.assert_array_equal(a, b)


RECIPE = {'micro_batches': 2, 'sam_radius': 0.05, 'ema_decay': 0.9}


def test_recipes_make_the_same_update_on_one_device_and_two(tmp_path):
  """With batch normalisation, too: the parts are of the same rows whatever the devices."""
  c = small_config(batch_size=16, **RECIPE)
  c.optimizer.lookahead = 2
  (_, one, _), (_, two, _) = (run(c, tmp_path, 'pmap', n, steps=3) for n in (1, 2))
  assert set(one.ema) == {'params', 'batch_stats'}
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize('devices', [1, 2])
@pytest.mark.parametrize('ema_decay', [0.0, 0.9])
def test_statistics_taken_anew_are_those_of_the_training_batches(tmp_path, devices, ema_decay):
  c = small_config(augment='', ema_decay=ema_decay, eval_statistics=3)
  setup, state, _ = run(c, tmp_path, 'pmap', devices, steps=2)
  new = setup.recalibrate(state)
  source = sources.load('digits', 'train')
  ids = np.concatenate([pipeline.train_ids(0, step, len(source), 16) for step in range(3)])
  x = source[ids]['image'].astype(np.float32) / 255
  x = (x - np.float32(setup.description['mean'])) / np.float32(setup.description['std'])
  model = models.create('cnn', num_classes=10, **{k: v for k, v in c.model.items() if k != 'name'})
  first = models.features(model, jax.device_get(state.evaluated), x, ['stage1/conv1'])
  first = np.asarray(first['stage1/conv1'], np.float64)
  found = jax.device_get(new.evaluated['batch_stats']['stage1']['norm1'])
  np.testing.assert_allclose(found['mean'], first.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(found['var'], first.var((0, 1, 2)), rtol=5e-3)
  # The parameters, and what training goes on with, are as they were.
  for a, b in zip(
    jax.tree.leaves(state.evaluated['params']),
    jax.tree.leaves(new.evaluated['params']),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def test_features_are_of_every_example_in_order_on_any_devices(tmp_path):
  c = small_config(batch_size=64)
  (setup, state, _), (other, *_) = (run(c, tmp_path, 'pmap', n, steps=1) for n in (1, 2))
  rows, labels = setup.features(state, 'test')
  source = sources.load('digits', 'test')
  np.testing.assert_array_equal(labels, source[np.arange(len(source))]['label'])
  assert rows.shape == (len(source), 8)
  again, labels_again = other.features(other.devices.replicate(jax.device_get(state)), 'test')
  np.testing.assert_allclose(rows, again, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(labels, labels_again)


@pytest.mark.parametrize(('before', 'after'), [(1, 2), (2, 1)])
def test_a_checkpoint_of_some_devices_resumes_on_others(tmp_path, before, after):
  c = small_config()
  setup, reference, _ = run(c, tmp_path, 'pmap', before, steps=2)
  with checkpoint.Checkpoints(str(tmp_path)) as checkpoints:
    checkpoints.save(reference, {})
  for _, batch in zip(range(2), setup.train_batches(2), strict=False):
    reference, _ = setup.train_step(reference, batch)
  c.parallel.devices = after
  setup = experiment.create(config.validate(c), str(tmp_path))
  with checkpoint.Checkpoints(str(tmp_path), read_only=True) as checkpoints:
    state = setup.devices.replicate(checkpoints.restore(setup.init())[0])
  for _, batch in zip(range(2), setup.train_batches(2), strict=False):
    state, _ = setup.train_step(state, batch)
  for a, b in zip(jax.tree.leaves(reference), jax.tree.leaves(state), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize('how', DEVICES)
def test_evaluation_counts_every_example_once(tmp_path, how):
  from cnnjax.training import loop

  setup, state, _ = run(small_config(batch_size=50), tmp_path, *how, steps=1)
  figures = loop.evaluate(setup, state)
  assert np.sum(figures['confusion_matrix']) == setup.description['test_examples']


def test_plain_gradient_descent_uses_every_example_at_every_step(tmp_path):
  c = small_config(batch_size=-1, augment='')
  setup, _, history = run(c, tmp_path, 'pmap', 1, steps=2)
  assert [h['count'] for h in history] == [setup.description['train_examples']] * 2


def test_plan():
  c = config.default()
  c.batch_size, c.epochs, c.schedule.warmup_epochs = 32, 3.0, 0.5
  plan = experiment.make_plan(c, train_size=1000, test_size=70, devices=2)
  assert plan == experiment.Plan(
    batch_size=32, eval_batch_size=32, steps=94, warmup_steps=16, eval_every=31, checkpoint_every=31
  )
  c.steps, c.eval_every, c.checkpoint.every = 7, 3, 2
  c.schedule.warmup_epochs = 0.0
  plan = experiment.make_plan(c, train_size=1000, test_size=9, devices=2)
  assert plan[1:] == (10, 7, 0, 3, 2)
  with pytest.raises(UserError, match='divisible by the number of devices, 3'):
    experiment.make_plan(c, train_size=1000, test_size=9, devices=3)
  c.schedule.warmup_epochs = 1.0
  with pytest.raises(UserError, match='warmup_epochs'):
    experiment.make_plan(c, train_size=1000, test_size=9, devices=1)


def test_statistics_are_stored_and_read_back(tmp_path):
  first = experiment.create(config.validate(small_config()), str(tmp_path)).description
  text = (tmp_path / 'data.json').read_text().replace('"mean": [', '"mean": [9, ')
  (tmp_path / 'data.json').write_text(text)
  again = experiment.create(config.validate(small_config()), str(tmp_path)).description
  assert again['mean'] == [9, *first['mean']]
