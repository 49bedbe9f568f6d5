"""What a worker tells the study, by how a trial's runs end. The runs are small programs."""

import os
import signal
import sys
import threading
from typing import NamedTuple

import pytest

from cnnjax import config as config_lib
from cnnjax.errors import MachineError
from cnnjax.sweep import space as space_lib
from cnnjax.sweep import trial, worker


class Claim(NamedTuple):
  slot: int
  attempt: int
  values: dict


class Attempt(NamedTuple):
  slot: int
  attempt: int
  state: str
  reason: str = ''
  owner: str = 'me'


class Study:
  """A queue in memory that notes what it is told."""

  def __init__(self, slots=1, prune_at=None):
    self.queue = [Claim(slot, 0, {'seed': slot}) for slot in range(slots)]
    self.told, self.reports, self.prune_at, self.alive = [], [], prune_at, True
    self.running = 0
    self.lock = threading.Lock()

  def claim(self, owner):
    with self.lock:
      self.running += bool(self.queue)
      return self.queue.pop(0) if self.queue else None

  def _tell(self, claim, state, what):
    with self.lock:
      self.running -= 1
      self.told.append((claim.slot, claim.attempt, state, what))
    return True

  def complete(self, claim, objectives):
    return self._tell(claim, 'complete', objectives)

  def prune(self, claim, reason):
    return self._tell(claim, 'pruned', reason)

  def diverge(self, claim, reason):
    return self._tell(claim, 'diverged', reason)

  def fail(self, claim, reason):
    return self._tell(claim, 'failed', reason)

  def retry(self, claim, reason):
    self.queue.append(claim._replace(attempt=claim.attempt + 1))
    return self._tell(claim, 'retried', reason)

  def report(self, claim, evaluation, value):
    self.reports.append((claim.slot, evaluation, value))
    return evaluation == self.prune_at

  def beat(self, claim):
    return self.alive

  def recover(self, dead):
    return 0

  def trials(self):
    open_ = [Attempt(c.slot, c.attempt, 'waiting') for c in self.queue]
    open_ += [Attempt(-1, 0, 'running')] * self.running
    return open_ + [Attempt(s, a, state, str(what)) for s, a, state, what in self.told]


# A run: so many evaluations, then its end. `seed` is config.seed.
RUN = """
import os, sys, time
seed, directory = int(sys.argv[1]), sys.argv[2]
def row(step, split, **more):
  with open(directory + '/metrics.jsonl', 'a') as f:
    values = ''.join(', "%s": %s' % pair for pair in more.items())
    f.write('{"step": %d, "split": "%s"%s}\\n' % (step, split, values))
"""
TWO = (
  RUN
  + """
row(5, 'train', seconds=1.5)
row(5, 'test', accuracy=0.5, loss=1.0)
row(10, 'train', seconds=2.5)
row(10, 'test', accuracy=0.25 + seed, loss=2.0)
"""
)
LONG = (
  RUN
  + """
for step in range(1, 500):
  row(step, 'test', accuracy=0.5)
  time.sleep(0.02)
"""
)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
  """Makes a sweep whose runs are a Python program."""

  def make(code, study, **fields):
    def command(file, base, values, expected, *, workdir, pins=None):
      return trial.Command((sys.executable, '-I', '-S', '-c', code, str(expected.seed), workdir))

    monkeypatch.setattr(trial, 'command', command)
    space = space_lib.Space({'seed': space_lib.integer(0, 9)}, **fields)
    config = config_lib.validate(config_lib.default())
    return worker.Sweep(space, config, 'f.py', None, {}, str(tmp_path), study, 'me', True)

  return make


def work(sweep, workers=1):
  shown = []
  worker.work(sweep, workers, shown.append)
  return sweep.study.told


def test_objectives_are_of_the_last_rows_and_reports_in_order(sweep):
  objectives = (
    space_lib.maximize('test/accuracy'), space_lib.minimize('test/loss'),
    space_lib.minimize('seconds'),
  )  # fmt: skip
  s = sweep(TWO, Study(2), objectives=objectives)
  assert work(s) == [(0, 0, 'complete', (0.25, 2.0, 2.5)), (1, 0, 'complete', (1.25, 2.0, 2.5))]
  assert s.study.reports == [(0, 1, 0.5), (0, 2, 0.25), (1, 1, 0.5), (1, 2, 1.25)]


