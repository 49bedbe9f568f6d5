"""A space as a population: what its study is told, who trains on, and who is copied."""

import json
import math
import os
import runpy
import shutil

import numpy as np
import pytest

from cnnjax import config as config_lib
from cnnjax.cli import NonFinite
from cnnjax.errors import UserError
from cnnjax.sweep import population, population_mode, search, table, worker
from cnnjax.sweep import space as space_lib
from cnnjax.sweep.space import (
  Space,
  choice,
  grid,
  integer,
  log_uniform,
  maximize,
  minimize,
  uniform,
)
from cnnjax.training import writers
from tests.commands import refused, run
from tests.sweep.test_population import compiled_once  # noqa: F401  for every test here

# A network that compiles at once, on the digits; evaluations after 4, 8, 12 and 16 steps.
CONFIG = """
from cnnjax import config

def get_config():
  c = config.default()
  c.model = {'name': 'mlp', 'hidden': (8,)}
  c.steps, c.eval_every, c.log_every, c.checkpoint.every = 16, 4, 8, 16
  c.optimizer.name, c.optimizer.weight_decay = 'momentum', 1e-2
  c.parallel.devices = 1
  c.compilation_cache = False
  return c
"""
DIVERGES = 9e15  # a learning rate: by the decay, weights grow beyond float32 in three steps


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'config.py'
  path.write_text(CONFIG)
  return str(path)


def given(file):
  return runpy.run_path(file)['get_config']()


class Sweeps:
  """Opens sweeps over a config file, as often as a directory's command is started."""

  def __init__(self, file):
    self.file, self.base = file, given(file)

  def open(self, directory, space):
    os.makedirs(directory, exist_ok=True)
    config = config_lib.validate(self.base)
    space = space_lib.validate(space, config)
    url = f'journal:{directory}/sweep.journal'
    study = search.open(space, url=url, name='s', description={}, seed=0)
    study.add_budget(space.trials)
    return worker.Sweep(
      space=space,
      config=config,
      file=self.file,
      base=self.base,
      overrides={},
      directory=str(directory),
      study=study,
      owner='me',
      one_machine=True,
    )


@pytest.fixture
def sweeps(file):
  return Sweeps(file)


def evaluated(directory):
  """Each member's rows of the test split."""
  found = {}
  for row in writers.read(f'{directory}/population'):
    if row['split'] == 'test':
      found.setdefault(row['member'], []).append(row)
  return found


RATE = {'optimizer.learning_rate': log_uniform(1e-4, 1e-1)}


@pytest.mark.parametrize(
  ('space', 'evolution', 'message'),
  [
    (Space({**RATE, 'batch_size': choice(32, 64)}), 'none', 'config.batch_size takes 32 and 64'),
    (Space({'optimizer.name': grid('sgd', 'adam')}), 'none', "config.optimizer.name takes 'sgd'"),
    (Space({'model.hidden': choice((8,), (16,))}), 'none', 'config.model.hidden takes'),
    (
      Space(
        {
          'schedule.name': choice('constant', 'cosine'),
          'optimizer.momentum': uniform(0.5, 0.9, when={'schedule.name': 'cosine'}),
        }
      ),
      'none',
      'config.optimizer.momentum takes 0.5 and 0.9 and None: every member needs a number',
    ),
    (Space(RATE, (minimize('seconds'),)), 'none', "'seconds' is the same for all members"),
    (Space(RATE, (minimize('train/loss'),)), 'pbt', "--evolve=pbt needs a first objective of 'te"),
    (Space(RATE, seeds=2), 'halving', '--evolve=halving and space.seeds=2 exclude each other'),
    (Space(RATE), 'half', "--evolve='half' is unknown"),
  ],
)
def test_what_stops_a_population_is_named(file, space, evolution, message):
  config = config_lib.validate(given(file))
  with pytest.raises(UserError, match=message):
    population_mode.check(space_lib.validate(space, config), config, evolution=evolution)


def test_what_can_be_traced_passes(file):
  config = config_lib.validate(given(file))
  space = Space(
    {
      **RATE,
      'seed': integer(0, 9),
      'loss.label_smoothing': choice(0.0, 0.1),
      'schedule.name': choice('constant', 'cosine'),
      'schedule.warmup_epochs': uniform(0.0, 0.1, when={'schedule.name': 'cosine'}),
    },
    fixed={'optimizer.momentum': 0.9},
  )
  for evolution in population_mode.EVOLVE:
    population_mode.check(space_lib.validate(space, config), config, evolution=evolution)


def test_remarks():
  assert not list(population_mode.remarks(Space(RATE, sampler='quasi_random')))
  sampler, pruner = population_mode.remarks(Space(RATE, sampler='tpe', pruner='median'))
  assert sampler.startswith("space.sampler='tpe' learns from trials that have ended")
  assert pruner.startswith("space.pruner='median' has no part in a population")


