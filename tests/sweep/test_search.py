"""The search: what samplers choose, who gets which trial, and what is left after a kill."""

import contextlib
import importlib.util
import itertools
import json
import math
import os
import pathlib
import sqlite3
import subprocess
import sys
import tempfile
import threading

import pytest

from cnnjax.errors import MachineError, UserError
from cnnjax.sweep import search, space
from tests.commands import ROOT, is_one_line
from tests.sweep import postgres, searcher

NAME, RATE, MOMENTUM = 'optimizer.name', 'optimizer.learning_rate', 'optimizer.momentum'
MIXED = space.Space(
  {
    NAME: space.choice('adamw', 'nesterov', None),
    RATE: space.log_uniform(1e-4, 1e-1),
    MOMENTUM: space.uniform(0.8, 0.99, when={NAME: ('nesterov', None)}),
    'model.features': space.choice((8, 16), (16, 32, 64), ()),
    'model.convs': space.integer(1, 3),
    'batch_size': space.integer(8, 256, log=True),
    'model.flag': space.grid(True, 1, 1.0, 0),
  }
)
NUMBERS = space.Space(
  {
    RATE: space.log_uniform(1e-4, 1e-1),
    MOMENTUM: space.uniform(0.8, 0.99),
    'batch_size': space.integer(8, 256, log=True),
  }
)
LINE = space.Space({'x': space.uniform(0.0, 1.0)})
DIGITS = space.Space({'a': space.grid(1, 2), 'b': space.grid(0.1, 0.2, 0.3)}, sampler='grid')


@pytest.fixture
def folder():
  """In memory where that can be had: storages wait for the disk at every write."""
  memory = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
  with tempfile.TemporaryDirectory(dir=memory) as path:
    yield pathlib.Path(path)


def opened(url, s, *, seed=0, name='test'):
  return search.open(s, url=str(url), name=name, description=space.describe(s), seed=seed)


@contextlib.contextmanager
def studying(url, s, **options):
  study = opened(url, s, **options)
  try:
    yield study
  finally:
    study.close()


def score(values):
  """Best at a learning rate of 1e-2, with momentum."""
  return values.get(MOMENTUM, 0.5) - abs(math.log10(values[RATE]) + 2)


def work(study, most=math.inf, owner='me'):
  """Claims and completes; returns what the trials were."""
  done = []
  while len(done) < most and (claim := study.claim(owner)):
    assert study.complete(claim, (score(claim.values),))
    done.append(claim.values)
  return done


def check(values, s):
  """A point as its space declares it, to the type."""
  for key, parameter in s.parameters.items():
    assert (key in values) == space.active(parameter, values)
    value = values.get(key, parameter.low)
    if parameter.values and key in values:
      assert any(value == v and type(value) is type(v) for v in parameter.values)
    elif not parameter.values:
      assert parameter.low <= value <= parameter.high
      assert type(value) is (int if parameter.kind == 'integer' else float)


@pytest.mark.parametrize('sampler', ['random', 'quasi_random', 'tpe', 'cma_es', 'gaussian_process'])
def test_samplers_choose_what_is_declared(sampler, folder):
  s = (NUMBERS if sampler == 'cma_es' else MIXED)._replace(sampler=sampler)
  package = {'cma_es': 'cmaes', 'gaussian_process': 'torch'}.get(sampler)
  if package and not importlib.util.find_spec(package):
    with pytest.raises(UserError, match=f"needs the package '{package}'") as error:
      opened(f'journal:{folder}/j', s)
    is_one_line(error.value)
    return
  with studying(f'journal:{folder}/j', s) as study:
    study.add_budget(15)
    done = work(study)
  assert len(done) == 15
  for values in done:
    check(values, s)
  numbers = [values[RATE] for values in done]
  assert len(set(numbers)) == 15
  with studying(f'journal:{folder}/j', s) as study:  # as another process reads them
    trials = study.trials()
  assert [trial.values for trial in trials] == done
  assert [repr(trial.values) for trial in trials] == [repr(values) for values in done]
  assert [trial.objectives for trial in trials] == [(score(values),) for values in done]
  assert {(t.state, t.attempt, t.owner, t.reason) for t in trials} == {('complete', 0, 'me', '')}
  assert all(t.finished >= t.started > 1.7e9 for t in trials)


