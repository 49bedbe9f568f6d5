"""Every member of a population is what its separate run is."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from cnnjax import config as config_lib
from cnnjax.cli import NonFinite, Stopped
from cnnjax.data import pipeline
from cnnjax.errors import UserError
from cnnjax.sweep import population, space
from cnnjax.training import checkpoint, experiment, loop, metrics, writers

STEPS = 4
# Numbers that are 0 in some, seeds beyond int32, schedules of several kinds.
POINTS = [
  {
    'seed': 3,
    'optimizer.learning_rate': 0.05,
    'optimizer.weight_decay': 0.0,
    'loss.label_smoothing': 0.1,
    'schedule.name': 'constant',
    'augment': 'random_crop(padding=1)|flip_horizontal(probability=0.25)',
  },
  {
    'seed': 2**31 + 7,
    'optimizer.learning_rate': 0.02,
    'optimizer.weight_decay': 0.1,
    'loss.label_smoothing': 0.0,
    'schedule.name': 'cosine',
    'schedule.warmup_epochs': 0.02,
    'augment': 'random_crop(padding=1)|flip_horizontal(probability=0.5)',
  },
  {
    'seed': 2**32 - 1,
    'optimizer.learning_rate': 0.1,
    'optimizer.weight_decay': 0.01,
    'optimizer.momentum': 0.5,
    'loss.label_smoothing': 0.2,
    'schedule.name': 'one_cycle',
    'schedule.options.peak': 0.5,
    'augment': 'random_crop(padding=1)|flip_horizontal(probability=1)',
  },
]


def network():
  """Convolutions, batch normalisation, dropout, augmentation, moving averages; four steps."""
  c = config_lib.default()
  c.model = {'name': 'cnn', 'features': (4,), 'dense': (), 'norm': 'batch', 'dropout': 0.3}
  c.batch_size, c.steps, c.ema_decay = 16, STEPS, 0.9
  c.optimizer.name, c.optimizer.momentum = 'momentum', 0.9
  c.parallel.devices = 1
  return config_lib.validate(c)


def perceptron(**changes):
  """One that compiles at once."""
  c = config_lib.default()
  c.model = {'name': 'mlp', 'hidden': (8,)}
  c.batch_size, c.steps, c.eval_every, c.log_every = 64, 6, 2, 3
  c.optimizer.name, c.parallel.devices = 'momentum', 1
  return space.apply(config_lib.validate(c), changes)


def same(a, b, **tolerance):
  """Equal arrays, to the bit without a tolerance; an optimizer may be of other, empty tuples."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, **(tolerance or {'rtol': 0, 'atol': 0}))


@pytest.fixture(scope='module', autouse=True)
def compiled_once(tmp_path_factory):
  """Runs that are resumed find their programs, as those of commands do."""
  options = {
    'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('programs')),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
  }
  before = {name: getattr(jax.config, name) for name in options}
  for values in (options, before):
    compilation_cache.reset_cache()
    for name, value in values.items():
      jax.config.update(name, value)
    if values is options:
      yield


@pytest.fixture(scope='module')
def separate(tmp_path_factory):
  """State, metrics of each step and test figures of each point, in a run of its own."""
  runs, setup = [], None
  for i, point in enumerate(POINTS):
    setup = experiment.create(space.apply(network(), point), str(tmp_path_factory.mktemp(str(i))))
    state, history = setup.init(), []
    for _, batch in zip(range(STEPS), setup.train_batches(0), strict=False):
      state, found = setup.train_step(state, batch)
      history.append(jax.device_get(found))
    runs.append((jax.device_get(state), history))
  return [(state, history, loop.evaluate(setup, state)) for state, history in runs]


def together(directory, points, c=None, **options):
  """The same of all points in one program."""
  made = population.create(c or network(), points, str(directory), **options)
  state, hypers = made.place((made.init(), made.hypers))
  history, first = [], 0
  while first < STEPS:
    number = min(made.most_steps, STEPS - first) if first else 1
    state, found = made.train(state, hypers, first, number)
    history += [jax.tree.map(lambda x, i=i: x[i], jax.device_get(found)) for i in range(number)]
    first += number
  return jax.device_get(state), history, made.evaluate(state, hypers)


