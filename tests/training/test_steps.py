"""The train step against a gradient step written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
