"""Transfer learning: start from weights that are there, keep some fixed, move others slower."""

import jax
import numpy as np
import pytest

from cnnjax import config, models, pretrained
from cnnjax.errors import UserError
from cnnjax.tasks import classification
from cnnjax.training import experiment, loop, optimizers, warm_start
from cnnjax.training import state as state_lib
from cnnjax.training.checkpoint import Checkpoints

HEAD = ('^head/',)
NAME = 'cifar_resnet20'


def initial(c, *, image=(8, 8, 1), num_classes=10):
  """A state full of sevens of the right shapes, started from `c.init_from`."""
  model = models.create(c.model.name, num_classes=num_classes)
  task = classification.classification(model)
  optimizer = optimizers.create('momentum', 0.1, freeze=c.freeze)
  batch = {'image': np.zeros((1, *image), np.float32)}
  shapes = jax.eval_shape(lambda k: state_lib.init(k, task, optimizer, batch), jax.random.key(0))
  fresh = jax.tree.map(lambda s: np.full(s.shape, 7, s.dtype), shapes)
  options = {'image': image, 'num_classes': num_classes}
  return fresh, warm_start.start(fresh, config.validate(c), optimizer, **options)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """A file of PyTorch weights for one channel and twelve classes; and the variables in it."""
  model = models.create(NAME, num_classes=12)
  images = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(lambda s: rng.random(s.shape, np.float32), shapes)
  path = tmp_path_factory.mktemp('weights') / 'w.npz'
  np.savez(path, **pretrained.to_torch(NAME, variables))
  return str(path), variables


def transfer(**options):
  c = config.default()
  c.model = {'name': NAME}
  for key, value in options.items():
    c[key] = value
  return c


def test_from_a_file_but_for_the_head(weights):
  path, variables = weights
  fresh, state = initial(transfer(init_from=path, init_skip=HEAD))
  assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, fresh)
  assert all(np.all(np.asarray(leaf) == 7) for leaf in jax.tree.leaves(state.params['head']))
  for part in ('stem', 'stage1', 'stage3'):
    jax.tree.map(np.testing.assert_array_equal, state.params[part], variables['params'][part])
  jax.tree.map(np.testing.assert_array_equal, state.batch_stats, variables['batch_stats'])
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))


def small(**overrides):
  c = config.default()
  c.model = {'name': 'cnn', 'features': (4,), 'dense': (6,), 'norm': 'batch'}
  c.batch_size, c.steps, c.optimizer.weight_decay = 16, 3, 0.1
  for key, value in overrides.items():
    c[key] = value
  return c


def start(c, workdir):
  workdir.mkdir(exist_ok=True)
  return experiment.create(config.validate(c), str(workdir)).init()


def test_from_an_earlier_run_and_frozen(tmp_path):
  first = config.validate(small())
  loop.train(first, str(tmp_path / 'first'))
  setup = experiment.create(first, str(tmp_path / 'first'))
  with Checkpoints(str(tmp_path / 'first'), read_only=True) as checkpoints:
    before, _ = checkpoints.restore(setup.init())

  options = {'init_from': str(tmp_path / 'first'), 'init_skip': ('^head/logits',)}
  second = small(**options, freeze=('^stage1/', 'dense1/'), seed=5)
  state = start(second, tmp_path / 'second')
  assert int(state.step) == 0
  fresh = start(small(seed=5), tmp_path / 'second')
  same = jax.tree.map(np.array_equal, state.params, before.params)
  anew = jax.tree.map(np.array_equal, state.params, fresh.params)
  assert all(jax.tree.leaves((same['stage1'], same['head']['dense1'])))
  assert all(jax.tree.leaves(anew['head']['logits']))
  assert not same['head']['logits']['kernel']

  setup = experiment.create(config.validate(second), str(tmp_path / 'second'))
  batches = setup.train_batches(0)
  trained = setup.devices.replicate(state)
  for _ in range(3):
    trained, _ = setup.train_step(trained, next(batches))
  batches.close()
  kept = jax.tree.map(np.array_equal, jax.device_get(trained.params), before.params)
  assert all(jax.tree.leaves(kept['stage1']))
  assert kept['head']['dense1'] == {'kernel': True}
  assert not any(jax.tree.leaves((kept['head']['norm1'], kept['head']['logits'])))
  # Nothing is remembered of what is frozen: two moments of four arrays, and a count.
  assert sum(np.ndim(x) > 0 for x in jax.tree.leaves(trained.opt_state)) == 2 * 4


def test_frozen_statistics_and_a_head_from_zero(tmp_path):
  c = config.validate(small(init_zero=('^head/logits/',), freeze_statistics=True))
  setup = experiment.create(c, str(tmp_path))
  first = setup.init()
  zeros = jax.tree.map(lambda x: not np.any(x), first.params['head'])
  assert zeros['logits'] == {'kernel': True, 'bias': True}
  assert not zeros['dense1']['kernel']
  batches = setup.train_batches(0)
  after, sums = setup.train_step(setup.devices.replicate(first), next(batches))
  batches.close()
  assert sums['loss'] / sums['count'] == pytest.approx(np.log(10))  # no class is preferred
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(after.batch_stats), first.batch_stats)

  # Training sees what evaluation sees.
  rng = np.random.default_rng(0)
  batch = {'image': rng.random((5, 8, 8, 1), np.float32), 'label': np.zeros(5, np.int32)}
  variables = {'params': first.params, 'batch_stats': first.batch_stats}
  variables['params']['head']['logits']['kernel'] += rng.random((6, 10), np.float32)
  _, outputs = setup.task.loss(variables, {**batch, 'id': np.arange(5)}, train=True)
  np.testing.assert_allclose(outputs.logits, setup.task.predict(variables, batch), atol=1e-5)


