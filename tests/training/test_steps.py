"""The train step against a gradient step written out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax.tasks import Outputs, Task
from cnnjax.training import state as state_lib
from cnnjax.training import steps


def linear_task():
  """Least squares of a linear map: losses (w . x - y)^2."""

  def init(key, batch):
    del key, batch
    return {'params': {'w': jnp.zeros(3)}}

  def loss(variables, batch, *, key=None, train):
    del key, train
    prediction = batch['image'] @ variables['params']['w']
    return (prediction - batch['label']) ** 2, Outputs(jnp.stack([prediction] * 2, axis=-1), {})

  return Task(init=init, loss=loss, metrics=None, predict=None, summarize=None)


def test_update_is_gradient_descent_on_the_masked_mean():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(6, 3)).astype(np.float32), np.arange(6, dtype=np.int32)
  mask = np.array([1, 1, 0, 1, 1, 0], np.float32)
  task, optimizer = linear_task(), optax.sgd(0.1)
  state = state_lib.init(jax.random.key(0), task, optimizer, {'image': x})
  step = steps.make_train_step(
    task, optimizer, key=jax.random.key(1), preprocess=lambda key, images, ids, train: images
  )
  batch = {'image': x, 'label': y, 'id': np.arange(6), 'mask': mask}
  new, metrics = jax.jit(step)(state, batch)

  kept = mask > 0
  gradient = (2 * (0 - y[kept])[:, None] * x[kept]).mean(axis=0)
  np.testing.assert_allclose(new.params['w'], -0.1 * gradient, rtol=1e-5)
  np.testing.assert_allclose(metrics['gradient_norm'], np.linalg.norm(gradient), rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], (y[kept] ** 2).sum(), rtol=1e-6)
  assert (int(metrics['count']), int(new.step)) == (4, 1)


def test_a_masked_example_may_hold_anything():
  x = np.ones((2, 3), np.float32)
  x[1] = np.inf
  task, optimizer = linear_task(), optax.sgd(0.1)
  state = state_lib.init(jax.random.key(0), task, optimizer, {'image': x})
  step = steps.make_train_step(
    task, optimizer, key=jax.random.key(1), preprocess=lambda key, images, ids, train: images
  )
  batch = {
    'image': x, 'label': np.ones(2, np.int32), 'id': np.arange(2),
    'mask': np.array([1, 0], np.float32),
  }  # fmt: skip
  _, metrics = step(state, batch)
  assert float(metrics['loss']) == 1.0


def test_what_is_drawn_depends_on_seed_step_and_id_alone():
  drawn = []

  def preprocess(key, images, ids, train):
    assert train
    drawn.append(jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(ids))
    return images

  task, optimizer = linear_task(), optax.sgd(0.1)
  x = np.ones((4, 3), np.float32)
  state = state_lib.init(jax.random.key(0), task, optimizer, {'image': x})
  ids = np.array([5, 8, 2, 9])

  def draw(seed, state, ids):
    step = steps.make_train_step(task, optimizer, key=jax.random.key(seed), preprocess=preprocess)
    batch = {'image': x[: len(ids)], 'label': np.ones(len(ids), np.int32), 'id': ids}
    new, _ = step(state, {**batch, 'mask': np.ones(len(ids), np.float32)})
    return np.asarray(drawn[-1]), new

  first, later = draw(1, state, ids)
  np.testing.assert_array_equal(draw(1, state, ids[::-1])[0], first[::-1])
  np.testing.assert_array_equal(draw(1, state, ids[:2])[0], first[:2])
  assert not np.any(draw(1, later, ids)[0] == first)
  assert not np.any(draw(2, state, ids)[0] == first)


def least_squares(seed=0, rows=6):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(rows, 3)).astype(np.float32)
  return x, {
    'image': x, 'label': rng.integers(0, 4, rows), 'id': np.arange(rows),
    'mask': np.array([1, 1, 0, 1, 1, 1], np.float32),
  }  # fmt: skip


def gradient(w, batch):
  kept = batch['mask'] > 0
  x, y = batch['image'][kept].astype(np.float64), batch['label'][kept]
  return (2 * (x @ w - y)[:, None] * x).mean(axis=0)


def trained(updates, rate=0.1, ema=False, **options):
  """States after each update of least squares by gradient descent, and the metrics."""
  x, batch = least_squares()
  task, optimizer = linear_task(), optax.sgd(rate)
  state = state_lib.init(jax.random.key(0), task, optimizer, {'image': x}, ema=ema)
  step = steps.make_train_step(
    task, optimizer, key=jax.random.key(1), preprocess=lambda key, images, ids, train: images,
    **options,
  )  # fmt: skip
  step = jax.jit(step, donate_argnums=0)
  history = []
  for _ in range(updates):
    state, metrics = step(state, batch)
    history.append(jax.device_get((state, metrics)))
  return history


@pytest.mark.parametrize('micro_batches', [2, 3, 6])
def test_micro_batches_add_up_to_the_batch(micro_batches):
  for (a, x), (b, y) in zip(trained(2), trained(2, micro_batches=micro_batches), strict=True):
    np.testing.assert_allclose(a.params['w'], b.params['w'], rtol=1e-5)
    for name in x:
      np.testing.assert_allclose(x[name], y[name], rtol=1e-5)


def test_a_micro_batch_is_every_kth_row_and_they_run_in_order():
  """Statistics of each part overwrite those before: what stays are the last part's."""
  task = linear_task()

  def loss(variables, batch, *, key=None, train):
    losses, outputs = task.loss(variables, batch, key=key, train=train)
    return losses, outputs._replace(batch_stats={'ids': batch['id']})

  state = state_lib.init(jax.random.key(0), task, optax.sgd(0.1), {'image': np.ones((6, 3))})
  state = dataclasses.replace(state, batch_stats={'ids': jnp.zeros(2, jnp.int32)})
  step = steps.make_train_step(
    task._replace(loss=loss), optax.sgd(0.1), key=jax.random.key(1), micro_batches=3,
    preprocess=lambda key, images, ids, train: images,
  )  # fmt: skip
  _, batch = least_squares()
  new, _ = step(state, {**batch, 'id': jnp.arange(6, dtype=jnp.int32)})
  np.testing.assert_array_equal(new.batch_stats['ids'], [2, 5])


