"""`--mode=population`: the points of a space train together, as the members of one program.

The study has them as trials like those of a search, so that the summary, sweep.html and the
commands are the same: every evaluation is reported, a member that halving stops is pruned, one
whose loss is no longer a number has diverged.
"""

import contextlib
import functools
import json
import math
import os
import statistics
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax import errors
from cnnjax.cli import NonFinite
from cnnjax.config import Config
from cnnjax.errors import MachineError, UserError
from cnnjax.sweep import costs, directory, evolve, hyper, population, search, table, worker
from cnnjax.sweep import space as space_lib
from cnnjax.sweep.space import Objective, Space
from cnnjax.training import workdir, writers

EVOLVE = ('none', 'halving', 'pbt')
_ADAPTIVE = ('tpe', 'cma_es', 'gaussian_process')
_OF_ALL = ('seconds', 'train/seconds', 'train/images_per_second')  # members have no clocks
_FILE = 'evolution.json'

Row = Mapping[str, Any]
Claims = dict[int, search.Claim]  # by slot, of the trials that train


def run(sweep: worker.Sweep, *, evolution: str = 'none', **options: Any) -> None:
  """Trains all points of a sweep at once, and tells its study how each did.

  The same call goes on where it was stopped. `<directory>/population` holds what a run leaves, for
  all members: number m has the values of trial m // seeds and, of its seeds, number m % seeds.

  Args:
    sweep: its study has the budget, and its space is one that `check` lets pass.
    evolution: 'none': every member trains to the end. 'halving': after evaluations 1, 2, 4, 8 ...
      the better half goes on (`evolve.survivors`). 'pbt': after every evaluation the worst quarter
      become perturbed copies of the best (`evolve.exploit_and_explore`). Neither at the last one.
    **options: of `population.create`.

  Raises:
    UserError: a key in which members can't differ, or a directory of something else.
    MachineError: the disk is full, or the storage is gone; the newest checkpoint stands.
    Stopped: SIGTERM or SIGINT came, or the time is over; the members are saved.
  """
  space = sweep.space
  config = space_lib.apply(sweep.config, space.fixed)
  for line in remarks(space):
    print(line, flush=True)
  folder = os.path.join(sweep.directory, 'population')
  worker.recover(sweep)
  with _claimed(sweep) as claims:
    if claims:
      trials = table.latest(sweep.study.trials())
      _identify(sweep, trials, claims, evolution)
      points = [point for t in trials for point in _points(t.values, space, config.seed)]
      told: dict[int, int] = {}
      hook = _hook(sweep, claims, folder, evolution, told)
      with contextlib.suppress(NonFinite):  # of all members, which the study is told one by one
        population.run(config, points, folder, on_evaluation=hook, **options)
      _finish(sweep, claims, folder, config, told)
  for line in report(sweep, folder):
    print(line, flush=True)


def check(space: Space, config: Config, *, evolution: str = 'none') -> None:
  """Raises a UserError, which names the key, where a space can't be run as a population.

  Args:
    space: validated.
    config: validated.
    evolution: one of EVOLVE.
  """
  config = space_lib.apply(config, space.fixed)
  if evolution not in EVOLVE:
    raise errors.unknown('--evolve', evolution, EVOLVE)
  for key, parameter in space.parameters.items():
    values = [{key: value} for value in parameter.values or (parameter.low, parameter.high)]
    hyper.read(config, [*values, {}] if parameter.when else values)
  for objective in space.objectives:
    if objective.name in _OF_ALL:
      raise UserError(
        f'space.objectives: {objective.name!r} is the same for all members of a population;'
        ' --mode=search has it of each trial'
      )
  if evolution != 'none' and not space.objectives[0].name.startswith('test/'):
    raise UserError(
      f"--evolve={evolution} needs a first objective of 'test/', not {space.objectives[0].name!r}"
    )
  if evolution != 'none' and space.seeds > 1:
    raise UserError(
      f'--evolve={evolution} and space.seeds={space.seeds} exclude each other: members compete one'
      ' by one'
    )


def remarks(space: Space) -> Iterator[str]:
  """What a person should know of a space that was made for a search, a line each."""
  if space.sampler in _ADAPTIVE:
    yield (
      f'space.sampler={space.sampler!r} learns from trials that have ended; members start together,'
      ' so their values are drawn at random'
    )
  if space.pruner != 'none':
    yield f'space.pruner={space.pruner!r} has no part in a population; --evolve=halving has'


