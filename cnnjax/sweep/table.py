"""How a sweep is going, for a person: a table that renews itself on a terminal, a line for each
event anywhere else, and the summary at the end."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cnnjax.sweep.search import Trial
from cnnjax.sweep.space import Objective, Space
from cnnjax.sweep.worker import Running

_DONE = ('complete', 'pruned', 'diverged', 'failed')
_SHOWN = 5  # of the best trials; a Pareto front is shown whole


class View:
  """What is shown while a sweep runs."""

  def __init__(self, space: Space, stream: TextIO | None = None):
    """Shows nothing yet.

    Args:
      space: of the sweep.
      stream: standard output if None.
    """
    self._space, self._stream = space, stream or sys.stdout
    self._before: dict[tuple[int, int], str] | None = None
    self._live = None
    if self._stream.isatty():
      self._live = Live(console=Console(file=self._stream), auto_refresh=False)

  def __enter__(self) -> 'View':
    if self._live is not None:
      self._live.start()
    return self

  def __exit__(self, *exc: object) -> None:
    if self._live is not None:
      self._live.stop()  # the last table stays on the screen

  def update(self, trials: Sequence[Trial], running: Sequence[Running]) -> None:
    """Shows how things are now.

    Args:
      trials: all attempts of the study.
      running: what runs in this process.
    """
    now = time.time()
    if self._live is not None:
      self._live.update(_table(self._space, trials, running, now), refresh=True)
      return
    before, self._before = self._before, {(t.slot, t.attempt): t.state for t in trials}
    if before is None:
      before = {key: state for key, state in self._before.items() if state != 'running'}
      print(headline(self._space, trials, now), file=self._stream, flush=True)
    for line in events(self._space, before, trials, now):
      print(line, file=self._stream, flush=True)


def latest(trials: Sequence[Trial]) -> list[Trial]:
  """The newest attempt of each trial, by slot."""
  newest: dict[int, Trial] = {}
  for trial in sorted(trials, key=lambda t: t.attempt):
    newest[trial.slot] = trial
  return [newest[slot] for slot in sorted(newest)]


def ranking(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
  """The complete trials, by the first objective, the best first."""
  sign = -1 if objectives[0].direction == 'maximize' else 1
  complete = [t for t in trials if t.state == 'complete' and t.objectives]
  return sorted(complete, key=lambda t: (sign * (t.objectives or (0.0,))[0], t.slot))


def eta(trials: Sequence[Trial], now: float) -> float | None:
  """Seconds until all is done, if trials take as long as those did that are; None if none is.

  What runs anywhere at the moment is taken to go on side by side.
  """
  newest = latest(trials)
  took = [t.finished - t.started for t in newest if t.state in _DONE and t.started and t.finished]
  if not took:
    return None
  mean = sum(took) / len(took)
  running = [t for t in newest if t.state == 'running']
  left = sum(max(0.0, mean - (now - (t.started or now))) for t in running)
  waiting = sum(t.state == 'waiting' for t in newest)
  return (left + mean * waiting) / max(1, len(running))


def headline(space: Space, trials: Sequence[Trial], now: float) -> str:
  """'3 of 12 trials done: 2 complete, 1 pruned; 1 running, 8 waiting; best ...; ETA 0:10:00'."""
  newest = latest(trials)
  counts = {s: sum(t.state == s for t in newest) for s in (*_DONE, 'running', 'waiting')}
  done = sum(counts[state] for state in _DONE)
  said = ', '.join(f'{counts[s]} {s}' for s in _DONE if counts[s])
  parts = [f'{done} of {len(newest)} trials done' + (f': {said}' if said else '')]
  if open_ := [f'{counts[s]} {s}' for s in ('running', 'waiting') if counts[s]]:
    parts.append(', '.join(open_))
  if best := ranking(trials, space.objectives)[:1]:
    name, value = space.objectives[0].name, (best[0].objectives or (0.0,))[0]
    parts.append(f'best {name} {number(value)} (trial {best[0].slot})')
  left = eta(trials, now)
  if left is not None and done < len(newest):
    parts.append(f'ETA {duration(left)}')
  return '; '.join(parts)


def events(
  space: Space, before: Mapping[tuple[int, int], str], trials: Sequence[Trial], now: float
) -> Iterator[str]:
  """A line for each trial that has started or ended.

  Args:
    space: of the sweep.
    before: states by (slot, attempt), when the last lines were made.
    trials: all attempts as they are now.
    now: seconds, as those of the trials.
  """
  for trial in trials:
    if trial.state in ('waiting', before.get((trial.slot, trial.attempt))):
      continue
    word = {'running': 'starts', 'retried': 'ends early'}.get(trial.state, trial.state)
    again = f' (attempt {trial.attempt + 1})' if trial.attempt and word == 'starts' else ''
    line = f'trial {trial.slot:3d}  {word}{again}  '
    if trial.state == 'running':
      line += '  '.join(f'{key}={value(v)}' for key, v in trial.values.items())
    elif trial.state == 'complete':
      took = (trial.finished or now) - (trial.started or now)
      line += f'{figures(space, trial)}  in {duration(took)}'
    else:
      line += trial.reason
    ended = trial.state in _DONE
    yield f'{line}  [{headline(space, trials, now)}]' if ended else line


def figures(space: Space, trial: Trial) -> str:
  """'test/accuracy 0.9861, macs 416,520' of a complete trial."""
  pairs = zip(space.objectives, trial.objectives or (), strict=False)
  return ', '.join(f'{objective.name} {number(x)}' for objective, x in pairs)


def _table(space: Space, trials: Sequence[Trial], running: Sequence[Running], now: float) -> Group:
  """What runs, then the best so far, then the headline."""
  objective = space.objectives[0].name
  keys = list(space.parameters)
  table = Table(box=None, pad_edge=False, header_style='bold')
  for name in ('trial', '', 'step', objective, 'time', *keys):
    table.add_column(name, justify='left' if name == '' else 'right', no_wrap=True)
  here = {(entry.claim.slot, entry.claim.attempt): entry for entry in running}
  for t in latest(trials):
    if t.state != 'running':
      continue
    entry, reported = here.get((t.slot, t.attempt)), t.reports.get(max(t.reports, default=0))
    last = reported if entry is None or entry.value is None else entry.value
    seed = f' seed {entry.seed}' if entry and space.seeds > 1 else ''
    step = f'{entry.step:,}' if entry else ''
    cells = (f'running{seed}' if entry else 'elsewhere', step, '' if last is None else number(last))
    _row(table, t, cells, duration(now - (t.started or now)), keys)
  for t in ranking(trials, space.objectives)[:_SHOWN]:
    took = duration((t.finished or now) - (t.started or now))
    _row(table, t, ('complete', '', number((t.objectives or (0.0,))[0])), took, keys)
  return Group(table, Text(headline(space, trials, now)))


def _row(table: Table, t: Trial, cells: Sequence[str], took: str, keys: Sequence[str]) -> None:
  values = [value(t.values[key]) if key in t.values else '' for key in keys]
  table.add_row(str(t.slot), *cells, took, *values)


def summary(space: Space, trials: Sequence[Trial], front: Sequence[Trial]) -> str:
  """The best trials, a line each: of one objective the first few, of several the Pareto front."""
  several = len(space.objectives) > 1
  best = ranking(front if several else trials, space.objectives)
  rows = [('trial', *(o.name for o in space.objectives), *map(str, space.parameters))]
  for t in best if several else best[:_SHOWN]:
    values = (value(t.values[key]) if key in t.values else '' for key in space.parameters)
    rows.append((str(t.slot), *map(number, t.objectives or ()), *values))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = ['  '.join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
  title = 'the Pareto front' if several else 'the best'
  return '\n'.join([headline(space, trials, time.time()), f'{title}:', *lines])


def number(x: float) -> str:
  """A figure as people read it: 416,520 or 0.9861."""
  return f'{x:,.0f}' if x == round(x) and abs(x) >= 10 else f'{x:.4g}'


def value(x: Any) -> str:
  """A config value, shortened; commands have it in full."""
  return f'{x:.4g}' if isinstance(x, float) else str(x)


def duration(seconds: float) -> str:
  """H:MM:SS."""
  minutes, rest = divmod(max(0, round(seconds)), 60)
  return f'{minutes // 60}:{minutes % 60:02d}:{rest:02d}'
