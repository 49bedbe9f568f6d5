"""What a sweep varies and what it is after: the few lines of a file in experiments/sweeps/.

from cnnjax.sweep import space

def get_space():
  return space.Space(
    parameters={
      'optimizer.learning_rate': space.log_uniform(1e-4, 1e-1),
      'optimizer.name': space.choice('adamw', 'nesterov'),
      'optimizer.momentum': space.uniform(0.8, 0.99, when={'optimizer.name': 'nesterov'}),
    },
    objectives=(space.maximize('test/accuracy'),),
    trials=30,
  )
"""

import itertools
import json
import math
import os
import runpy
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax import errors
from cnnjax.config import Config
from cnnjax.errors import UserError

SAMPLERS = ('grid', 'random', 'quasi_random', 'tpe', 'cma_es', 'gaussian_process')
PRUNERS = ('none', 'median', 'halving', 'hyperband')
COSTS = ('macs', 'parameters', 'seconds')  # of a run: known from its model, or from its clock
METRICS = {
  'train': ('loss', 'accuracy', 'gradient_norm', 'learning_rate', 'seconds', 'images_per_second'),
  'test': ('loss', 'accuracy', 'top5_accuracy', 'expected_calibration_error'),
  'probe': ('knn_accuracy', 'linear_accuracy'),
}
_MOST = 10_000  # points of a grid
_NONE: Mapping[str, Any] = types.MappingProxyType({})


class Parameter(NamedTuple):
  """How one config key varies.

  Attributes:
    kind: 'uniform', 'log_uniform', 'integer', 'choice' or 'grid'.
    low: least value of a range; None for choice and grid.
    high: greatest value, which is possible too.
    log: an integer's logarithm is uniform, not the integer.
    values: those of choice and grid.
    when: it varies only where each of these keys has one of these values; empty for always.
  """

  kind: str
  low: Any = None
  high: Any = None
  log: bool = False
  values: tuple[Any, ...] = ()
  when: Mapping[str, tuple[Any, ...]] = _NONE


class Objective(NamedTuple):
  """A figure to be made large or small: `SPLIT/NAME` of metrics.jsonl's last row, or of COSTS."""

  name: str
  direction: str


When = Mapping[str, Any] | None  # config key -> a value, or a tuple of values


def uniform(low: float, high: float, *, when: When = None) -> Parameter:
  """A number between two others."""
  return Parameter('uniform', low, high, when=_conditions(when))


def log_uniform(low: float, high: float, *, when: When = None) -> Parameter:
  """A positive number whose logarithm is uniform."""
  return Parameter('log_uniform', low, high, when=_conditions(when))


def integer(low: int, high: int, *, log: bool = False, when: When = None) -> Parameter:
  """A whole number from `low` to `high`, both included."""
  return Parameter('integer', low, high, log, when=_conditions(when))


def choice(*values: Any, when: When = None) -> Parameter:
  """One of the values, without an order between them."""
  return Parameter('choice', values=values, when=_conditions(when))


def grid(*values: Any, when: When = None) -> Parameter:
  """All of the values in a grid; to other samplers the same as `choice`."""
  return Parameter('grid', values=values, when=_conditions(when))


def maximize(name: str) -> Objective:
  """The larger the better."""
  return Objective(name, 'maximize')


def minimize(name: str) -> Objective:
  """The smaller the better."""
  return Objective(name, 'minimize')


class Space(NamedTuple):
  """A sweep.

  Attributes:
    parameters: config key to how it varies; a condition's key stands before what depends on it.
    objectives: one, or several for a Pareto front.
    sampler: one of SAMPLERS.
    pruner: one of PRUNERS; it looks at the first objective after each evaluation.
    seeds: runs per point, with config.seed, config.seed + 1, ...; an objective is their mean.
    trials: points to try; of a grid, all of its points, but this many at most.
    fixed: config keys that are set for every trial.
  """

  parameters: dict[str, Parameter]
  objectives: tuple[Objective, ...] = (Objective('test/accuracy', 'maximize'),)
  sampler: str = 'tpe'
  pruner: str = 'none'
  seeds: int = 1
  trials: int = 20
  fixed: Mapping[str, Any] = _NONE