def test_bounds_are_the_spaces():
  space = Space(
    {
      **RATE,
      'optimizer.momentum': choice(0.9, 0.5, 0.95),
      'optimizer.weight_decay': grid(0, 1e-2),
      'optimizer.b1': choice(None, 0.9),
      'schedule.name': choice('constant', 'cosine'),
      'seed': integer(0, 9),
      'eval_mirror': choice(False, True),
    }
  )
  assert population_mode.bounds(space) == {
    'optimizer.learning_rate': (1e-4, 1e-1),
    'optimizer.momentum': (0.5, 0.95),
    'optimizer.weight_decay': (0, 1e-2),
  }


def test_scores():
  nan = math.nan
  figures = {'accuracy': np.array([0.5, 0.1, 0.9]), 'loss': np.array([1.0, nan, 0.5])}
  found = population_mode.scores(maximize('test/accuracy'), figures)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, np.float32([0.5, nan, 0.9]))
  found = population_mode.scores(minimize('test/loss'), figures)
  np.testing.assert_array_equal(found, np.float32([-1.0, nan, -0.5]))


def test_every_member_is_a_run_of_a_trial(sweeps, tmp_path, capsys):
  directory = tmp_path / 'sweep'
  rates = grid(0.01, 0.05, DIVERGES)
  objectives = (maximize('test/accuracy'), minimize('train/loss'), minimize('parameters'))
  space = Space({'optimizer.learning_rate': rates}, objectives, sampler='grid', seeds=2)
  sweep = sweeps.open(directory, space)
  population_mode.run(sweep, strategy='vmap')
  rows = writers.read(f'{directory}/population')
  newest = {(row['split'], row['member']): row for row in rows}
  first, second, diverged = sweep.study.trials()
  for found in (first, second):
    members = [2 * found.slot, 2 * found.slot + 1]
    assert found.state == 'complete'
    accuracy, loss, parameters = found.objectives
    np.testing.assert_allclose(accuracy, np.mean([newest['test', m]['accuracy'] for m in members]))
    np.testing.assert_allclose(loss, np.mean([newest['train', m]['loss'] for m in members]))
    assert parameters == 64 * 8 + 8 + 8 * 10 + 10
  assert newest['test', 0]['accuracy'] != newest['test', 1]['accuracy']  # another seed
  assert diverged.state == 'diverged'
  assert diverged.reason == 'the test loss at the end is not finite'

  lines = capsys.readouterr().out.splitlines()
  assert lines[-7] == '6 members made 96 of 96 steps'
  for member, line in enumerate(lines[-6:]):
    assert line.startswith(f'member   {member}  ')
    slot, seed = divmod(member, 2)
    assert f' --workdir={directory}/trials/{slot:04d}/seed{seed} ' in line
    assert f' --config.seed={seed}' in line
    assert f' --config.optimizer.learning_rate={rates.values[slot]!r} ' in line
    assert '#' not in line


def test_halving_stops_members_and_shrinks_the_program(sweeps, tmp_path, capsys):
  directory = tmp_path / 'sweep'
  rates = grid(1e-7, DIVERGES, 0.05)
  space = Space({'optimizer.learning_rate': rates}, sampler='grid')
  sweep = sweeps.open(directory, space)
  population_mode.run(sweep, evolution='halving', strategy='vmap')
  tests, trials = evaluated(directory), sweep.study.trials()
  # Of three, one goes on after evaluation 1.
  first = [rows[0] for rows in tests.values()]
  best, second = (2, 0) if first[2]['accuracy'] > first[0]['accuracy'] else (0, 2)
  assert {member: rows[-1]['step'] for member, rows in tests.items()} == {best: 16, second: 4, 1: 4}
  assert {t.slot: (t.state, t.reason) for t in trials} == {
    best: ('complete', ''),
    second: ('pruned', 'place 2 of 3 after evaluation 1'),
    1: ('diverged', 'the test loss after step 4 is not finite'),
  }
  for found in trials:  # one that diverged has an accuracy still, which isn't told
    values = [row['accuracy'] for row in tests[found.slot] if row['loss'] is not None]
    assert found.reports == dict(enumerate(values, 1))
  assert trials[best].objectives == (tests[best][-1]['accuracy'],)
  programs = json.loads((directory / 'population' / 'population.json').read_text())['programs']
  assert list(programs) == ['3', '1']

  said = capsys.readouterr().out
  assert '3 members made 24 of 48 steps' in said  # 4 + 4 + 16
  assert said.count('  # stopped after step 4\n') == 2

  # Again: there is nothing to do.
  sweep.study.close()
  sweep = sweeps.open(directory, space)
  population_mode.run(sweep, evolution='halving')
  assert '3 members made 24 of 48 steps' in capsys.readouterr().out
  assert sweep.study.trials() == trials


def untimed(directory):
  timed = ('seconds', 'images_per_second')
  rows = writers.read(f'{directory}/population')
  return [{k: v for k, v in row.items() if k not in timed} for row in rows]