def test_tpe_learns(folder):
  """A control for the sampler being asked at all: later trials are better than random ones."""
  means = {}
  for sampler in ('tpe', 'random'):
    s = NUMBERS._replace(sampler=sampler)
    with studying(f'journal:{folder}/{sampler}', s) as study:
      study.add_budget(30)
      means[sampler] = sum(map(score, work(study)[15:])) / 15
  assert means['tpe'] > means['random'] + 0.2


def test_grid(folder):
  url = f'journal:{folder}/j'
  points = [{'a': a, 'b': b} for a, b in itertools.product((1, 2), (0.1, 0.2, 0.3))]
  with studying(url, DIGITS) as study:
    study.add_budget(2)
    study.add_budget(4)
    assert [trial.values for trial in study.trials()] == points[:4]  # known while they wait
    study.add_budget(100)
    assert [study.claim('me').values for _ in points] == points
    assert study.claim('me') is None


@pytest.mark.parametrize(('sampler', 'url'), [
  ('tpe', 'sqlite:///{}/s.db'), ('random', 'journal:{}/j'), ('cma_es', 'journal:{}/j'),
])  # fmt: skip
def test_resumed_sweep_draws_as_the_uninterrupted_one(sampler, url, folder, monkeypatch):
  if sampler == 'cma_es':
    pytest.importorskip('cmaes')
  s = (NUMBERS if sampler == 'cma_es' else MIXED)._replace(sampler=sampler)
  url, trials = url.format(folder), 18
  with studying(url, s, name='a') as study:
    study.add_budget(trials)
    expected = work(study)
  assert len(expected) == trials
  found = []
  for part in (5, 6, 2, math.inf):
    with studying(url, s, name='b') as study:
      study.add_budget(trials)
      study.recover(lambda trial: True)
      found += work(study, part)
      cut_off = study.claim('me')  # and the process dies
  assert cut_off is None
  assert found == expected
  # Another one dies while the sampler chooses, three times in different places.
  whole, count = search._suggest, itertools.count()

  def dies(trial, key, parameter):
    if next(count) in (4, 9, 40):
      raise KeyboardInterrupt
    return whole(trial, key, parameter)

  monkeypatch.setattr(search, '_suggest', dies)
  found = []
  with studying(url, s, name='c') as study:
    study.add_budget(trials)
    for _ in range(4):
      study.recover(lambda trial: True)
      with contextlib.suppress(KeyboardInterrupt):
        while claim := study.claim('me'):
          study.complete(claim, (score(claim.values),))
          found.append(claim.values)
    assert next(count) > 41
  assert found == expected


def test_a_retried_trial_keeps_its_values(folder):
  with studying(f'sqlite:///{folder}/s.db', MIXED) as study:
    study.add_budget(3)
    first, second = study.claim('me'), study.claim('you')
    assert (first.slot, second.slot) == (0, 1)
    assert not study.report(first, 1, 0.7)
    assert study.retry(first, 'its machine\nwent down')
    again = study.claim('they')  # before slot 2
    assert again == first._replace(trial_id=again.trial_id, attempt=1)
    # Whoever had it finds out, and changes nothing.
    assert not study.beat(first)
    assert study.report(first, 2, 0.9)
    assert not study.complete(first, (0.9,))
    assert not study.retry(first, 'twice')
    assert study.complete(again, (0.8,))
    assert study.recover(lambda trial: trial.owner == 'you') == 1
    assert study.recover(lambda trial: True) == 0
    told = [(t.slot, t.attempt, t.state, t.objectives, t.owner, t.reason) for t in study.trials()]
    assert told == [
      (0, 0, 'retried', None, 'me', 'its machine went down'),
      (0, 1, 'complete', (0.8,), 'they', ''),
      (1, 0, 'retried', None, 'you', 'its process died'),
      (1, 1, 'waiting', None, '', ''),
      (2, 0, 'waiting', None, '', ''),
    ]
    trials = study.trials()
    assert trials[0].reports == {1: 0.7}
    assert trials[1].reports == {}
    assert trials[3].values == second.values
    assert trials[4].values == {}
    study.claim('me')
    assert study.retry(study.trials()[3], 'told by what anyone may read')