def load(path: str) -> Space:
  """The space of a file with `get_space()`. It is Python and runs, as configs are.

  Raises:
    UserError: there is no such file, it raises, or what it gives is no Space.
  """
  if not os.path.isfile(path):
    raise UserError(f'--space={path!r} does not exist')
  try:
    found = runpy.run_path(path)
    if 'get_space' not in found:
      raise UserError(f'--space={path!r} has no function get_space()')
    space = found['get_space']()
  except UserError:
    raise
  except Exception as e:  # whatever it raises
    raise UserError(f'--space={path!r}: {type(e).__name__}: {e}') from e
  if not isinstance(space, Space):
    raise UserError(f'--space={path!r}: get_space() must give a Space, not {type(space).__name__}')
  return space


def validate(space: Space, config: Config) -> Space:
  """Returns the space when every point of it can be set in the config.

  Args:
    space: as declared, perhaps with fields replaced by flags.
    config: validated; what the trials start from.

  Raises:
    UserError: the first mistake; it names the key, the value and what is allowed.
  """
  if not isinstance(space.parameters, Mapping) or not space.parameters:
    raise UserError(f'space.parameters={space.parameters!r} must be a dict that names a config key')
  for field, allowed in (('sampler', SAMPLERS), ('pruner', PRUNERS)):
    if getattr(space, field) not in allowed:
      raise errors.unknown(f'space.{field}', getattr(space, field), allowed)
  for field in ('seeds', 'trials'):
    value = getattr(space, field)
    if type(value) is not int or value < 1:
      raise UserError(f'space.{field}={value!r} must be an integer, at least 1')
  config = apply(config, space.fixed)
  for key, parameter in space.parameters.items():
    _check_parameter(key, parameter, space)
    if key in space.fixed:
      raise UserError(f'space.fixed[{key!r}] is among the parameters as well')
    for value in parameter.values or (parameter.low, parameter.high):
      apply(config, {key: value})
  if space.seeds > 1 and 'seed' in space.parameters:
    raise UserError(f"space.seeds={space.seeds} and the parameter 'seed' exclude each other")
  if space.sampler == 'grid':
    grid_points(space)
  _check_objectives(space, config)
  return space


def _check_parameter(key: str, parameter: Parameter, space: Space) -> None:
  where = f'space: {key}'
  if not isinstance(parameter, Parameter):
    raise UserError(f'{where}={parameter!r} must be uniform(...), log_uniform(...), integer(...),'
                    ' choice(...) or grid(...)')  # fmt: skip
  kind, low, high = parameter.kind, parameter.low, parameter.high
  if kind in ('choice', 'grid'):
    if not parameter.values:
      raise UserError(f'{where}={kind}() is empty: give at least one value')
    texts = [json.dumps(_plain(where, value)) for value in parameter.values]
    if len(set(texts)) < len(texts):
      raise UserError(f'{where}={kind}{parameter.values!r} has a value twice')
  else:
    shown = f'{where}={kind}({low!r}, {high!r})'
    types = (int,) if kind == 'integer' else (int, float)
    if not all(type(x) in types and abs(x) < math.inf for x in (low, high)) or not low < high:
      numbers = 'integers' if kind == 'integer' else 'numbers'
      raise UserError(f'{shown} must have two {numbers}, the smaller first')
    if (kind == 'log_uniform' or parameter.log) and low <= 0:
      raise UserError(f'{shown} must start above 0: there is no logarithm of {low!r}')
  before = list(space.parameters)[: list(space.parameters).index(key)]
  for other, values in parameter.when.items():
    if other not in before:
      raise UserError(f'{where}: when={other!r} must be a parameter that stands before it')
    known = space.parameters[other].values
    for value in values if known else ():
      if value not in known:
        raise UserError(f'{where}: when {other}={value!r} never holds: it is one of {known!r}')


