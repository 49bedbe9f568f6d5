"""Whatever the command line says of a config: a valid one, or one line that says what isn't."""

import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from hypothesis import event, given, settings
from hypothesis import strategies as st

from cnnjax import cli, config, main
from cnnjax.errors import UserError
from cnnjax.training import experiment
from tests.commands import bounded, is_one_line

pytestmark = pytest.mark.filterwarnings(
  'ignore:the load_module:DeprecationWarning'
)  # ml_collections

FILE = 'experiments/digits/lenet5.py'
DEFAULT = dict(config.leaves(config.default()))

numbers = st.integers() | st.integers(-3, 70) | st.floats()
words = st.text(max_size=20) | st.sampled_from(
  ('', 'None', 'True', 'cosine', 'one_cycle', 'step', 'adam', 'muon', 'mlp', 'relu', 'batch', '[',
   'rotate(degrees=3)', 'cutmix(alpha=1e-9)', 'mixup()', '1:2', '9:1', '^head/', '(', 'folder:')
)  # fmt: skip
plain = st.recursive(
  numbers | words | st.none() | st.booleans(),
  lambda inner: (
    st.lists(inner, max_size=4).map(tuple)
    | st.lists(inner, max_size=4)
    | st.dictionaries(words, inner, max_size=3)
  ),
  max_leaves=6,
)
values = numbers.map(str) | words | plain.map(repr)
keys = (
  st.sampled_from(sorted(DEFAULT))
  | st.sampled_from(('model', 'optimizer', 'schedule.options', 'model.name', 'model.act'))
  | st.text(max_size=12)
  | st.tuples(st.sampled_from(('model', 'optimizer', 'schedule.options', 'data', 'seed')),
              st.text(max_size=8)).map('.'.join)
)  # fmt: skip


def parsed(overrides):
  """The config of these flags, as `main` gets it; None where they are refused by one line."""
  arguments = ['cnnjax', f'--config={FILE}', '--workdir=unused']
  arguments += [f'--config.{key}={value}' for key, value in overrides]
  before = sys.argv
  with flagsaver.flagsaver():
    flags.FLAGS.unparse_flags()
    sys.argv = arguments  # where the flag of a config file looks for its overrides
    try:
      with bounded():
        cli._parse(arguments)
        return config.validate(main._CONFIG.value)
    except UserError as error:
      is_one_line(error)
      return None
    finally:
      sys.argv = before


def test_no_override_is_valid():
  assert parsed([]) is not None


@given(st.lists(st.tuples(keys, values), min_size=1, max_size=4))
def test_any_override(overrides):
  checked = parsed(overrides)
  if checked is not None:
    assert config.validate(checked).to_dict() == checked.to_dict() or 'nan' in str(checked)
    assert checked.to_json()  # as the working directory keeps it


OPTIONS = {
  'model.name': st.sampled_from(('lenet5', 'mlp', 'cnn', 'lenet5_1998', 'airbench94', 'lenet')),
  **{
    f'model.{name}': st.integers(-2, 9) | st.floats(-1, 2) | words | plain
    for name in ('features', 'dense', 'convs', 'pool', 'act', 'norm', 'dtype', 'num_classes',
                 'kernel_size', 'dropout', 'width', 'conv', 'parent', 'name_', 'global_pool')
  },
  **{
    f'schedule.options.{name}': numbers | plain
    for name in ('end_factor', 'boundaries', 'factor', 'peak', 'start_factor', 'shape', 'x')
  },
  'schedule.name': st.sampled_from(('constant', 'linear', 'step', 'cosine', 'one_cycle', 'sin')),
  'data.name': st.sampled_from(('digits', 'folder:', 'folder:/dev/null', 'tfds:', 'mnist:x')),
  'data.image_size': st.tuples(numbers, numbers) | st.tuples(st.integers(1, 40), st.integers(1, 40))
  | st.just((8000, 8000)),
}  # fmt: skip
FIELDS = st.sampled_from(sorted({*DEFAULT, *OPTIONS} - {'parallel.devices', 'init_from'}))


@settings(max_examples=15)  # compiles
@given(
  st.lists(
    FIELDS.flatmap(lambda key: st.tuples(st.just(key), OPTIONS.get(key, numbers | words | plain))),
    min_size=1,
    max_size=3,
  )
)
def test_any_experiment(tmp_path_factory, overrides):
  """What `validate` passes builds an experiment, whose state can be made, or is refused."""
  checked = parsed([(key, value if isinstance(value, str) else repr(value))
                    for key, value in overrides])  # fmt: skip
  if checked is None:
    return
  event('validated')
  try:
    with bounded(megabytes=2048):
      setup = experiment.create(checked, str(tmp_path_factory.mktemp('run')))
      setup.init()
  except UserError as error:
    is_one_line(error)
    return
  event('built')
  for step in (0, setup.plan.steps - 1):
    assert np.isfinite(float(setup.schedule(step)))