def test_sharpness_aware_minimisation_by_hand():
  radius = 0.3
  _, batch = least_squares()
  w = np.zeros(3)
  for state, metrics in trained(3, sam_radius=radius):
    g = gradient(w, batch)
    g = gradient(w + radius * g / np.linalg.norm(g), batch)
    w = w - 0.1 * g
    np.testing.assert_allclose(state.params['w'], w, rtol=1e-4)
    np.testing.assert_allclose(metrics['gradient_norm'], np.linalg.norm(g), rtol=1e-4)


def test_moving_average_by_hand():
  a = np.zeros(3)
  for t, (state, _) in enumerate(trained(40, ema=True, ema_decay=0.5), start=1):
    keep = min(0.5, (1 + t) / (10 + t))
    a = keep * a + (1 - keep) * state.params['w'].astype(np.float64)
    np.testing.assert_allclose(state.ema['params']['w'], a, rtol=1e-4)
    assert state.evaluated is state.ema
  assert keep == 0.5  # the warm-up is over, so both branches were taken
  assert trained(1)[0][0].ema is None


def test_evaluation_uses_the_moving_average():
  (state, _), *_ = trained(1, ema=True, ema_decay=0.5)
  x, batch = least_squares()
  task = linear_task()._replace(
    predict=lambda variables, batch: batch['image'] @ variables['params']['w'],
    metrics=lambda logits, batch: {'sum': logits.sum()},
  )
  step = steps.make_eval_step(task, preprocess=lambda key, images, ids, train: images)
  got = step(state, batch)['sum']
  np.testing.assert_allclose(got, (x @ state.ema['params']['w']).sum(), rtol=1e-4)
  assert abs(got - (x @ state.params['w']).sum()) > 1e-3


def test_visits_are_the_epoch_plus_a_bit_of_each_example():
  seen = []

  def preprocess(key, images, ids, train, visits):
    seen.append(visits)
    return images

  task, optimizer = linear_task(), optax.sgd(0.1)
  n = 400
  batch = {
    'image': np.ones((n, 3), np.float32), 'label': np.ones(n, np.int32), 'id': np.arange(n),
    'mask': np.ones(n, np.float32), 'epoch': np.arange(n, dtype=np.int32) // 100,
  }  # fmt: skip
  state = state_lib.init(jax.random.key(0), task, optimizer, batch)

  def bits(seed, state):
    step = steps.make_train_step(task, optimizer, key=jax.random.key(seed), preprocess=preprocess)
    new, _ = step(state, batch)
    return np.asarray(seen[-1]) - batch['epoch'], new

  first, later = bits(1, state)
  assert set(first) == {0, 1}
  assert abs(first.sum() - n / 2) <= 4 * n**0.5 / 2
  np.testing.assert_array_equal(bits(1, later)[0], first)  # the same at every step of the run
  assert (bits(2, state)[0] != first).any()


def test_mixing_comes_after_augmentation_with_a_key_of_the_step():
  keys = []

  def mix(key, batch, *, axis_name):
    assert axis_name is None
    keys.append(jax.random.key_data(key))
    augmented = batch['image'][:, 0].astype(int)  # 2
    return {**batch, 'label': batch['label'] + augmented}

  task, optimizer = linear_task(), optax.sgd(0.1)
  batch = {
    'image': np.ones((2, 3), np.float32), 'label': np.ones(2, np.int32), 'id': np.arange(2),
    'mask': np.ones(2, np.float32),
  }  # fmt: skip
  state = state_lib.init(jax.random.key(0), task, optimizer, batch)
  step = steps.make_train_step(
    task, optimizer, key=jax.random.key(1), mix=mix,
    preprocess=lambda key, images, ids, train: 2 * images,
  )  # fmt: skip
  state, metrics = step(state, batch)
  assert float(metrics['loss']) == 2 * 3**2
  step(state, batch)
  assert (keys[0] != keys[1]).any()
