"""Points of a space: those of a grid or of a Sobol sequence, known before any trial has run."""

import math
from collections.abc import Callable
from typing import Any

from cnnjax.sweep import space as space_lib
from cnnjax.sweep.space import Parameter, Space


def known(space: Space, n: int, seed: int) -> list[dict[str, Any]]:
  """The first n points of a space; a grid may have fewer.

  Args:
    space: validated.
    n: at least 1. More points begin with the same ones.
    seed: of the scrambling, at least 0.

  Returns:
    Values by config key; {} for each point that the sampler chooses later.
  """
  if space.sampler == 'grid':
    return space_lib.grid_points(space)[:n]
  if space.sampler != 'quasi_random':
    return [{}] * n
  from scipy.stats import qmc

  # A dimension for each parameter, also where it doesn't vary: a slot's point is then the same
  # whatever the others are. Scrambling is Matousek's (J. Complexity 14, 1998) with a digital shift.
  table = qmc.Sobol(len(space.parameters), rng=seed).random_base2((n - 1).bit_length())
  rows = [dict(zip(space.parameters, row, strict=True)) for row in table[:n]]
  return [choose(space, lambda key, parameter, row=row: at(parameter, row[key])) for row in rows]


def choose(space: Space, value: Callable[[str, Parameter], Any]) -> dict[str, Any]:
  """A point: `value(key, parameter)` for each parameter that varies there, in order."""
  values: dict[str, Any] = {}
  for key, parameter in space.parameters.items():
    if space_lib.active(parameter, values):
      values[key] = value(key, parameter)
  return values


def at(parameter: Parameter, u: float) -> Any:
  """The value at a fraction u in [0, 1) of a parameter's range."""
  if parameter.values:
    return parameter.values[int(u * len(parameter.values))]
  whole = parameter.kind == 'integer'
  low, high = parameter.low, parameter.high + whole  # an integer i stands for [i, i + 1)
  log = parameter.log or parameter.kind == 'log_uniform'
  x = low * (high / low) ** u if log else low + u * (high - low)
  x = min(max(x, low), parameter.high)  # rounding
  return math.floor(x) if whole else float(x)