def _check_objectives(space: Space, config: Config) -> None:
  if not isinstance(space.objectives, tuple) or not space.objectives:
    raise UserError('space.objectives must be a tuple such as (maximize("test/accuracy"),)')
  metrics = {**METRICS, 'probe': tuple(f'{name}_accuracy' for name in config.eval_probes)}
  written = [f'{split}/{name}' for split, names in metrics.items() for name in names]
  for objective in space.objectives:
    if not isinstance(objective, Objective):
      raise UserError(f'space.objectives: {objective!r} must be maximize(NAME) or minimize(NAME)')
    if objective.name not in (*written, *COSTS):
      raise errors.unknown('space.objectives: metric', objective.name, (*written, *COSTS))
  names = [objective.name for objective in space.objectives]
  if len(set(names)) < len(names):
    raise UserError(f'space.objectives={names!r} has a metric twice')
  if space.pruner != 'none':
    if len(names) > 1:
      raise UserError(f'space.pruner={space.pruner!r} needs one objective, not {len(names)}')
    if not names[0].startswith('test/'):
      raise UserError(
        f"space.pruner={space.pruner!r} needs an objective of 'test/', not {names[0]}"
      )


def active(parameter: Parameter, values: Mapping[str, Any]) -> bool:
  """Whether a parameter varies at a point, given the values of those that stand before it."""
  return all(key in values and values[key] in options for key, options in parameter.when.items())


def grid_points(space: Space) -> list[dict[str, Any]]:
  """All points of a space whose parameters are grids, choices and integers, the last fastest.

  Raises:
    UserError: a parameter without a finite number of values, or too many points.
  """
  points: list[dict[str, Any]] = [{}]
  for key, parameter in space.parameters.items():
    values = parameter.values
    if parameter.kind == 'integer':
      if parameter.high - parameter.low >= _MOST:
        raise UserError(f'space: {key} has more than {_MOST} values, too many for a grid')
      values = tuple(range(parameter.low, parameter.high + 1))
    if not values:
      raise UserError(f"space: {key} is {parameter.kind}: the sampler 'grid' needs grid(VALUES)")
    points = [
      {**point, **more}
      for point in points
      for more in ([{key: v} for v in values] if active(parameter, point) else [{}])
    ]
    if len(points) > _MOST:
      raise UserError(f'space: the grid has more than {_MOST} points')
  return points


def apply(config: Config, values: Mapping[str, Any]) -> Config:
  """A validated copy of a config with other values.

  Args:
    config: validated.
    values: by config key.

  Raises:
    UserError: an unknown key, or a value that it can't have.
  """
  changed: dict[str, Any] = {}
  for path, value in itertools.chain(config_lib.leaves(config), values.items()):
    *groups, key = path.split('.')
    group = changed
    for name in groups:
      group = group.setdefault(name, {})
      if not isinstance(group, dict):
        raise UserError(f'config.{path}={value!r}: {name!r} is no group of keys')
    group[key] = value
  return config_lib.validate(ConfigDict(changed))


def describe(space: Space) -> dict[str, Any]:
  """The space as JSON has it, by which it is told whether two sweeps are the same one.

  How long a sweep goes on (`trials`) is no part of it.
  """
  described = {
    key: {**parameter._asdict(), 'when': dict(parameter.when)}
    for key, parameter in space.parameters.items()
  }
  return json.loads(
    json.dumps(
      {
        'parameters': described,
        'objectives': [objective._asdict() for objective in space.objectives],
        'sampler': space.sampler,
        'pruner': space.pruner,
        'seeds': space.seeds,
        'fixed': dict(space.fixed),
      }
    )
  )


def _conditions(when: When) -> dict[str, tuple[Any, ...]]:
  return {k: v if isinstance(v, tuple) else (v,) for k, v in (when or {}).items()}


def _plain(where: str, value: Any) -> Any:
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, tuple):
    return [_plain(where, item) for item in value]
  raise UserError(f'{where}: {value!r} must be None, a number, a string or a tuple of them')
