"""What a person is shown, from trials that are written down here."""

import io

from cnnjax.sweep import space as space_lib
from cnnjax.sweep import table
from cnnjax.sweep.search import Claim, Trial
from cnnjax.sweep.worker import Running

SPACE = space_lib.Space(
  {
    'optimizer.learning_rate': space_lib.log_uniform(1e-4, 1e-1),
    'optimizer.momentum': space_lib.uniform(0.8, 0.99, when={'optimizer.name': 'sgd'}),
  }
)
RATE = {'optimizer.learning_rate': 0.001234567}
TRIALS = [
  Trial(0, 0, 'complete', RATE, (0.97,), {1: 0.9}, 1000.0, 1010.0),
  Trial(1, 0, 'retried', RATE, started=1000.0, finished=1004.0, reason='its process died'),
  Trial(1, 1, 'complete', RATE, (0.9861,), {1: 0.9, 2: 0.98}, 1004.0, 1024.0),
  Trial(2, 0, 'pruned', RATE, None, {1: 0.2}, 1010.0, 1013.0, 'after evaluation 1'),
  Trial(3, 0, 'diverged', RATE, None, {}, 1013.0, 1014.0, 'step 3: the loss is nan'),
  Trial(4, 0, 'failed', RATE, None, {}, 1014.0, 1020.0, 'config.x is wrong'),
  Trial(5, 0, 'running', RATE, None, {1: 0.5}, 1020.0),
  Trial(6, 0, 'running', {**RATE, 'optimizer.momentum': 0.9}, None, {2: 0.7}, 1024.0),
  Trial(7, 0, 'waiting', {}),
]  # fmt: skip
NOW = 1024.0


def test_latest_and_ranking():
  assert [(t.slot, t.attempt) for t in table.latest(TRIALS)] == [(i, i == 1) for i in range(8)]
  objectives = SPACE.objectives
  assert [t.slot for t in table.ranking(TRIALS, objectives)] == [1, 0]
  assert [t.slot for t in table.ranking(TRIALS, (space_lib.minimize('test/loss'),))] == [0, 1]


def test_eta():
  # Five have taken 10, 20, 3, 1 and 6 s: 8 on the average. One that runs has 4 s to go, one 8, one
  # waits, and two run side by side.
  assert table.eta(TRIALS, NOW) == (4 + 8 + 8) / 2
  assert table.eta(TRIALS, NOW + 100) == 8 / 2  # what takes longer than the average may end soon
  assert table.eta(TRIALS[-3:], NOW) is None
  assert table.eta(TRIALS[:6], NOW) == 0


def test_headline():
  assert table.headline(SPACE, TRIALS, NOW) == (
    '5 of 8 trials done: 2 complete, 1 pruned, 1 diverged, 1 failed; 2 running, 1 waiting;'
    ' best test/accuracy 0.9861 (trial 1); ETA 0:00:10'
  )
  assert table.headline(SPACE, TRIALS[-1:], NOW) == '0 of 1 trials done; 1 waiting'


def test_lines_are_of_what_has_changed():
  before = {(t.slot, t.attempt): t.state for t in TRIALS}
  assert list(table.events(SPACE, before, TRIALS, NOW)) == []
  lines = list(table.events(SPACE, {}, TRIALS, NOW))
  headline = table.headline(SPACE, TRIALS, NOW)
  assert lines == [
    f'trial   0  complete  test/accuracy 0.97  in 0:00:10  [{headline}]',
    'trial   1  ends early  its process died',
    f'trial   1  complete  test/accuracy 0.9861  in 0:00:20  [{headline}]',
    f'trial   2  pruned  after evaluation 1  [{headline}]',
    f'trial   3  diverged  step 3: the loss is nan  [{headline}]',
    f'trial   4  failed  config.x is wrong  [{headline}]',
    'trial   5  starts  optimizer.learning_rate=0.001235',
    'trial   6  starts  optimizer.learning_rate=0.001235  optimizer.momentum=0.9',
  ]
  again = [Trial(1, 2, 'running', RATE)]
  assert next(table.events(SPACE, {}, again, NOW)).startswith('trial   1  starts (attempt 3)  ')


def test_plain_output_begins_with_how_it_stands(monkeypatch):
  monkeypatch.setattr('time.time', lambda: NOW)
  stream = io.StringIO()
  with table.View(SPACE, stream) as view:
    view.update(TRIALS[:6] + TRIALS[-1:], [])
    for _ in range(2):
      view.update([*TRIALS[:6], Trial(7, 0, 'running', RATE, started=NOW)], [])
  assert stream.getvalue().splitlines() == [
    table.headline(SPACE, TRIALS[:6] + TRIALS[-1:], NOW),
    'trial   7  starts  optimizer.learning_rate=0.001235',
  ]


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_the_table_of_a_terminal(monkeypatch):
  monkeypatch.setattr('time.time', lambda: NOW)
  monkeypatch.setenv('COLUMNS', '120')
  monkeypatch.setenv('TERM', 'xterm')
  stream = Terminal()
  with table.View(SPACE, stream) as view:
    view.update(TRIALS, [Running(Claim(15, 5, 0, RATE), step=1200, value=0.5)])
  shown = stream.getvalue()
  rows = [line.split() for line in shown.splitlines()]
  assert ['5', 'running', '1,200', '0.5', '0:00:04', '0.001235'] in rows
  assert ['6', 'elsewhere', '0.7', '0:00:00', '0.001235', '0.9'] in rows
  assert ['1', 'complete', '0.9861', '0:00:20', '0.001235'] in rows
  assert table.headline(SPACE, TRIALS, NOW).split()[:8] in [row[:8] for row in rows]


def test_summaries():
  lines = table.summary(SPACE, TRIALS, [TRIALS[2]]).splitlines()
  assert lines[1] == 'the best:'
  assert [line.split() for line in lines[2:]] == [
    ['trial', 'test/accuracy', 'optimizer.learning_rate', 'optimizer.momentum'],
    ['1', '0.9861', '0.001235'],
    ['0', '0.97', '0.001235'],
  ]
  both = SPACE._replace(objectives=(*SPACE.objectives, space_lib.minimize('macs')))
  front = [Trial(i, 0, 'complete', RATE, (0.9 + i / 100, 1000.0 * i + 12)) for i in range(7)]
  lines = table.summary(both, front, front).splitlines()
  assert lines[1] == 'the Pareto front:'
  assert [line.split()[:3] for line in lines[3:]] == [
    [str(i), f'{0.9 + i / 100:.4g}', f'{1000 * i + 12:,}'] for i in reversed(range(7))
  ]


def test_numbers():
  assert [table.number(x) for x in (416520.0, 0.98612, 1.0, 12.0, 1e-5, -30.0)] == [
    '416,520', '0.9861', '1', '12', '1e-05', '-30',
  ]  # fmt: skip
  assert [table.duration(s) for s in (0, 59.6, 3601, -3)] == [
    '0:00:00', '0:01:00', '1:00:01', '0:00:00',
  ]  # fmt: skip