def test_population_based_training_goes_on_to_the_bit(sweeps, tmp_path, capsys):
  rates = grid(DIVERGES, 0.09, 1e-7, 0.05)
  space = Space(
    {'optimizer.learning_rate': rates},
    (minimize('test/loss'),),
    sampler='grid',
    fixed={'checkpoint.every': 4, 'checkpoint.keep_last': 4},
  )
  options = {'evolution': 'pbt', 'strategy': 'vmap'}
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  sweep = sweeps.open(whole, space)
  population_mode.run(sweep, **options)
  trials = sweep.study.trials()
  assert [t.state for t in trials] == ['complete'] * 4

  # Who copied whom: the one that diverged at once, each time from the best.
  tests, now = evaluated(whole), dict(enumerate(np.float32(rates.values)))
  assert tests[0][0]['loss'] is None
  rounds = {}
  for row in untimed(whole):
    if row['split'] == 'hypers':
      rounds.setdefault(row['step'], []).append(row)
  assert list(rounds) == [4, 8, 12]
  for number, rows in enumerate(rounds.values()):
    losses = [tests[member][number]['loss'] or math.inf for member in range(4)]
    for row in rows:
      member, parent, rate = row['member'], row['parent'], row['optimizer.learning_rate']
      worst = member == np.argmax(losses)
      assert parent == (np.argmin(losses) if worst else member)
      factors = np.float32([0.8, 1.2]) if worst else np.float32([1.0])
      assert np.isclose(rate, now[parent] * factors, rtol=1e-6).any()
    now = {row['member']: np.float32(row['optimizer.learning_rate']) for row in rows}
  assert all(row['loss'] is not None for rows in tests.values() for row in rows[1:])
  said = capsys.readouterr().out
  assert '4 members made 64 of 64 steps' in said
  parent = rounds[4][0]['parent']
  assert said.count(f"  # as to step 4, then from member {parent}'s state\n") == 1

  # From the first checkpoint, the same command ends with the same bits.
  shutil.copytree(whole, parts, ignore=shutil.ignore_patterns('*.journal'))
  for step in (8, 12, 16):
    shutil.rmtree(parts / 'population' / 'checkpoints' / str(step))
  with pytest.raises(UserError, match="--evolve='none' must be 'pbt', as the population in"):
    population_mode.run(sweeps.open(parts, space))
  sweep = sweeps.open(parts, space)
  population_mode.run(sweep, **options)
  assert 'step  8/16  best' in capsys.readouterr().out
  assert untimed(parts) == untimed(whole)
  for found, expected in zip(table.latest(sweep.study.trials()), trials, strict=True):
    assert (found.state, found.objectives) == ('complete', expected.objectives)
    assert found.reports == expected.reports


def test_a_directory_of_a_search_is_refused(sweeps, tmp_path):
  sweep = sweeps.open(tmp_path / 'sweep', Space(RATE, sampler='random', trials=3))
  sweep.study.complete(sweep.study.claim('me'), (0.5,))
  with pytest.raises(UserError, match='1 of its 3 trials have run as a search'):
    population_mode.run(sweep)
  states = [t.state for t in table.latest(sweep.study.trials())]
  assert states == ['complete', 'waiting', 'waiting']  # left as it was found


def test_members_that_all_diverge_are_told_one_by_one(sweeps, tmp_path, monkeypatch):
  def lost(*args, **options):
    raise NonFinite('no member has a finite loss')

  monkeypatch.setattr(population, 'run', lost)
  sweep = sweeps.open(tmp_path / 'sweep', Space(RATE, sampler='random', trials=3))
  population_mode.run(sweep)
  assert [t.state for t in sweep.study.trials()] == ['diverged'] * 3


SPACE = """
from cnnjax.sweep import space

def get_space():
  return space.Space(
    parameters={'optimizer.learning_rate': space.log_uniform(1e-3, 1e-1)}, trials=2
  )
"""


def test_the_command(file, tmp_path):
  (tmp_path / 'space.py').write_text(SPACE)
  (tmp_path / 'batches.py').write_text(SPACE.replace('optimizer.learning_rate', 'data.timeout'))
  directory = tmp_path / 'sweep'
  common = ('sweep', f'--config={file}', f'--workdir={directory}')
  line = refused(*common, f'--space={tmp_path}/batches.py', '--mode=population')
  assert 'config.data.timeout takes 0.001 and 0.1, but members of one program' in line
  assert not directory.exists()

  given = (*common, f'--space={tmp_path}/space.py', '--mode=population', '--evolve=halving')
  status, out, err = run(*given, '--config.parallel.devices=0', devices=0)
  assert status == 0, err
  assert out.startswith("space.sampler='tpe' learns from trials that have ended")
  assert '2 of 2 trials done: 1 complete, 1 pruned' in out
  assert '2 members made 20 of 32 steps' in out
  assert out.endswith((directory / 'summary.txt').read_text())
  assert '<html' in (directory / 'sweep.html').read_text()
  kept = json.loads((directory / 'evolution.json').read_text())
  assert kept == {'evolve': 'halving', 'trials': 2}
  programs = json.loads((directory / 'population' / 'population.json').read_text())['programs']
  assert programs['2']['devices'] == min(2, len(os.sched_getaffinity(0)))  # a core for each