def test_nothing_is_lost_between_two_attempts(folder, monkeypatch):
  url = f'journal:{folder}/j'
  with studying(url, DIGITS) as study, monkeypatch.context() as patch:
    study.add_budget(6)
    study.claim('me')
    patch.setattr(study, '_again', lambda trial: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      study.recover(lambda trial: True)
  with studying(url, DIGITS) as study:
    assert study.recover(lambda trial: False) == 1
    claims = [study.claim('me') for _ in range(6)]
    assert [(c.slot, c.attempt) for c in claims] == [(0, 1), *((i, 0) for i in range(1, 6))]
    assert study.recover(lambda trial: False) == 0


def test_two_that_end_an_attempt_at_once(folder, monkeypatch):
  """One retries it, thinking its owner dead, while the owner is about to complete it."""
  with studying(f'sqlite:///{folder}/db', LINE) as study:
    study.add_budget(1)
    claim = study.claim('me')
    write = study._storage.set_trial_user_attr

    def written_over(trial_id, key, value):
      write(trial_id, key, value)
      write(trial_id, key, {**value, 'outcome': 'complete'})

    with monkeypatch.context() as m:
      m.setattr(study._storage, 'set_trial_user_attr', written_over)
      m.setattr(study, '_again', lambda frozen: None)  # and is killed before it queues the next
      assert study.retry(claim, 'its process died')
    assert not study.complete(claim, (1.0,))
    assert study.report(claim, 2, 0.5)  # so the owner ends it
    assert [t.state for t in study.trials()] == ['retried']
    assert study.recover(lambda trial: False) == 1
    assert study.claim('other') == search.Claim(claim.trial_id + 1, 0, 1, claim.values)


def test_an_attempt_taken_over_while_its_sampler_thinks(folder, monkeypatch):
  with studying(f'sqlite:///{folder}/db', LINE) as study:
    study.add_budget(2)
    fill = study._fill

    def slow(trial, owner):
      if not slow.called:
        slow.called = True
        assert study._end(trial._trial_id, search.TrialState.FAIL, 'retried', 'no heartbeat')
      return fill(trial, owner)

    slow.called = False
    monkeypatch.setattr(study, '_fill', slow)
    assert study.claim('me').slot == 1


def test_of_two_that_make_a_slot_the_first_counts(folder):
  with studying(f'journal:{folder}/j', NUMBERS) as study:
    study.add_budget(3)
    study._enqueue(1, 0, {'fixed_params': {}})  # as another process does that also saw none
    assert [claim.slot for claim in iter(lambda: study.claim('me'), None)] == [0, 1, 2]
    assert [trial.slot for trial in study.trials()] == [0, 1, 2]
    assert {trial.state for trial in study.trials()} == {'running'}


def test_threads_share_a_study(folder):
  s = MIXED._replace(sampler='random')
  with studying(f'sqlite:///{folder}/s.db', s) as study:
    claims, barrier = [], threading.Barrier(4)

    def run():
      barrier.wait()
      study.add_budget(12)
      while claim := study.claim('me'):
        claims.append(claim)
        study.complete(claim, (0.0,))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert sorted(claim.slot for claim in claims) == list(range(12))
    assert [trial.state for trial in study.trials()] == 12 * ['complete']
  with studying(f'journal:{folder}/j', s) as study:
    study.add_budget(12)
    assert work(study) == [claim.values for claim in sorted(claims, key=lambda claim: claim.slot)]


def test_median_pruner(folder):
  with studying(f'journal:{folder}/j', LINE._replace(pruner='median')) as study:
    study.add_budget(8)
    for final in (0.5, 0.6, 0.7, 0.8, 0.9):
      claim = study.claim('me')
      assert not study.report(claim, 1, final - 0.4)
      assert not study.report(claim, 2, final)
      study.complete(claim, (final,))
    good, bad = study.claim('me'), study.claim('me')
    assert not study.report(good, 1, 0.31)  # the median at the first evaluation is 0.3
    assert study.report(bad, 1, 0.29)
    assert not study.report(good, 2, 0.7)
    assert not study.report(good, 2, 0.7)  # the same again
    assert study.prune(bad, 'below the median')
    last = study.trials()[6]
    assert (last.state, last.reason, last.objectives) == ('pruned', 'below the median', None)


def test_halving_pruner(folder):
  s = LINE._replace(pruner='halving', objectives=(space.minimize('test/loss'),))
  with studying(f'journal:{folder}/j', s) as study:
    study.add_budget(9)
    claims = [study.claim('me') for _ in range(5)]
    # By hand: of n that reached a rung the best n // 2 go on, of one or two or three the best.
    assert not study.report(claims[0], 1, 0.50)
    assert study.report(claims[1], 1, 0.60)
    assert not study.report(claims[2], 1, 0.40)
    assert not study.report(claims[3], 1, 0.45)  # second of four
    assert study.report(claims[4], 1, 0.46)  # third of five
    assert not study.report(claims[0], 2, 0.30)
    assert not study.report(claims[2], 2, 0.29)
    assert study.report(claims[3], 2, 0.31)
    assert not study.report(claims[0], 3, 0.99)  # no rung


def test_hyperband_prunes_some_and_none_never(folder):
  pruned = {}
  for pruner in ('hyperband', 'none'):
    with studying(f'journal:{folder}/{pruner}', LINE._replace(pruner=pruner)) as study:
      study.add_budget(13)
      pruned[pruner] = 0
      for number in range(13):
        claim = study.claim('me')
        ended = any(study.report(claim, e, 1 - number / 100) for e in range(1, 10))
        pruned[pruner] += ended
        assert study.prune(claim, '') if ended else study.complete(claim, (0.5,))
  assert 0 < pruned['hyperband'] < 13
  assert pruned['none'] == 0


def test_diverged_counts_as_pruned_and_failed_not_at_all(folder):
  with studying(f'sqlite:///{folder}/s.db', LINE) as study:
    study.add_budget(4)
    claims = [study.claim('me') for _ in range(4)]
    study.report(claims[0], 1, math.nan)
    assert study.diverge(claims[0], 'loss nan')
    assert study.complete(claims[1], (math.inf,))
    assert study.fail(claims[2], 'no such file')
    assert study.prune(claims[3], 'slow')
    told = [(trial.state, trial.reason) for trial in study.trials()]
    assert told == [
      ('diverged', 'loss nan'),
      ('diverged', 'its objectives are (inf,)'),
      ('failed', 'no such file'),
      ('pruned', 'slow'),
    ]
    assert math.isnan(study.trials()[0].reports[1])
    states = [trial.state.name for trial in study._study.trials]
    assert states == ['PRUNED', 'PRUNED', 'FAIL', 'PRUNED']
    assert study.pareto() == []


def test_stale_heartbeats(folder):
  """Of three that run, one was heard of just now, one not for a minute, one never signed."""
  with studying(f'sqlite:///{folder}/s.db', LINE) as study:
    study.add_budget(3)
    claims = [study.claim('me') for _ in range(2)]
    assert study._take(study._trials()[2]._trial_id)
    with contextlib.closing(sqlite3.connect(folder / 's.db')) as database, database:
      database.execute(
        "UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-60 seconds')"
        f' WHERE trial_id != {claims[0].trial_id}'
      )
    assert study.beat(claims[0])
    assert study.recover(lambda trial: False) == 2
    told = {(trial.slot, trial.state, trial.reason) for trial in study.trials()}
    stale = 'no heartbeat for 30 s'
    assert {(0, 'running', ''), (1, 'retried', stale), (2, 'retried', stale)} < told


def test_unsigned_in_a_journal(folder, monkeypatch):
  with studying(f'journal:{folder}/j', LINE) as study:
    study.add_budget(1)
    assert study._take(study._trials()[0]._trial_id)
    assert study.recover(lambda trial: True) == 0  # it may be about to
    monkeypatch.setattr(search, 'GRACE', -1)
    assert study.recover(lambda trial: False) == 1


def test_importances(folder):
  s = space.Space({'x': space.uniform(0.0, 1.0), 'y': space.choice(1, 2)}, sampler='random')
  with studying(f'journal:{folder}/j', s) as study:
    study.add_budget(30)
    for number in range(30):
      claim = study.claim('me')
      if number == 9:
        assert study.importances() == {}
      study.complete(claim, (claim.values['x'] ** 2,))
    found = study.importances()
  assert list(found) == ['x', 'y']
  assert found['x'] > 0.8
  assert math.isclose(sum(found.values()), 1.0)


def test_pareto(folder):
  objectives = (space.maximize('test/accuracy'), space.minimize('macs'))
  s = LINE._replace(objectives=objectives)
  told = [(0.9, 100.0), (0.8, 50.0), (0.8, 60.0), (0.95, 100.0), (0.7, 50.0), (0.8, 50.0)]
  with studying(f'journal:{folder}/j', s) as study:
    study.add_budget(20)
    diverged = study.claim('me')
    assert not study.report(diverged, 1, math.nan)
    study.diverge(diverged, 'loss nan')
    for values in told:
      study.complete(study.claim('me'), values)
    assert [trial.slot for trial in study.pareto()] == [2, 4, 6]
    while claim := study.claim('me'):  # TPE, past its random beginning
      study.complete(claim, (claim.values['x'], claim.values['x'] * 9))
    assert sum(study.importances().values()) > 0
  one = LINE._replace(objectives=objectives[1:])
  with studying(f'journal:{folder}/j', one, name='one') as study:
    study.add_budget(3)
    assert study.pareto() == []
    for value in (3.0, 1.0, 2.0):
      study.complete(study.claim('me'), (value,))
    assert [trial.slot for trial in study.pareto()] == [1]


def refused(url, s=LINE, **options):
  with pytest.raises(UserError) as error:
    opened(url, s, **options)
  is_one_line(error.value)
  assert 'secret' not in str(error.value)
  return str(error.value)


def test_another_sweep_of_the_same_name_is_refused(folder):
  url = f'sqlite:///{folder}/s.db'
  opened(url, NUMBERS).close()
  opened(url, NUMBERS._replace(trials=5)).close()  # a budget may grow
  wider = {**NUMBERS.parameters, RATE: space.log_uniform(1e-4, 1.0)}
  message = refused(url, NUMBERS._replace(parameters=wider))
  assert f'parameters.{RATE}.high is 0.1 there and 1.0 here.' in message
  assert 'pruner' in refused(url, NUMBERS._replace(pruner='median'))
  assert "sampler is 'tpe' there and 'random' here (and 1 more)" in refused(
    url, NUMBERS._replace(sampler='random', seeds=2)
  )
  assert 'seed is 0 there and 1 here' in refused(url, NUMBERS, seed=1)
  turned = dict(reversed(NUMBERS.parameters.items()))
  assert 'parameters is [' in refused(url, NUMBERS._replace(parameters=turned))
  opened(url, LINE, name='another').close()


def test_storages_that_cannot_be_used(folder):
  assert 'must be sqlite:///FILE, journal:FILE or' in refused('mysql://me:secret@host/base')
  assert 'must be' in refused('sqlite://')
  assert 'names no file' in refused('journal:')
  (folder / 'notes').write_text('Buy milk. No newline at the end')
  assert 'no journal' in refused(f'journal:{folder}/notes')
  assert 'not a database' in refused(f'sqlite:///{folder}/notes')
  assert (folder / 'notes').read_text() == 'Buy milk. No newline at the end'
  assert 'No such file' in refused(f'journal:{folder}/none/j')
  assert 'unable to open' in refused(f'sqlite:///{folder}/none/s.db')


def test_samplers_and_pruners_that_cannot_work(folder, monkeypatch):
  url, two = f'journal:{folder}/j', (space.maximize('test/accuracy'), space.minimize('macs'))
  assert "pruner='median' needs one objective, not 2" in refused(
    url, LINE._replace(objectives=two, pruner='median')
  )
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert "'torch'" in refused(url, LINE._replace(sampler='gaussian_process'))
  assert "'psycopg': pip install 'cnnjax[sweep]'" in refused('postgresql://me:secret@host/base')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  assert "'cma_es' needs one" in refused(url, NUMBERS._replace(objectives=two, sampler='cma_es'))
  assert 'a number that always varies' in refused(url, DIGITS._replace(sampler='cma_es'))
  assert not os.path.exists(folder / 'j')


def test_without_optuna(monkeypatch):
  spec = importlib.util.spec_from_file_location('another', search.__file__)
  monkeypatch.setitem(sys.modules, 'optuna', None)
  with pytest.raises(UserError, match="needs the package 'optuna'"):
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_passwords_are_not_shown():
  assert search.redact('sqlite:////tmp/s.db') == 'sqlite:////tmp/s.db'
  for url in (
    'postgresql://me:secret@host:5432/base',
    'postgresql://me:sec@ret:secret@host/base',
    'postgresql://host/base?user=me&password=secret&sslmode=off',
    'postgresql://me:sec%20secret@host/base?sslpassword=secret',
  ):
    assert 'secret' not in search.redact(url)
    assert '***' in search.redact(url)
    assert 'host' in search.redact(url)
    told = search._first_line(ValueError('secret sec@ret:secret sec secret\nmore'), url)
    assert 'more' not in told
    assert told.count('***') >= 1
  assert search.dashboard('journal:a b/sweep.journal') == "optuna-dashboard 'a b/sweep.journal'"
  assert "+psycopg://me:***@host/b'" in search.dashboard('postgresql://me:secret@host/b')
  if importlib.util.find_spec('psycopg'):
    # Port 1 of this machine: nothing listens there.
    assert 'refused' in refused('postgresql://me:secret@127.0.0.1:1/base?password=secret')
    assert '***@' in refused('postgresql://me:secret@127.0.0.1:port/base')


def test_half_a_line_in_a_journal_goes(folder):
  url = f'journal:{folder}/j'
  with studying(url, DIGITS) as study:
    study.add_budget(3)
    whole = (folder / 'j').read_bytes()
    (folder / 'j').write_bytes(whole + whole.splitlines()[-1][:40])
    assert study.claim('me').slot == 0  # both who had it open and who opens it anew
  with studying(url, DIGITS) as study:
    assert [trial.state for trial in study.trials()] == ['running', 'waiting', 'waiting']
  for line in (folder / 'j').read_text().splitlines():
    json.loads(line)


def test_two_processes_one_killed(folder):
  """On a journal and on PostgreSQL: every slot ends complete, once; nothing goes beyond them."""
  trials, journal = 12, f'journal:{folder}/j'
  with contextlib.ExitStack() as stack:
    urls = [journal]
    if postgres.SERVER and importlib.util.find_spec('psycopg'):
      urls.append(stack.enter_context(postgres.server()))
    workers = [
      stack.enter_context(
        subprocess.Popen(
          [sys.executable, '-m', 'tests.sweep.searcher', owner, str(trials), *urls],
          cwd=ROOT,
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
          text=True,
        )
      )
      for owner in ('mayfly', 'tortoise')
    ]
    for worker in workers:
      stack.callback(worker.kill)

    def say(worker, line):
      worker.stdin.write(f'{line}\n')
      worker.stdin.flush()

    mayfly, tortoise = workers
    for worker in workers:  # both open a new storage at the same time
      assert worker.stdout.readline() == 'ready\n'
    for worker in workers:
      say(worker, 'start')
    held = [int(slot) for slot in mayfly.stdout.readline().removeprefix('holds').split()]
    assert len(held) == len(urls)
    mayfly.kill()
    mayfly.wait()
    say(tortoise, 'go on')
    assert tortoise.stdout.readline() == 'empty\n'
    for url, slot in zip(urls, held, strict=True):
      with contextlib.closing(searcher.opened(url)) as study:
        assert [t.slot for t in study.trials() if t.state != 'complete'] == [slot]
    # On one machine it is known who died; on others, by their silence.
    if len(urls) > 1:
      age_heartbeats(urls[1])
    say(tortoise, 'nobody')
    assert tortoise.stdout.readline() == 'empty\n'
    say(tortoise, 'mayfly')
    assert tortoise.stdout.readline() == 'empty\n'
    tortoise.stdin.close()
    assert tortoise.wait() == 0
    values = []
    for url, slot in zip(urls, held, strict=True):
      with contextlib.closing(searcher.opened(url)) as study:
        told = study.trials()
      complete = [trial for trial in told if trial.state == 'complete']
      assert [trial.slot for trial in complete] == list(range(trials))
      (cut_off,) = (trial for trial in told if trial.state != 'complete')
      assert (cut_off.slot, cut_off.state, cut_off.owner) == (slot, 'retried', 'mayfly')
      assert cut_off.reason == ('its process died' if url == journal else 'no heartbeat for 30 s')
      again = complete[slot]
      assert (again.attempt, again.owner, again.values) == (1, 'tortoise', cut_off.values)
      assert {trial.owner for trial in complete} == {'mayfly', 'tortoise'}
      values.append([trial.values for trial in complete])
      for trial in complete:
        assert trial.objectives == (trial.values['optimizer.learning_rate'],)
        assert trial.reports == {1: 0.5}
    assert values[0] == values[-1]  # they don't hang on the storage, nor on who drew them
    if len(urls) > 1:
      server_ends(urls[1])


def age_heartbeats(url):
  import psycopg

  with psycopg.connect(url) as connection:
    connection.execute("UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '1 minute'")


def server_ends(url):
  """Its connections are cut: the next call finds another one, or says in one line that it can't."""
  import psycopg

  with contextlib.closing(searcher.opened(url)) as study:
    with psycopg.connect(url, autocommit=True) as connection:
      connection.execute(
        'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid()'
        " AND backend_type = 'client backend'"
      )
    assert study.trials()
    with psycopg.connect(url, autocommit=True) as connection:
      connection.execute('ALTER TABLE trials RENAME TO gone')
    with pytest.raises(MachineError, match='does not exist') as error:
      study.trials()
    is_one_line(error.value)