def holds(runs, found, **tolerance):
  state, history, figures = found
  for i, (own, steps, test) in enumerate(runs):
    same(own, population.take(state, i), **tolerance)
    for mine, all in zip(steps, history, strict=True):
      same(mine, population.take(all, i) | {'correct': mine['correct']}, **tolerance)
      assert mine['data'] == all['data'][i]  # the same examples
    for name in ('loss', 'accuracy', 'expected_calibration_error'):
      np.testing.assert_allclose(figures[i][name], test[name], rtol=1e-3)
    assert np.sum(figures[i]['confusion_matrix']) == 359  # every example once


CLOSE = {'rtol': 5e-4, 'atol': 5e-5}


def test_members_side_by_side_equal_separate_runs(tmp_path, separate):
  holds(separate, together(tmp_path, POINTS, strategy='vmap'), **CLOSE)
  kernels = [state.params['stage1']['conv1']['kernel'] for state, *_ in separate]
  assert np.abs(kernels[0] - kernels[1]).max() > 0.1  # the comparison is of something


def test_members_one_after_the_other_equal_separate_runs(tmp_path, separate):
  holds(separate, together(tmp_path, POINTS, strategy='loop'), rtol=5e-5, atol=5e-6)


RATES = [{'optimizer.learning_rate': rate, 'seed': i} for i, rate in enumerate((0.01, 0.1, 0.03))]


def test_a_loop_over_members_is_equal_to_the_bit(tmp_path):
  """Where nothing that the compiler folds differs, and no convolution, whose sums it may fuse."""
  c = perceptron(**{'model.dropout': 0.3, 'schedule.name': 'cosine'})
  state, history, _ = together(tmp_path, RATES[:2], c, strategy='loop')
  setup = experiment.create(space.apply(c, RATES[1]), str(tmp_path))
  own = setup.init()
  for step, batch in zip(range(STEPS), setup.train_batches(0), strict=False):
    own, found = setup.train_step(own, batch)
    same(found, population.take(history[step], 1))
  same(own, population.take(state, 1))


def test_chunks_and_devices_change_nothing(tmp_path):
  points = [{**RATES[i % 3], 'seed': i} for i in range(6)]
  found = []
  for devices, chunk in ((1, 6), (2, 2)):  # on two devices, chunks of 2 and of 1
    (directory := tmp_path / str(devices)).mkdir()
    c = perceptron(**{'parallel.devices': devices})
    found.append(together(directory, points, c, strategy='vmap', chunk=chunk))
    chosen = json.loads((directory / 'population.json').read_text())['programs']['6']
    assert (chosen['devices'], chosen['chunk']) == (devices, chunk)
  same(*(states_and_metrics for *states_and_metrics, _ in found), rtol=1e-5, atol=1e-6)
  for a, b in zip(*(figures for *_, figures in found), strict=True):
    np.testing.assert_allclose(a['loss'], b['loss'], rtol=1e-5)
  with pytest.raises(UserError, match=r'config.parallel.devices=2 must divide the 3 members'):
    population.create(c, RATES, str(tmp_path))


def test_one_order_is_shared(tmp_path):
  c = perceptron(seed=7)
  made = population.create(c, RATES[:2], str(tmp_path), order='shared', strategy='loop')
  _, found = made.train(*made.place((made.init(), made.hypers)), 0, 1)
  ids = pipeline.train_ids(7, 0, made.description['train_examples'], c.batch_size)
  batch = {'id': ids, 'label': np.zeros(len(ids), np.int32)}
  sums = metrics.training_sums(jnp.zeros(len(ids)), jnp.zeros((len(ids), 10)), batch)
  np.testing.assert_array_equal(found['data'][0], [sums['data']] * 2)


def halve(step, figures, state, hypers, key):
  """The better one of two and its rate twice; a rate is drawn for the other, which stops."""
  assert jax.random.key_data(key).shape == (2,)
  assert set(figures) >= {'accuracy', 'loss'}
  rates = hypers['optimizer.learning_rate']
  hypers = {**hypers, 'optimizer.learning_rate': 2 * rates}
  return state, hypers, np.argsort(-figures['loss'])[-1:] if step == 4 else None, None