def bounds(space: Space) -> dict[str, tuple[float, float]]:
  """The ranges in which population-based training perturbs: of all that varies as a number.

  Of choices and grids it is from the least value to the greatest, and between them.
  """
  found = {}
  for key, parameter in space.parameters.items():
    values = parameter.values or (parameter.low, parameter.high)
    if key != 'seed' and all(type(value) in (int, float) for value in values):
      found[key] = (min(values), max(values))
  return found


def scores(objective: Objective, figures: Mapping[str, np.ndarray]) -> np.ndarray:
  """What members are ranked by, float32 [K]: higher is better, NaN of those that diverged.

  Args:
    objective: of the test split.
    figures: of the test split, [K] each, with `loss`: a network whose numbers aren't finite has
      an accuracy still.
  """
  values = figures[objective.name.removeprefix('test/')]
  signed = values if objective.direction == 'maximize' else -values
  return np.where(np.isfinite(figures['loss']), signed, np.nan).astype(np.float32)


def _points(values: Mapping[str, Any], space: Space, seed: int) -> list[dict[str, Any]]:
  """The members of a trial, one for each seed."""
  if space.seeds == 1:
    return [dict(values)]
  return [{**values, 'seed': seed + i} for i in range(space.seeds)]


@contextlib.contextmanager
def _claimed(sweep: worker.Sweep) -> Iterator[Claims]:
  """Takes all trials that wait, and lives for them; after an error, those that train wait again."""
  study, claims, over = sweep.study, Claims(), threading.Event()

  def live() -> None:
    while not over.wait(search.HEARTBEAT):
      with contextlib.suppress(MachineError):  # whoever asks next is told
        for claim in list(claims.values()):
          study.beat(claim)

  thread = threading.Thread(target=live, daemon=True)
  thread.start()
  try:
    while (claim := study.claim(sweep.owner)) is not None:
      claims[claim.slot] = claim
    yield claims
  except BaseException as e:
    with contextlib.suppress(MachineError):  # a storage that is gone; the dead are found later
      for claim in claims.values():
        study.retry(claim, str(e) or type(e).__name__)
    raise
  finally:
    over.set()
    thread.join()


def _identify(
  sweep: worker.Sweep, trials: Sequence[search.Trial], claims: Claims, evolution: str
) -> None:
  """Keeps what the population is; a directory that holds something else is refused."""
  mine = {'evolve': evolution, 'trials': len(trials)}
  kept = workdir.read_json(sweep.directory, _FILE)
  elsewhere = [t for t in trials if t.slot not in claims and t.state == 'running']
  if elsewhere:
    first = elsewhere[0]
    raise UserError(f'trial {first.slot} runs in {first.owner}: a population is one process')
  if kept is None and len(claims) < len(trials):
    raise UserError(
      f'--workdir={sweep.directory!r}: {len(trials) - len(claims)} of its {len(trials)} trials have'
      ' run as a search; choose another workdir, or --mode=search'
    )
  for key, value in (kept or mine).items():
    if value != mine[key]:
      raise UserError(
        f'--{key}={mine[key]!r} must be {value!r}, as the population in'
        f' --workdir={sweep.directory!r} has it; choose another workdir'
      )
  directory.write(os.path.join(sweep.directory, _FILE), json.dumps(mine) + '\n')


def _hook(
  sweep: worker.Sweep, claims: Claims, folder: str, evolution: str, told: dict[int, int]
) -> population.OnEvaluation:
  """What `population.run` calls between evaluations."""
  space, study = sweep.space, sweep.study
  exploit = jax.jit(functools.partial(evolve.exploit_and_explore, bounds=bounds(space)))

  def on_evaluation(step: int, figures: Any, state: Any, hypers: Any, key: jax.Array) -> Any:
    _tell(sweep, claims, folder, told)
    if evolution == 'none':
      return state, hypers, None, None
    found = jnp.asarray(scores(space.objectives[0], figures))
    if evolution == 'pbt':
      state, hypers, parents = exploit(key, found, state, dict(hypers))
      return state, hypers, None, np.asarray(parents)
    tests = _by_member(folder)
    training = [member for member, rows in tests.items() if rows[-1]['step'] == step]
    evaluation = len(tests[training[0]])
    left = evolve.survivors(len(tests), evaluation)
    keep = np.asarray(evolve.halve(found, keep=left)) if left < len(found) else None
    order = np.asarray(evolve.ranking(found)).tolist()
    for place, index in enumerate(order, 1):
      if keep is not None and index not in keep and (claim := claims.pop(training[index], None)):
        if math.isfinite(found[index]):
          study.prune(claim, f'place {place} of {len(order)} after evaluation {evaluation}')
        else:
          study.diverge(claim, f'the test loss after step {step} is not finite')
    return state, hypers, keep, None

  return on_evaluation


