"""Finished runs read back: one figure of each, in groups that differ in the seed alone."""

import glob
import math
import os
import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.errors import UserError, unknown
from cnnjax.training import workdir, writers

TEST_SET = ('data.json name', 'data.json class_names', 'data.json test_examples')


class Run(NamedTuple):
  """A figure of one run.

  Attributes:
    directory: its workdir.
    seed: its config's.
    setting: the rest of its config, by key, and what data.json says, by 'data.json KEY'.
    revision: of the code that made it, as git describes it; None where that isn't known.
    finished: whether it was evaluated after its last step.
    step: at which the figure was written.
    value: the newest.
  """

  directory: str
  seed: int
  setting: dict[str, Any]
  revision: str | None
  finished: bool
  step: int
  value: float

  @property
  def test_examples(self) -> int | None:
    """How many there are in its test set."""
    return self.setting.get('data.json test_examples')


class Side(NamedTuple):
  """Runs of one config, a seed each, in the order of seeds."""

  name: str
  runs: tuple[Run, ...]

  @property
  def values(self) -> dict[int, float]:
    """The figures, by seed."""
    return {run.seed: run.value for run in self.runs}


def read(directory: str, metric: str, *, unfinished: bool = False) -> Run:
  """Reads one run.

  Args:
    directory: its workdir.
    metric: 'SPLIT/NAME' of metrics.jsonl.
    unfinished: accept a run that hasn't come to its end.

  Raises:
    UserError: no run is there, it isn't finished, or it has no such figure.
  """
  stored = workdir.read_json(directory, 'config.json')
  if stored is None:
    raise UserError(f'{directory!r} holds no run: there is no config.json')
  try:
    config = config_lib.validate(ConfigDict(stored))
  except UserError as e:
    raise UserError(f'{directory}/config.json: {e}') from e
  data = workdir.read_json(directory, 'data.json') or {}
  environment = workdir.read_json(directory, 'environment.json') or {}
  rows = writers.read(directory)
  step, steps = max((row['step'] for row in rows), default=0), _steps(config, data)
  finished = any((row['split'], row['step']) == ('test', steps) for row in rows)
  if not finished and not unfinished:
    where = f'it is at step {step} of {steps}' if steps else 'it has not begun'
    raise UserError(
      f'{directory!r} is not finished ({where}): let it end, or count its newest figure with'
      ' --unfinished'
    )
  figures = {
    f'{row["split"]}/{key}': (row['step'], value)
    for row in rows
    for key, value in row.items()
    if key != 'step' and type(value) in (int, float)
  }
  if not figures:
    raise UserError(f'{directory!r} has written no figures')
  if metric not in figures:
    raise unknown(f'{directory}: --metric', metric, figures)
  step, value = figures[metric]
  if not math.isfinite(value):
    raise UserError(f'{directory}: {metric} is {value} at step {step}, which has no mean')
  setting = {**dict(config_lib.leaves(config)), **{f'data.json {k}': v for k, v in data.items()}}
  seed, revision = setting.pop('seed'), environment.get('git')
  return Run(directory, seed, setting, revision, finished, step, float(value))


def _steps(config: config_lib.Config, data: dict[str, Any]) -> int | None:
  """At which step the run ends; None where data.json, written before the first, doesn't tell."""
  from cnnjax.training import experiment

  train, test = data.get('train_examples'), data.get('test_examples')
  if not isinstance(train, int) or not isinstance(test, int):
    return None
  return experiment.make_plan(config, train, test, devices=1).steps


def side(text: str, metric: str, *, unfinished: bool = False, flag: str = '--runs') -> Side:
  """The runs that a pattern finds.

  Args:
    text: 'PATTERN' of workdirs, as a shell has it, or 'NAME=PATTERN'.
    metric: 'SPLIT/NAME'.
    unfinished: see `read`.
    flag: where the pattern is from, for the error.

  Raises:
    UserError: it finds none, one can't be read, or they aren't runs of one config with a seed each.
  """
  name, equals, pattern = text.partition('=')
  if not equals or os.sep in name:
    name = pattern = text
  found = filter(os.path.isdir, glob.glob(os.path.expanduser(pattern)))
  directories = sorted(map(os.path.normpath, found))
  if not directories:
    raise UserError(f'{flag}={pattern!r} finds no directory')
  return _group(name, [read(d, metric, unfinished=unfinished) for d in directories])


def _group(name: str, runs: Sequence[Run]) -> Side:
  first, by_seed = runs[0], {}
  for run in runs:
    changed = differing(first, run)
    if changed:
      one, other = (reprlib.repr(r.setting.get(changed[0])) for r in (first, run))
      raise UserError(
        f'{name}: {first.directory} and {run.directory} differ in {", ".join(changed)}'
        f' ({changed[0]} is {one} and {other}): runs of one side may differ in the seed alone'
      )
    if run.seed in by_seed:
      raise UserError(
        f'{name}: {by_seed[run.seed].directory} and {run.directory} have the same seed, {run.seed}'
      )
    by_seed[run.seed] = run
  return Side(name, tuple(by_seed[seed] for seed in sorted(by_seed)))


def differing(first: Run, second: Run) -> list[str]:
  """Keys of the settings in which two runs differ, but for those that no result depends on."""
  a, b = first.setting, second.setting
  keys = {*a, *b}.difference(workdir.MAY_CHANGE)
  return sorted(key for key in keys if a.get(key) != b.get(key))


def points(
  directory: str, metric: str, *, unfinished: bool = False
) -> tuple[list[Side], dict[str, str]]:
  """The points of a sweep, each trial's seeds together.

  Args:
    directory: the sweep's, whose trials/ hold a workdir each, or one for each seed.
    metric: 'SPLIT/NAME'.
    unfinished: see `read`.

  Returns:
    The points, named as their trials are; and which trials have no figure, with the reason: one
    without all of its seeds would be judged by those that didn't fail.

  Raises:
    UserError: there are no trials, or none has a figure.
  """
  trials = sorted(filter(os.path.isdir, glob.glob(f'{glob.escape(directory)}/trials/*')))
  if not trials:
    raise UserError(f'--sweep={directory!r} holds no trials')
  found: list[Side] = []
  left_out: dict[str, str] = {}
  for trial in trials:
    seeds = sorted(filter(os.path.isdir, glob.glob(f'{glob.escape(trial)}/seed*'))) or [trial]
    name = os.path.basename(trial)
    try:
      found.append(_group(name, [read(d, metric, unfinished=unfinished) for d in seeds]))
    except UserError as e:
      left_out[name] = str(e)
  if not found:
    raise UserError(
      f'--sweep={directory!r}: no trial has a figure: {next(iter(left_out.values()))}'
    )
  most = max(len(point.runs) for point in found)
  for point in [] if unfinished else found:
    if len(point.runs) < most:
      left_out[point.name] = f'{len(point.runs)} of {most} seeds'
  return [point for point in found if point.name not in left_out], left_out
