"""A population: K networks that train in one compiled program, each as it would alone.

The members' states are one `training.state.State` whose arrays have a leading axis of members
(`opt_state`'s counts as well), but for `step`, which all share. The hyper-parameters in which they
differ are a flat dict of arrays `[K]` by config key (`sweep.hyper`).

Between evaluations and what comes after, members can be selected and changed:

  on_evaluation(step, figures, state, hypers, key) -> (state, hypers, keep, parents)

is called after every evaluation but the last step's, once its figures are written:

- `step`: int, the number of updates made.
- `figures`: what evaluation found, name -> float64 array [K] ('accuracy', 'loss', ...), of the
  members that still train, in their order; NaN for what isn't finite.
- `state`: their State; on the devices; the call may consume it.
- `hypers`: their hyper-parameters, config key -> array [K]: float32, int32, or uint32 for 'seed';
  only keys whose values differed at the start. 'schedule' is no config key but the place of a
  member's schedule among all that differ (its rates are factors of 'optimizer.learning_rate'): to
  be copied between members with the rest, never computed with. 'seed' draws a member's order of
  examples, augmentation and dropout.
- `key`: a jax.random key, a function of config.seed and `step` alone.
- It returns the state and the hyper-parameters with which the members go on, in the shapes that it
  was given; `keep`: None where all of them do, else the ascending indices, in [0, K), of those
  that do (the others stop; their states stay as they were in the checkpoints); and `parents`: None
  or int [K], whose state each member has now, its own index where nothing was copied.

Where anything changed, `metrics.jsonl` has a row of split 'hypers' for each member, with its
hyper-parameters from there on and `parent`, the member whose state it goes on from.

It must be a pure function, so that a run that is resumed goes on as it would have.
"""

import contextlib
import dataclasses
import logging
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cnnjax.cli import NonFinite
from cnnjax.config import Config
from cnnjax.errors import MachineError
from cnnjax.sweep.members import ORDERS as ORDERS
from cnnjax.sweep.members import STRATEGIES as STRATEGIES
from cnnjax.sweep.members import Population as Population
from cnnjax.sweep.members import create as create
from cnnjax.sweep.members import save_member as save_member
from cnnjax.sweep.members import take as take
from cnnjax.training import checkpoint, workdir, writers
from cnnjax.training.clock import Clock
from cnnjax.training.signals import Signals
from cnnjax.training.state import State
from cnnjax.training.watchdog import Watchdog

_LOGGER = logging.getLogger(__name__)

_CALL_SECONDS = 1.0  # a call takes no more steps than fit: a signal waits for it
_HOOK = 2**32 - 2  # what on_evaluation's key folds in before the step

Row = dict[str, Any]
OnEvaluation = Callable[..., tuple[State, Mapping[str, Any], Any, Any]]


@dataclasses.dataclass
class Progress:
  """What resuming needs besides the state: of K members that still train, in all their order.

  Attributes:
    members: their places among the points.
    hypers: their hyper-parameters, [K].
    sums: since the last line of training metrics, [K] each.
    data: checksums of the examples that each has seen, in the steps' order.
    updates: steps since that line.
    seconds: spent in steps, in the whole run.
  """

  members: np.ndarray
  hypers: dict[str, np.ndarray]
  sums: dict[str, np.ndarray]
  data: list[int]
  updates: int = 0
  seconds: float = 0.0

  @classmethod
  def start(cls, population: Population) -> 'Progress':
    """Before the first step."""
    count = len(population.configs)
    sums = {name: np.zeros(count) for name in ('count', 'loss', 'correct', 'gradient_norm')}
    return cls(np.arange(count), population.hypers, sums, [0] * count)

  def restored(self, saved: Row) -> 'Progress':
    """The one that `saved` is of, with this one's types."""
    arrays = lambda values, like: {k: np.array(values[k], v.dtype) for k, v in like.items()}
    changes = {'hypers': arrays(saved['hypers'], self.hypers)}
    changes |= {'sums': arrays(saved['sums'], self.sums), 'members': np.array(saved['members'])}
    return Progress(**{**saved, **changes})

  def saved(self) -> Row:
    """As JSON has it."""
    lists = lambda arrays: {k: v.tolist() for k, v in arrays.items()}
    changes = {'hypers': lists(self.hypers), 'sums': lists(self.sums)}
    return {**vars(self), **changes, 'members': self.members.tolist()}

  def add(self, values: Mapping[str, np.ndarray], number: int) -> None:
    """Adds metrics [S, K] of so many steps, in float64."""
    self.updates += number
    for row in range(number):
      self.sums = {k: v + values[k][row].astype(np.float64) for k, v in self.sums.items()}
      news = (int(x).to_bytes(4, 'little') for x in values['data'][row])
      self.data = [zlib.crc32(new, old) for new, old in zip(news, self.data, strict=True)]

  def figures(self) -> list[Row]:
    """Of each member, as `loop.Progress` has them."""
    count = np.maximum(self.sums['count'], 1)
    found = {'loss': self.sums['loss'] / count, 'accuracy': self.sums['correct'] / count}
    found['gradient_norm'] = self.sums['gradient_norm'] / max(self.updates, 1)
    rows = [{k: float(v[i]) for k, v in found.items()} for i in range(len(self.members))]
    return [{**row, 'data': f'{data:08x}'} for row, data in zip(rows, self.data, strict=True)]

  def clear(self) -> None:
    """Starts the next window."""
    self.updates, self.sums = 0, {k: np.zeros_like(v) for k, v in self.sums.items()}

  def keep(self, places: np.ndarray) -> None:
    """Goes on with these of the members."""
    self.members, self.hypers = self.members[places], take(self.hypers, places)
    self.sums, self.data = take(self.sums, places), [self.data[i] for i in places]