def test_size_and_cost_are_those_of_the_model(sweep):
  objectives = (space_lib.minimize('macs'), space_lib.minimize('parameters'))
  s = sweep(TWO, Study(), objectives=objectives, fixed={'data.image_size': (32, 32)})
  assert work(s) == [(0, 0, 'complete', (416_520, 61_706))]  # LeNet-5, as published
  assert s.study.reports == []


def test_seeds_are_runs_of_their_own_and_the_mean_counts(sweep, tmp_path):
  study = Study()
  study.queue = [Claim(3, 0, {'batch_size': 32})]
  s = sweep(TWO, study, seeds=3)
  assert work(s) == [(3, 0, 'complete', (1.25,))]  # of 0.25, 1.25 and 2.25
  assert study.reports == [(3, 1, 0.5), (3, 2, 0.25)]  # of the first seed
  for seed in range(3):
    assert (tmp_path / 'trials' / '0003' / f'seed{seed}' / 'metrics.jsonl').exists()


@pytest.mark.parametrize(
  ('end', 'expected'),
  [
    ("sys.exit('cnnjax.main: seed=3 is wrong')", [('failed', 'seed=3 is wrong')]),
    ("print('cnnjax.main: no'); sys.exit(2)", [('failed', 'no')]),
    ("print('step 7: the loss is nan'); sys.exit(3)", [('diverged', 'step 7: the loss is nan')]),
    (
      "print('No space left on device'); sys.exit(4)",
      2 * [('retried', 'fault: exit status 4: No space left on device')]
      + [('failed', 'fault: exit status 4: No space left on device (in 3 attempts)')],
    ),
    (
      'os.kill(os.getpid(), 9)',
      2 * [('retried', 'fault: SIGKILL')] + [('failed', 'fault: SIGKILL (in 3 attempts)')],
    ),
    ('pass', [('failed', "space.objectives: 'test/accuracy' is in no row of metrics.jsonl")]),
  ],
)
def test_bad_endings(sweep, end, expected):
  told = work(sweep(RUN + end, Study()))
  assert [(state, what) for _, _, state, what in told] == expected
  assert [attempt for _, attempt, _, _ in told] == list(range(len(expected)))


def test_a_fault_that_passes(sweep):
  code = TWO + "\nif open(directory + '/metrics.jsonl').read().count('\\n') < 8: os.abort()\n"
  told = work(sweep(code, Study()))
  assert told == [(0, 0, 'retried', 'fault: SIGABRT'), (0, 1, 'complete', (0.25,))]


def test_a_pruned_trial_is_ended(sweep):
  s = sweep(LONG, Study(prune_at=3))
  assert work(s) == [(0, 0, 'pruned', 'at 0.5 after evaluation 3')]
  assert s.study.reports == [(0, n, 0.5) for n in (1, 2, 3)]


def test_pruned_at_the_last_evaluation(sweep):
  # Nothing is left to save: it is complete, unless other seeds would follow.
  assert work(sweep(TWO, Study(prune_at=2)))[0][2] == 'complete'
  assert work(sweep(TWO, Study(prune_at=2), seeds=2)) == [
    (0, 0, 'pruned', 'at 0.25 after evaluation 2')
  ]


def test_a_signal_sends_trials_back_to_the_queue(sweep):
  from cnnjax.cli import Stopped

  s = sweep(LONG, Study(2))
  timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM))
  before = signal.getsignal(signal.SIGTERM)
  timer.start()
  with pytest.raises(Stopped, match='SIGTERM: stopped with 0 of 2 trials done') as error:
    work(s)
  assert error.value.status == 143
  assert s.study.told == [(0, 0, 'retried', 'stopped')]
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_trial_that_another_process_has_taken_over_is_left_to_it(sweep, monkeypatch):
  monkeypatch.setattr(worker, '_LOOK', 0.0)
  study = Study()
  study.alive = False
  s = sweep(LONG, study)
  monkeypatch.setattr(worker, 'finished', lambda trials: True)
  assert work(s) == []


def test_a_slot_between_two_attempts_is_not_finished():
  complete, retried = Attempt(0, 0, 'complete'), Attempt(1, 0, 'retried')
  assert worker.finished([complete, Attempt(1, 0, 'retried'), Attempt(1, 1, 'pruned')])
  assert not worker.finished([complete, retried])
  assert not worker.finished([complete, Attempt(1, 0, 'running')])


def test_a_lost_storage_ends_the_workers(sweep):
  class Lost(Study):
    def report(self, claim, evaluation, value):
      raise MachineError('the storage is gone')

  with pytest.raises(MachineError, match='the storage is gone'):
    work(sweep(LONG, Lost(4)), workers=2)