def _by_member(folder: str, split: str = 'test') -> dict[int, list[Row]]:
  """Each member's rows of a split so far."""
  found: dict[int, list[Row]] = {}
  for row in writers.read(folder):
    if row['split'] == split:
      found.setdefault(row['member'], []).append(row)
  return {member: found[member] for member in sorted(found)}


def _tell(sweep: worker.Sweep, claims: Claims, folder: str, told: dict[int, int]) -> None:
  """Reports what is new: of a trial's members, the mean of the first objective.

  Args:
    sweep: whose study is told.
    claims: whose trials are told of.
    folder: of the population.
    told: how many evaluations of each slot were; brought up to date.
  """
  split, _, name = sweep.space.objectives[0].name.rpartition('/')
  rows, seeds = _by_member(folder, split), sweep.space.seeds
  for slot, claim in claims.items():
    runs = [rows.get(slot * seeds + seed, []) for seed in range(seeds)]
    for number, together in enumerate(zip(*runs, strict=False), 1):
      finite = all(row['loss'] is not None and row[name] is not None for row in together)
      if number > told.get(slot, 0) and finite:
        sweep.study.report(claim, number, statistics.fmean(row[name] for row in together))
      told[slot] = max(number, told.get(slot, 0))


def _finish(
  sweep: worker.Sweep, claims: Claims, folder: str, config: Config, told: dict[int, int]
) -> None:
  """Ends the trials that trained to the end."""
  space, study = sweep.space, sweep.study
  _tell(sweep, claims, folder, told)
  names = [objective.name for objective in space.objectives]
  cost = costs.count(config) if {'macs', 'parameters'}.intersection(names) else {}
  rows = writers.read(folder)
  for slot in list(claims):
    members = range(slot * space.seeds, (slot + 1) * space.seeds)
    runs = [[row for row in rows if row['member'] == member] for member in members]
    found = [[_newest(name, run, cost) for name in names] for run in runs]
    losses = [_newest('test/loss', run, cost) for run in runs]
    if None in losses or any(None in values for values in found):
      study.diverge(claims.pop(slot), 'the test loss at the end is not finite')
    else:
      means = tuple(statistics.fmean(values) for values in zip(*found, strict=True))
      study.complete(claims.pop(slot), means)


def _newest(name: str, run: Sequence[Row], cost: Mapping[str, float]) -> float | None:
  """An objective of a member's run; None where it isn't a finite number."""
  split, _, key = name.rpartition('/')
  found = [row[key] for row in run if row['split'] == split and key in row]
  return cost.get(name, found[-1] if found else None)


def report(sweep: worker.Sweep, folder: str) -> Iterator[str]:
  """The steps that were made, and the `cnnjax.main` command of each member, a line each.

  The command trains the same network alone; a comment says how far, where that isn't to the end.
  """
  tests, changes = _by_member(folder), _by_member(folder, 'hypers')
  ends = {member: rows[-1]['step'] for member, rows in tests.items()}
  last = max(ends.values(), default=0)
  yield f'{len(ends)} members made {sum(ends.values()):,} of {len(ends) * last:,} steps'
  for trial in table.latest(sweep.study.trials()):
    for seed, command in enumerate(worker.commands(sweep, trial)):
      member = trial.slot * sweep.space.seeds + seed
      copies = [row for row in changes.get(member, ()) if row['parent'] != member]
      note = f'  # stopped after step {ends[member]}' if ends.get(member, last) < last else ''
      if copies:
        note = f"  # as to step {copies[0]['step']}, then from member {copies[0]['parent']}'s state"
      yield f'member {member:3d}  {command}{note}'