def test_mistakes(tmp_path, weights):
  path = weights[0]
  for options, message in (
    ({'init_from': path}, r'config\.init_from=.*fc\.weight is \[12, 64\].*config\.init_skip'),
    ({'init_from': 'nosuch'}, 'tf_efficientnet_lite0'),
    ({'init_from': 'tf_efficientnet_lite0'}, f"not of '{NAME}'"),
    ({'init_from': str(tmp_path)}, 'no checkpoints'),
    ({'init_from': path, 'init_skip': ('(',)}, r'config\.init_skip'),
    ({'init_from': path, 'init_skip': HEAD, 'init_zero': ('(',)}, r'config\.init_zero=.*regular'),
    ({'init_zero': ('^haed/',)}, r"config\.init_zero: no parameter matches '\^haed/'"),
    ({'freeze': ('^stag1/',)}, r"freeze: no parameter matches '\^stag1/'"),
  ):
    with pytest.raises(UserError, match=message):
      initial(transfer(**options))


def test_another_runs_checkpoint_must_fit(tmp_path):
  loop.train(config.validate(small(steps=1)), str(tmp_path))
  c = small(init_from=str(tmp_path))
  c.model.dense = (7,)
  with pytest.raises(UserError, match=r'6 arrays .*params/head/dense1/kernel'):
    start(c, tmp_path / 'other')


PARAMS = jax.tree.map(
  lambda n: np.ones(n, np.float32), {'stem': {'kernel': 6}, 'head': {'kernel': 4, 'bias': 2}}
)


def updates(**options):
  optimizer = optimizers.create('sgd', 0.5, **options)
  gradients = jax.tree.map(lambda x: 2 * np.ones_like(x), PARAMS)
  found, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
  stem, head = found['stem'], found['head']
  first = lambda leaf: float(np.asarray(leaf).flat[0])
  return {
    'stem': first(stem['kernel']),
    'kernel': first(head['kernel']),
    'bias': first(head['bias']),
  }


def test_discriminative_learning_rates():
  assert updates() == {'stem': -1, 'kernel': -1, 'bias': -1}
  factors = ('^stem/=0.1', r'bias$=3', 'head=2')
  found = updates(rate_factors=factors)
  assert found == pytest.approx({'stem': -0.1, 'kernel': -2, 'bias': -3})
  # Decay goes with the learning rate: -0.5 * (2 + 1 * 1), times the factor.
  found = updates(rate_factors=factors, weight_decay=1.0)
  assert found == pytest.approx({'stem': -0.15, 'kernel': -3, 'bias': -3})


def test_no_gradient_of_what_is_frozen():
  def loss(variables, batch):
    stem, head = variables['params']['stem'], variables['params']['head']
    return jax.numpy.sin(stem['kernel']).sum() * head['kernel'].sum() * batch

  spared = optimizers.spare_frozen(loss, ('^stem/',))
  variables = {'params': PARAMS, 'batch_stats': {}}
  found, whole = (jax.grad(f)(variables, 2.0)['params'] for f in (spared, loss))
  assert not np.any(found['stem']['kernel'])
  assert np.all(np.asarray(whole['stem']['kernel']) > 0)
  np.testing.assert_array_equal(found['head']['kernel'], whole['head']['kernel'])
  # Nothing of the frozen part goes back: its cosine isn't there.
  assert 'cos' not in str(jax.make_jaxpr(jax.grad(spared))(variables, 2.0))


def test_frozen_parameters_are_not_in_the_clipped_norm():
  # The gradient's norm without the stem is 2 * sqrt(6).
  found = updates(freeze=('^stem/',), clip_norm=1.0, weight_decay=1.0, no_decay=())
  assert found['stem'] == 0
  assert found['kernel'] == pytest.approx(-0.5 * (1 / 6**0.5 + 1), rel=1e-5)


@pytest.mark.parametrize('name', sorted(optimizers.OPTIMIZERS))
def test_every_optimizer_freezes_and_scales(name):
  params = {part: {'kernel': np.ones((3, 4), np.float32)} for part in 'abc'}
  optimizer = optimizers.create(
    name, 0.1, weight_decay=0.01, freeze=('^a/',), rate_factors=('^b/=0.5',)
  )
  gradients = jax.tree.map(np.ones_like, params)
  found, _ = optimizer.update(gradients, optimizer.init(params), params)
  assert not np.any(found['a']['kernel'])
  assert np.all(np.asarray(found['c']['kernel']) < 0)
  np.testing.assert_allclose(found['b']['kernel'], 0.5 * found['c']['kernel'], rtol=1e-6)


@pytest.mark.parametrize('factors', [('stem',), ('stem=x',), ('(=1',), ('stem=-1',), ('nosuch=1',)])
def test_mistakes_in_rate_factors(factors):
  with pytest.raises(UserError, match=r'optimizer\.rate_factors'):
    updates(rate_factors=factors)


def test_published_weights_start_a_run():
  c = transfer(init_from='tf_efficientnet_lite0', init_skip=HEAD)
  c.model.name = 'tf_efficientnet_lite0'
  _, state = initial(c, image=(64, 64, 3), num_classes=3)
  assert np.all(np.asarray(state.params['head']['logits']['kernel']) == 7)
  assert not np.any(np.asarray(state.params['stem']['conv']['kernel']) == 7)