def test_a_run_that_is_resumed_is_the_one_that_never_stopped(tmp_path):
  """With members that stop, and hyper-parameters that change, on the way."""
  options = {'on_evaluation': halve, 'strategy': 'vmap'}
  whole, parts = str(tmp_path / 'whole'), str(tmp_path / 'parts')
  last = population.run(perceptron(), RATES[:2], whole, **options)

  def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return halve(*arguments)

  for step in (3, 5):
    with pytest.raises(Stopped, match=f'SIGTERM: stopped after step {step}'):
      population.run(perceptron(), RATES[:2], parts, **options | {'on_evaluation': interrupted})
  assert population.run(perceptron(), RATES[:2], parts, **options) == last
  assert population.run(perceptron(), RATES[:2], parts, **options) == last  # it is finished
  one, other = (checkpoint.Checkpoints(d, read_only=True).read() for d in (whole, parts))
  same(one, other)
  clocked = {'seconds', 'images_per_second'}
  rows = [
    [{k: v for k, v in row.items() if k not in clocked} for row in writers.read(d)]
    for d in (whole, parts)
  ]
  assert rows[0] == rows[1]
  told = [(row['step'], row['split'], row['member']) for row in rows[0]]
  best = last.index(max(last, key=lambda row: row['step']))
  early = [(2, 'test'), (2, 'hypers'), (3, 'train'), (4, 'test'), (4, 'hypers')]
  assert told[:-2] == [(*row, member) for row in early for member in (0, 1)]
  assert told[-2:] == [(6, 'train', best), (6, 'test', best)]
  rates = [r['learning_rate'] for r in rows[0] if r['split'] == 'train' and r['member'] == best]
  np.testing.assert_allclose(rates, np.multiply(RATES[best]['optimizer.learning_rate'], [2, 4]))
  # The member that stopped is in the checkpoint as it was.
  assert one['params/stage1/dense/kernel'].shape == (2, 64, 8)


def test_a_member_that_diverges_leaves_the_others_alone(tmp_path):
  keys = 'optimizer.learning_rate', 'optimizer.weight_decay'
  points = [dict(zip(keys, numbers, strict=True)) for numbers in ((0.05, 0.0), (9e15, 9e15))]
  good, bad = population.run(perceptron(), points, str(tmp_path / 'both'), strategy='vmap')
  assert good['accuracy'] > 0.2
  assert good['loss'] < 2.3
  assert bad['loss'] is None
  with pytest.raises(NonFinite, match='no member has a finite loss'):
    population.run(perceptron(), points[1:], str(tmp_path / 'none'))


def test_a_member_becomes_an_ordinary_run(tmp_path):
  c = perceptron()
  rows = population.run(c, RATES[:2], str(tmp_path / 'all'), strategy='loop')
  made = population.create(c, RATES[:2], str(tmp_path / 'all'))
  with checkpoint.Checkpoints(str(tmp_path / 'all'), read_only=True) as checkpoints:
    state, _ = checkpoints.restore(made.init())
  alone = str(tmp_path / 'alone')
  population.save_member(made, state, 1, alone)
  found = loop.evaluate_checkpoint(made.configs[1], alone)
  assert found['step'] == 6
  for name in ('loss', 'accuracy'):
    np.testing.assert_allclose(found[name], rows[1][name], rtol=1e-4)


def test_mistakes_are_told_in_one_line(tmp_path):
  def refused(message, points=RATES, options=None, **changes):
    with pytest.raises(UserError, match=message):
      population.create(perceptron(**changes), points, str(tmp_path), **(options or {}))

  refused("order='any' is unknown", options={'order': 'any'})
  refused("strategy='all' is unknown", options={'strategy': 'all'})
  refused('chunk=-1 must be an integer', options={'chunk': -1})
  refused(r'config.eval_probes=\(.knn.,\): a population has none', eval_probes=('knn',))
  refused(r"config.data.resident_megabytes=0: 'digits' must fit", **{'data.resident_megabytes': 0})
  population.create(perceptron(), RATES, str(tmp_path))
  refused('holds another population, with other points', points=RATES[:2])
  refused('holds another population, with other order', options={'order': 'shared'})
