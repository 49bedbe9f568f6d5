"""Workers of one process: each takes a trial, runs it, and tells the study how it ended."""

import dataclasses
import math
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cnnjax.config import Config
from cnnjax.errors import UserError
from cnnjax.sweep import costs, owners, search, trial
from cnnjax.sweep import space as space_lib
from cnnjax.training.signals import Signals

_TICK = 1.0  # seconds between two looks at the study
_LOOK = 5.0  # seconds between two signs of life, and two looks for the dead
_ATTEMPTS = 3  # of a trial whose runs end by a fault of the machine
_FAULT = 'fault: '  # how the reasons of such attempts begin

Row = Mapping[str, Any]


class Sweep(NamedTuple):
  """What the workers of a process share.

  Attributes:
    space: validated; `fixed` without what the command line sets.
    config: validated: the file's with what the command line sets.
    file: the config's, as --config takes it.
    base: what the file gives.
    overrides: what the command line sets, by config key.
    directory: of the sweep.
    study: open.
    owner: this process's name among `owners`.
    one_machine: no process on another machine works on it.
  """

  space: space_lib.Space
  config: Config
  file: str
  base: Config
  overrides: Mapping[str, Any]
  directory: str
  study: search.Study
  owner: str
  one_machine: bool


@dataclasses.dataclass
class Running:
  """How far a trial of this process is.

  Attributes:
    claim: the trial.
    seed: which of its runs it is at.
    step: the run's newest in metrics.jsonl.
    value: the first objective's newest value there.
    lost: another process took it for dead and has it now.
  """

  claim: search.Claim
  seed: int = 0
  step: int = 0
  value: float | None = None
  lost: bool = False


def work(sweep: Sweep, workers: int, show: Callable[[Sequence[Running]], None]) -> None:
  """Runs workers until nothing is left to do, here or in other processes.

  Args:
    sweep: what is to be tried.
    workers: how many trials at a time.
    show: called with what runs here, at least about once a second.

  Raises:
    Stopped: SIGTERM or SIGINT came; all runs here have saved and ended.
  """
  stop, awake = threading.Event(), threading.Event()
  running: dict[int, Running] = {}  # by worker
  ended: list[int] = []  # workers
  failures: list[BaseException] = []

  def guarded(index: int, pins: trial.Pins) -> None:
    try:
      for claim in _claims(sweep, stop):
        running[index] = Running(claim)
        awake.set()
        attempt(sweep, running[index], pins, stop)
        del running[index]
    except BaseException as e:  # the main thread tells
      running.pop(index, None)
      failures.append(e)
    finally:
      ended.append(index)
      awake.set()

  recover(sweep)
  looked = time.monotonic()
  threads = [
    threading.Thread(target=guarded, args=(i, pins), daemon=True)
    for i, pins in enumerate(trial.shares(workers))
  ]
  with Signals() as signals:
    for thread in threads:
      thread.start()
    while len(ended) < workers:
      awake.wait(_TICK)
      awake.clear()
      if signals or failures:
        stop.set()
      if failures:
        continue  # the storage may be gone: wait for what runs to save and end
      try:
        now = list(running.values())
        if time.monotonic() - looked > _LOOK:
          looked = time.monotonic()
          for entry in now:
            entry.lost = not sweep.study.beat(entry.claim)
          recover(sweep)
        show(now)
      except Exception as e:
        failures.append(e)
        awake.set()
  if failures:
    raise failures[0]
  trials = sweep.study.trials()
  if signals and not finished(trials):
    slots = {t.slot for t in trials}
    done = len(slots - {t.slot for t in trials if t.state in ('waiting', 'running')})
    raise signals.stopped(f'with {done} of {len(slots)} trials done; the same command goes on')


def recover(sweep: Sweep) -> int:
  """Puts trials whose process has died back in the queue; returns how many."""

  def dead(found: search.Trial) -> bool:
    return owners.dead(sweep.directory, found.owner, one_machine=sweep.one_machine)

  return sweep.study.recover(dead)


def finished(trials: Sequence[search.Trial]) -> bool:
  """Whether every slot has ended.

  One whose newest attempt is 'retried' has not: the next is about to be queued, or, if the process
  that should died, `recover` is to queue it.
  """
  newest = {t.slot: t.state for t in trials}  # attempts stand in their order
  return not {'waiting', 'running', 'retried'}.intersection(newest.values())


def _claims(sweep: Sweep, stop: threading.Event) -> Iterator[search.Claim]:
  """Trials to run, until none is left anywhere."""
  while not stop.is_set():
    claim = sweep.study.claim(sweep.owner)
    if claim is not None:
      yield claim
    elif finished(sweep.study.trials()):
      return
    else:
      stop.wait(_TICK)  # others run what is left; should one die, it comes back to the queue