def run(
  config: Config,
  points: Sequence[Mapping[str, Any]],
  directory: str,
  *,
  on_evaluation: OnEvaluation | None = None,
  **options: Any,
) -> list[Row]:
  """Trains a population, or resumes training, and evaluates every member on the test split.

  A member whose loss is no longer finite trains on as the others do, with None for what isn't a
  number; the run ends with an error where no other is left.

  Args:
    config: validated.
    points: as for `create`.
    directory: the working directory of all members; created if missing. `metrics.jsonl` has rows
      as those of separate runs and, in each, `member`, its place among the points.
    on_evaluation: see the head of this file.
    **options: of `create`.

  Returns:
    The last row of the test split of each member.

  Raises:
    UserError: a mistake in the config, the points or the data.
    NonFinite: no member has a finite loss.
    MachineError: the disk is full; the newest checkpoint stands.
    Stopped: SIGTERM or SIGINT came, or the time is over; the states are saved.
  """
  with Signals(config.max_seconds) as signals, contextlib.ExitStack() as stack:
    # Set-up: data, members, program
    stack.enter_context(workdir.lock(directory))
    workdir.prepare(directory, config)
    population = create(config, points, directory, **options)
    plan, base = population.plan, population.configs[0]
    checkpoints = stack.enter_context(
      checkpoint.Checkpoints(
        directory,
        keep_last=base.checkpoint.keep_last,
        keep_best=base.checkpoint.keep_best,
        best_metric=base.checkpoint.best_metric,
      )
    )

    # Restore
    whole, progress = population.init(), Progress.start(population)
    if checkpoints.steps():
      whole, saved = checkpoints.restore(whole)
      progress = progress.restored(saved)
    step = int(whole.step)
    if step == plan.steps:
      return last_rows(directory)
    if signals:
      raise signals.stopped(f'before step {step + 1}')
    state, hypers = population.place((take(whole, progress.members), progress.hypers))

    # Loop
    clock = Clock(progress.seconds)
    rows = stack.enter_context(contextlib.closing(writers.Jsonl(directory, step=step)))
    console = stack.enter_context(contextlib.closing(writers.Console(plan.steps)))
    watchdog = stack.enter_context(Watchdog())
    diverged: set[int] = set()

    def write(split: str, found: Sequence[Row]) -> None:
      head = {'step': step, 'split': split}
      try:
        for member, row in zip(progress.members.tolist(), found, strict=True):
          rows.write({**head, 'member': member, **_plain(row)})
      except OSError as e:
        raise MachineError(f'metrics in {directory} cannot be written: {e.strerror}') from e

    def log() -> None:
      per_second, seconds = clock.lap()
      progress.seconds = clock.seconds
      found = progress.figures()
      factors = np.array([rate(step - 1) for rate in population.rates], np.float32)
      schedules = progress.hypers.get('schedule', np.zeros(len(found), np.int32))
      peaks = progress.hypers.get('optimizer.learning_rate', base.optimizer.learning_rate)
      rates = (np.float32(peaks) * factors[schedules]).tolist()
      for rate, row in zip(rates, found, strict=True):
        row['learning_rate'] = rate
        row['seconds'] = clock.seconds
        if per_second:
          row['images_per_second'] = per_second * plan.batch_size
      write('train', found)
      progress.clear()
      checkpoints.check()
      healthy = [row for row in found if math.isfinite(row['loss'])] or found
      mean = {k: float(np.mean([row[k] for row in healthy])) for k in ('loss', 'accuracy')}
      if per_second and seconds:
        mean['images_per_second'] = per_second * plan.batch_size * len(found)
        mean['eta_seconds'] = seconds * (plan.steps - step)
      console.write({'step': step, 'split': 'train', **mean})

    def everyone() -> State:
      """The members that stopped as well, as they were."""
      if len(progress.members) == len(points):
        return state

      def put(all: Any, some: Any) -> Any:
        if not np.ndim(some):
          return some
        all = np.array(all)
        all[progress.members] = some
        return all

      return jax.tree.map(put, whole, jax.device_get(state))

    most, compiled = 1, 0
    while step < plan.steps:
      periods = base.log_every, plan.eval_every, plan.checkpoint_every
      until = min(plan.steps, *(step - step % period + period for period in periods))
      number = min(until - step, most)
      began = time.monotonic()
      fresh = compiled != len(progress.members)
      with contextlib.ExitStack() as pauses:
        if fresh:  # the program is compiled as well, so nothing is timed
          pauses.enter_context(clock.paused())
          pauses.enter_context(watchdog.paused())
        state, values = population.train(state, hypers, step, number)
        values = jax.device_get(values)
      step += number
      if not fresh:
        for _ in range(number):
          clock.step()
        took = (time.monotonic() - began) / number
        most = min(population.most_steps, max(1, int(_CALL_SECONDS / took)))
      elif not compiled:
        clock.start()
      compiled = len(progress.members)
      watchdog.finished(step)
      progress.add(values, number)
      finite = np.isfinite(values['loss'][:number]) & np.isfinite(values['gradient_norm'][:number])
      lost = set(progress.members[~finite.all(axis=0)].tolist())
      for member in sorted(lost - diverged):
        _LOGGER.warning('step %d: member %d has no finite loss', step, member)
      diverged = lost
      if len(lost) == len(progress.members):
        newest = max(checkpoints.steps(), default=None)
        raise NonFinite(
          f'step {step}: no member has a finite loss; the newest checkpoint is of step {newest}'
        )

      last = step == plan.steps
      stopping = bool(signals) and not last
      evaluating = last or step % plan.eval_every == 0
      if last or step % base.log_every == 0:
        log()
      saving = last or stopping or step % plan.checkpoint_every == 0
      if not (evaluating or saving):
        continue
      with clock.paused(), watchdog.paused():
        best = None
        if evaluating:
          found = population.evaluate(state, hypers)
          write('test', found)
          best = max(found, key=lambda row: row[base.checkpoint.best_metric])
          best = {k: v for k, v in best.items() if isinstance(v, float)}
          console.write({'step': step, 'split': 'best', **best})
          if on_evaluation is not None and not last:
            key = jax.random.fold_in(jax.random.key(config.seed), _HOOK)
            key = jax.random.fold_in(key, step)
            figures = _scores(found)
            state, hypers, keep, parents = on_evaluation(step, figures, state, hypers, key)
            changed, own = jax.device_get(dict(hypers)), np.arange(len(found))
            parents = own if parents is None else np.asarray(parents)
            news = [parents != own, *(changed[k] != v for k, v in progress.hypers.items())]
            if np.any(news):
              names = progress.members[parents].tolist()
              write('hypers', [{'parent': names[i], **take(changed, i)} for i in own])
            progress.hypers = changed
            if keep is not None and len(keep) < len(found):
              whole = jax.device_get(everyone())
              progress.keep(np.asarray(keep))
              state, hypers = take(state, np.asarray(keep)), progress.hypers
            state, hypers = population.place((state, hypers))
        if saving:
          checkpoints.save(everyone(), progress.saved(), best)
      if stopping:
        raise signals.stopped(f'after step {step}; the same command resumes')
    return last_rows(directory)


def last_rows(directory: str) -> list[Row]:
  """The newest row of the test split of each member, by member."""
  found = {row['member']: row for row in writers.read(directory) if row['split'] == 'test'}
  return [found[member] for member in sorted(found)]


def _plain(row: Row) -> Row:
  """As JSON has it: None where a number isn't finite."""
  numbers = {k: v.item() if isinstance(v, np.generic | np.ndarray) else v for k, v in row.items()}
  lost = lambda x: isinstance(x, float) and not math.isfinite(x)
  return {k: None if lost(v) else v for k, v in numbers.items()}


def _scores(found: Sequence[Row]) -> dict[str, np.ndarray]:
  """Arrays [K] of the figures that are numbers, NaN where there is none."""
  names = [k for k in found[0] if any(isinstance(row[k], int | float) for row in found)]
  number = lambda x: math.nan if x is None else float(x)
  return {k: np.array([number(row[k]) for row in found]) for k in names}
