import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cnnjax.errors import UserError
from cnnjax.layers.stochastic import Dropout, DropPath
from cnnjax.tasks import Outputs, Task
from cnnjax.tasks.classification import classification

RNG = np.random.default_rng(4)
BATCH = {
  'image': jnp.asarray(RNG.normal(size=(12, 4, 4, 2)), jnp.float32),
  'label': jnp.asarray(RNG.integers(0, 6, 12), jnp.int32),
  'id': jnp.asarray(RNG.permutation(1000)[:12], jnp.int32),
  'mask': jnp.asarray([1] * 10 + [0] * 2, jnp.float32),
}
KEY = jax.random.key(5)


class Net(nn.Module):
  norm: bool = False
  rate: float = 0.0

  @nn.compact
  def __call__(self, images, train=False):
    x = nn.Conv(5, (3, 3), name='stem')(images)
    x = x + DropPath(self.rate)(x, train=train)
    if self.norm:
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name='norm')(x)
    x = Dropout(self.rate)(nn.relu(x).mean(axis=(1, 2)), train=train)
    return nn.Dense(6, name='head')(x)


def rows(batch, index):
  return jax.tree.map(lambda x: x[index], batch)


@pytest.mark.parametrize('norm', [False, True])
def test_init_gives_parameters_and_statistics_alone(norm):
  task = classification(Net(norm=norm, rate=0.5))
  variables = task.init(KEY, BATCH)
  assert set(variables) == ({'params', 'batch_stats'} if norm else {'params'})
  shapes = jax.eval_shape(lambda: BATCH)
  from_shapes = task.init(KEY, shapes)
  jax.tree.map(np.testing.assert_array_equal, variables, from_shapes)
  assert isinstance(task, Task)


def test_mirrored_prediction_is_the_mean_over_both_views():
  task, plain = classification(Net(norm=True), mirror=True), classification(Net(norm=True))
  variables = task.init(KEY, BATCH)
  views = [{'image': x} for x in (BATCH['image'], BATCH['image'][:, :, ::-1])]
  mean = sum(np.asarray(plain.predict(variables, view), np.float64) for view in views) / 2
  first, second = (task.predict(variables, view) for view in views)
  np.testing.assert_allclose(first, mean, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
  assert np.abs(mean - plain.predict(variables, views[0])).max() > 1e-3
  # Training sees the images as they are.
  losses, _ = task.loss(variables, BATCH, key=KEY, train=True)
  np.testing.assert_array_equal(losses, plain.loss(variables, BATCH, key=KEY, train=True)[0])


@pytest.mark.parametrize('mirror', [False, True])
def test_shifted_prediction_is_the_mean_over_five_windows(mirror):
  task, plain = classification(Net(), shift=1, mirror=mirror), classification(Net())
  variables = task.init(KEY, BATCH)
  padded = np.pad(BATCH['image'], ((0, 0), (1, 1), (1, 1), (0, 0)), mode='reflect')
  views = [padded[:, y : y + 4, x : x + 4] for y, x in ((1, 1), (0, 0), (0, 2), (2, 0), (2, 2))]
  if mirror:
    views += [view[:, :, ::-1] for view in views]
  logits = [np.asarray(plain.predict(variables, {'image': v}), np.float64) for v in views]
  got = task.predict(variables, BATCH)
  np.testing.assert_allclose(got, np.mean(logits, axis=0), rtol=1e-4, atol=1e-5)
  assert np.abs(got - logits[0]).max() > 1e-3


def test_a_shift_as_large_as_the_image_is_refused():
  task = classification(Net(), shift=4)
  with pytest.raises(UserError, match=r'eval_shift=4 must be below the image size 4x4'):
    task.predict(classification(Net()).init(KEY, BATCH), BATCH)


def test_features_are_what_goes_into_the_head():
  task = classification(Net(norm=True))
  variables = task.init(KEY, BATCH)
  head = variables['params']['head']
  logits = task.features(variables, BATCH) @ head['kernel'] + head['bias'][None]
  np.testing.assert_allclose(logits, task.predict(variables, BATCH), rtol=1e-5, atol=1e-6)


def test_loss_is_the_cross_entropy_of_the_prediction():
  task = classification(Net())
  variables = task.init(KEY, BATCH)
  losses, outputs = task.loss(variables, BATCH, train=False)
  logits = task.predict(variables, {'image': BATCH['image']})
  np.testing.assert_array_equal(outputs.logits, logits)
  expected = -scipy.special.log_softmax(np.asarray(logits, np.float64), -1)
  np.testing.assert_allclose(losses, expected[np.arange(12), BATCH['label']], rtol=1e-5)
  in_training, _ = task.loss(variables, BATCH, key=KEY, train=True)
  np.testing.assert_allclose(in_training, losses, rtol=1e-6)
  assert outputs == Outputs(outputs.logits, {})


def test_smoothing_changes_the_training_loss_alone():
  plain, smooth = classification(Net()), classification(Net(), label_smoothing=0.3)
  variables = plain.init(KEY, BATCH)
  train = [task.loss(variables, BATCH, train=True)[0] for task in (plain, smooth)]
  evaluation = [task.loss(variables, BATCH, train=False)[0] for task in (plain, smooth)]
  assert not np.allclose(*train)
  np.testing.assert_array_equal(*evaluation)
  logits = plain.predict(variables, BATCH)
  sums = [task.metrics(logits, BATCH) for task in (plain, smooth)]
  jax.tree.map(np.testing.assert_array_equal, *sums)


def test_batch_statistics_update_once_and_only_in_training():
  task = classification(Net(norm=True, rate=0.5))
  variables = task.init(KEY, BATCH)
  _, kept = task.loss(variables, BATCH, train=False)
  jax.tree.map(np.testing.assert_array_equal, kept.batch_stats, variables['batch_stats'])
  still = classification(Net(norm=True))
  _, once = still.loss(variables, BATCH, key=KEY, train=True)
  x = nn.Conv(5, (3, 3)).apply({'params': variables['params']['stem']}, BATCH['image'])
  expected = 0.1 * (2 * x).mean(axis=(0, 1, 2))
  np.testing.assert_allclose(once.batch_stats['norm']['mean'], expected, rtol=1e-4, atol=1e-6)
  _, dropped = task.loss(variables, BATCH, key=KEY, train=True)
  assert jax.tree.structure(dropped.batch_stats) == jax.tree.structure(variables['batch_stats'])


def test_what_is_dropped_depends_on_the_id_not_on_the_place():
  task = classification(Net(rate=0.5))
  variables = task.init(KEY, BATCH)
  loss = jax.jit(functools.partial(task.loss, train=True))
  whole = loss(variables, BATCH, key=KEY)[0]
  order = RNG.permutation(12)
  np.testing.assert_allclose(
    loss(variables, rows(BATCH, order), key=KEY)[0], whole[order], rtol=1e-5
  )
  half = loss(variables, rows(BATCH, slice(6, 12)), key=KEY)[0]
  np.testing.assert_allclose(half, whole[6:], rtol=1e-5)
  others = loss(variables, BATCH | {'id': BATCH['id'] + 1}, key=KEY)[0]
  assert not np.allclose(others, whole, rtol=1e-3)
  assert not np.allclose(loss(variables, BATCH, key=jax.random.key(6))[0], whole, rtol=1e-3)


def test_gradient_flows_and_the_discovery_computes_nothing():
  task, still = classification(Net(rate=0.5)), classification(Net(rate=0.0))
  variables = task.init(KEY, BATCH)

  def cost(task, params):
    return task.loss({'params': params}, BATCH, key=KEY, train=True)[0].mean()

  gradient = jax.grad(functools.partial(cost, task))(variables['params'])
  assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(gradient))
  text = str(jax.make_jaxpr(functools.partial(cost, task))(variables['params']))
  plain = str(jax.make_jaxpr(functools.partial(cost, still))(variables['params']))
  assert text.count('conv_general_dilated[') == plain.count('conv_general_dilated[') == 1