def attempt(sweep: Sweep, running: Running, pins: trial.Pins, stop: threading.Event) -> None:
  """Runs a trial's runs, one for each seed, and tells the study how they ended."""
  study, claim, seeds = sweep.study, running.claim, sweep.space.seeds
  ending = lambda: stop.is_set() or running.lost
  found = []
  try:
    cost = _cost(sweep, claim.values)
    for seed in range(seeds):
      running.seed, running.step = seed, 0
      directory = run_directory(sweep, claim.slot, seed)
      watch = _Watch(sweep, running)
      how = command(sweep, claim.slot, claim.values, seed, pins)
      status = trial.run(how, directory, watch, ending)
      if status == 0 and not (watch.pruned and seeds > 1):  # at its last evaluation: so be it
        found.append([_figure(o.name, watch.rows, cost) for o in sweep.space.objectives])
        continue
      if watch.pruned:
        study.prune(claim, f'at {watch.value:.4g} after evaluation {watch.reported}')
      elif stop.is_set():
        study.retry(claim, 'stopped')
      elif not running.lost:
        _ended_badly(sweep, claim, directory, status)
      return
    study.complete(claim, tuple(statistics.fmean(x) for x in zip(*found, strict=True)))
  except UserError as e:
    study.fail(claim, str(e))


def run_directory(sweep: Sweep, slot: int, seed: int) -> str:
  """Where a run is kept: trials/0007, or trials/0007/seed1 where there are several seeds."""
  directory = os.path.join(sweep.directory, 'trials', f'{slot:04d}')
  return os.path.join(directory, f'seed{seed}') if sweep.space.seeds > 1 else directory


def command(
  sweep: Sweep,
  slot: int,
  values: Mapping[str, Any],
  seed: int,
  pins: trial.Pins = trial.Pins(),  # noqa: B008  immutable
) -> trial.Command:
  """The command of one of a trial's runs.

  Raises:
    UserError: the config can't have the trial's values.
  """
  values = {**sweep.space.fixed, **values}
  config = space_lib.apply(sweep.config, values)
  if sweep.space.seeds > 1:
    seeds = {'seed': config.seed + seed}
    config, values = space_lib.apply(config, seeds), {**values, **seeds}
  return trial.command(
    sweep.file,
    sweep.base,
    {**sweep.overrides, **values},
    config,
    workdir=run_directory(sweep, slot, seed),
    pins=pins,
  )


def commands(sweep: Sweep, found: search.Trial) -> list[str]:
  """The commands of a trial's runs, one for each seed, as they ran here, or as they would."""
  return [
    trial.ran(run_directory(sweep, found.slot, seed))
    or str(command(sweep, found.slot, found.values, seed))
    for seed in range(sweep.space.seeds)
  ]


class _Watch:
  """Reports a run's evaluations to the study, and says when it is to end.

  Attributes:
    rows: all so far.
    reported: how many evaluations.
    value: what was reported last.
    pruned: whether the study has given the trial up.
  """

  def __init__(self, sweep: Sweep, running: Running):
    self._study, self._running = sweep.study, running
    self._split, _, self._key = sweep.space.objectives[0].name.rpartition('/')
    self.rows: list[dict[str, Any]] = []
    self.reported, self.value = 0, math.nan
    self.pruned = False

  def __call__(self, rows: list[dict[str, Any]]) -> bool:
    self.rows = rows
    found = [row[self._key] for row in rows if row['split'] == self._split and self._key in row]
    if rows:
      self._running.step = rows[-1]['step']
    if found:
      self._running.value = found[-1]
    if self._running.seed == 0:  # later ones say how sure the figure is, not whether to go on
      for value in found[self.reported :]:
        if self.pruned:
          break
        self.reported, self.value = self.reported + 1, value
        finite = math.isfinite(value)
        self.pruned = finite and self._study.report(self._running.claim, self.reported, value)
    return self.pruned


def _ended_badly(sweep: Sweep, claim: search.Claim, directory: str, status: int) -> None:
  """Tells the study of a run that neither completed nor was asked to end."""
  study, said = sweep.study, trial.last_words(directory)
  if status == 3:
    study.diverge(claim, said)
  elif status in (1, 2):
    study.fail(claim, said)
  else:  # of the machine: a full disk, a crash, somebody's signal, the time that it was given
    name = signal.Signals(-status).name if status < 0 else f'exit status {status}: {said}'
    before = [t for t in study.trials() if t.slot == claim.slot and t.reason.startswith(_FAULT)]
    if len(before) + 1 < _ATTEMPTS:
      study.retry(claim, _FAULT + name)
    else:
      study.fail(claim, f'{_FAULT}{name} (in {_ATTEMPTS} attempts)')


def _cost(sweep: Sweep, values: Mapping[str, Any]) -> dict[str, float]:
  if not {'macs', 'parameters'} & {objective.name for objective in sweep.space.objectives}:
    return {}
  return costs.count(space_lib.apply(sweep.config, {**sweep.space.fixed, **values}))


def _figure(name: str, rows: Sequence[Row], cost: Mapping[str, float]) -> float:
  """An objective of one complete run.

  Raises:
    UserError: the run hasn't written it.
  """
  if name in cost:
    return cost[name]
  split, _, key = ('train/' + name if name == 'seconds' else name).rpartition('/')
  found = [row[key] for row in rows if row['split'] == split and key in row]
  if not found:
    raise UserError(f'space.objectives: {name!r} is in no row of metrics.jsonl')
  return float(found[-1])
