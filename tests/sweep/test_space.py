"""Spaces: what can be declared, what is refused and how, and what a point makes of a config."""

import pathlib

import pytest

from cnnjax import config as config_lib
from cnnjax.errors import UserError
from cnnjax.sweep import space
from tests.commands import is_one_line

SWEEPS = pathlib.Path(__file__).parent.parent.parent / 'experiments/sweeps'
RATE = 'optimizer.learning_rate'


def base():
  return config_lib.validate(config_lib.default())


def refused(parameters, **fields):
  with pytest.raises(UserError) as error:
    space.validate(space.Space(parameters, **fields), base())
  is_one_line(error.value)
  return str(error.value)


@pytest.mark.parametrize(
  ('parameter', 'words'),
  [
    (space.log_uniform(0.0, 1.0), 'log_uniform(0.0, 1.0) must start above 0'),
    (space.log_uniform(-1.0, 1.0), 'must start above 0'),
    (space.uniform(0.1, 0.1), 'the smaller first'),
    (space.uniform(0.0, float('inf')), 'two numbers'),
    (space.uniform('a', 'b'), 'two numbers'),
    (space.integer(1, 2.5), 'two integers'),
    (space.grid(), 'grid() is empty'),
    (space.choice(0.1, 0.1), 'has a value twice'),
    (space.choice(0.1, {1: 2}), '{1: 2} must be None, a number, a string or a tuple'),
    (space.choice(0.1, 'fast'), "config.optimizer.learning_rate='fast' must be of type float"),
    (0.1, 'must be uniform(...)'),
    (space.choice(0.1, when={'epochs': 2.0}), 'must be a parameter that stands before it'),
  ],
)
def test_bad_parameters(parameter, words):
  message = refused({RATE: parameter})
  assert RATE in message
  assert words in message


def test_other_mistakes():
  one = {RATE: space.log_uniform(1e-4, 1e-1)}
  assert "did you mean 'optimizer.learning_rate'" in refused({'optimizer.learn_rate': one[RATE]})
  assert "'epochs' is no group" in refused({'epochs.more': one[RATE]})
  assert 'must be in [0, 1)' in refused({'loss.label_smoothing': space.uniform(0.0, 1.0)})
  assert 'must be a dict' in refused({})
  assert "space.sampler='tpee' is unknown: did you mean 'tpe'" in refused(one, sampler='tpee')
  assert 'space.pruner' in refused(one, pruner='mean')
  assert 'space.trials=0' in refused(one, trials=0)
  assert 'space.seeds=True' in refused(one, seeds=True)
  assert 'needs grid(VALUES)' in refused(one, sampler='grid')
  assert 'among the parameters as well' in refused(one, fixed={RATE: 0.1})
  assert 'config.epochs=0.0 must be more than 0' in refused(one, fixed={'epochs': 0.0})
  assert 'exclude each other' in refused({'seed': space.integer(0, 9)}, seeds=2)
  too_many = {'seed': space.integer(0, 200), 'batch_size': space.integer(1, 200)}
  assert 'more than 10000 points' in refused(too_many, sampler='grid')
  never = {'optimizer.name': space.choice('sgd', 'adam')}
  never[RATE] = space.choice(0.1, when={'optimizer.name': 'lion'})
  assert "when optimizer.name='lion' never holds" in refused(never)


def test_objectives():
  one = {RATE: space.choice(0.1)}
  message = refused(one, objectives=(space.maximize('test/acuracy'),))
  assert "did you mean 'test/accuracy'" in message
  assert 'macs' in message
  both = (space.maximize('test/accuracy'), space.minimize('macs'))
  assert 'needs one objective, not 2' in refused(one, objectives=both, pruner='median')
  assert "of 'test/'" in refused(one, objectives=(space.minimize('seconds'),), pruner='median')
  assert 'twice' in refused(one, objectives=both[:1] * 2)
  assert 'maximize(NAME)' in refused(one, objectives=('test/accuracy',))
  # What the probes write is there when the config asks for them, and then only.
  probe = (space.maximize('probe/knn_accuracy'),)
  assert 'is unknown' in refused(one, objectives=probe)
  space.validate(space.Space(one, probe, fixed={'eval_probes': ('knn',)}), base())
  space.validate(space.Space(one, both), base())


def test_grid_of_conditional_parameters():
  parameters = {
    'optimizer.name': space.grid('adamw', 'nesterov'),
    'optimizer.momentum': space.grid(0.8, 0.9, when={'optimizer.name': 'nesterov'}),
    'seed': space.integer(0, 1),
  }
  points = space.grid_points(space.Space(parameters))
  name, momentum = 'optimizer.name', 'optimizer.momentum'
  assert points == [
    {name: 'adamw', 'seed': 0},
    {name: 'adamw', 'seed': 1},
    {name: 'nesterov', momentum: 0.8, 'seed': 0},
    {name: 'nesterov', momentum: 0.8, 'seed': 1},
    {name: 'nesterov', momentum: 0.9, 'seed': 0},
    {name: 'nesterov', momentum: 0.9, 'seed': 1},
  ]


def test_apply_sets_the_values_and_nothing_else():
  config = base()
  values = {
    'model.name': 'cnn',
    'model.features': (8, 16),
    RATE: 1,  # as people write numbers
    'optimizer.momentum': 0.5,
    'schedule.options.peak': 0.2,
    'steps': 7,
    'augment': 'rotate(degrees=10)|flip_horizontal',
  }
  changed = space.apply(config, values)
  before, after = (dict(config_lib.leaves(c)) for c in (config, changed))
  assert after == {**before, **values}
  assert isinstance(after[RATE], float)
  assert config.optimizer.learning_rate == 1e-3  # the config that was given stays
  again = space.apply(changed, {'steps': None, 'optimizer.momentum': None})
  assert again.steps is None
  assert again.optimizer.momentum is None
  assert again.model.name == 'cnn'


def test_description_tells_spaces_apart():
  one = space.Space({RATE: space.log_uniform(1e-4, 1e-1)}, fixed={'epochs': 2.0})
  same, other = one._replace(trials=99), one._replace(fixed={'epochs': 3.0})
  assert space.describe(one) == space.describe(same) != space.describe(other)
  assert space.describe(one)['parameters'][RATE]['high'] == 0.1


def test_files(tmp_path):
  def message(text):
    path = tmp_path / 'space.py'
    path.write_text(text)
    with pytest.raises(UserError) as error:
      space.load(str(path))
    is_one_line(error.value)
    return str(error.value)

  assert 'no function get_space()' in message('x = 1')
  assert 'ZeroDivisionError' in message('1 / 0')
  assert 'SyntaxError' in message('def')
  assert 'must give a Space, not int' in message('def get_space(): return 1')
  with pytest.raises(UserError, match='does not exist'):
    space.load(str(tmp_path / 'nowhere.py'))


@pytest.mark.parametrize('path', sorted(SWEEPS.glob('*.py')), ids=lambda p: p.stem)
def test_spaces_of_the_repository(path):
  """Each is valid for the config that its docstring's command names."""
  text = path.read_text()
  (config,) = (word.partition('=')[2] for word in text.split() if word.startswith('--config='))
  assert f'--space=experiments/sweeps/{path.name}' in text
  get_config = space.runpy.run_path(str(SWEEPS.parent.parent / config))['get_config']
  space.validate(space.load(str(path)), config_lib.validate(get_config()))