def test_a_few_steps_of_descent_lower_the_cost():
  task = classification(Net(norm=True, rate=0.1), loss='sigmoid_cross_entropy')
  variables = task.init(KEY, BATCH)

  @jax.jit
  def step(variables, key):
    def cost(params):
      losses, outputs = task.loss(variables | {'params': params}, BATCH, key=key, train=True)
      return losses.mean(), outputs

    (value, outputs), gradient = jax.value_and_grad(cost, has_aux=True)(variables['params'])
    params = jax.tree.map(lambda p, g: p - 0.1 * g, variables['params'], gradient)
    return {'params': params, 'batch_stats': outputs.batch_stats}, value

  costs = []
  for i in range(30):
    variables, value = step(variables, jax.random.fold_in(KEY, i))
    costs.append(float(value))
  assert costs[-1] < 0.8 * costs[0]


@pytest.mark.parametrize('loss', ['softmax_cross_entropy', 'sigmoid_cross_entropy'])
def test_metrics_count_every_unmasked_example_once(loss):
  task = classification(Net(), loss=loss)
  variables = task.init(KEY, BATCH)
  sums = task.metrics(task.predict(variables, BATCH), BATCH)
  assert sums['count'] == 10
  summary = task.summarize(sums)
  losses, outputs = task.loss(variables, rows(BATCH, slice(10)), train=False)
  assert summary['loss'] == pytest.approx(float(losses.mean()), rel=1e-5)
  right = outputs.logits.argmax(-1) == BATCH['label'][:10]
  assert summary['accuracy'] == pytest.approx(float(right.mean()))
  assert np.sum(summary['confusion_matrix']) == 10
  json.dumps(summary)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'loss': 'softmax_crossentropy'},
      "loss.name='softmax_crossentropy' is unknown: did you mean 'softmax_cross_entropy'",
    ),
    ({'label_smoothing': 1.0}, 'loss.label_smoothing=1.0 must be a number from 0 to below 1'),
    ({'label_smoothing': 'a'}, "loss.label_smoothing='a'"),
  ],
)
def test_mistakes_are_named(options, message):
  with pytest.raises(UserError) as error:
    classification(Net(), **options)
  assert message in str(error.value)
