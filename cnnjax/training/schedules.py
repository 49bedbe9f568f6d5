"""Learning-rate schedules by name: pure functions of the step, in jit and on the host alike.

Every schedule is learning_rate * warm-up(step) * factor(step). Warm-up is linear,
(step + 1) / (warmup_steps + 1): step 0 already learns, and step `warmup_steps` is the first at full
strength. `linear`, `cosine` and `one_cycle` run over what remains after warm-up and reach their end
factor exactly at `total_steps` (the last update has index total_steps - 1), and stay there.
"""

import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnjax import errors

Factor = Callable[[Any], Any]


def _constant(start: int, total: int) -> Factor:
  return lambda step: 1.0


def _step(
  start: int, total: int, *, boundaries: Sequence[float] = (0.5, 0.75), factor: float = 0.1
) -> Factor:
  """Multiplied by `factor` from each boundary on; below 1 it is a fraction of all steps."""
  number = lambda x: isinstance(x, numbers.Real) and not isinstance(x, bool)
  valid = isinstance(boundaries, list | tuple) and all(map(number, boundaries))
  steps = [round(b * total) if b < 1 else b for b in boundaries] if valid else []
  if (
    not valid or any(b != int(b) or not 0 < b < total for b in steps) or sorted(set(steps)) != steps
  ):
    raise errors.UserError(
      f'schedule.options.boundaries={boundaries!r} must increase, each a fraction '
      f'below 1 or a whole step below total_steps={total}'
    )
  _check('schedule.options.factor', factor, lambda x: x > 0, 'a positive number')

  def value(step):
    xp = _numpy(step)
    return math.prod(xp.where(step >= b, xp.float32(factor), xp.float32(1)) for b in steps)

  return value


def _linear(start: int, total: int, *, end_factor: float = 0.0) -> Factor:
  _check('schedule.options.end_factor', end_factor, lambda x: x >= 0, 'a number, not negative')
  return lambda step: _mix(1.0, end_factor, _progress(step, start, total))


def _cosine(start: int, total: int, *, end_factor: float = 0.0) -> Factor:
  """Half a cosine, https://arxiv.org/abs/1608.03983 equation 5, without restarts."""
  _check('schedule.options.end_factor', end_factor, lambda x: x >= 0, 'a number, not negative')
  return lambda step: _mix(1.0, end_factor, _ease(_progress(step, start, total)))


def _one_cycle(
  start: int,
  total: int,
  *,
  peak: float = 0.3,
  start_factor: float = 0.04,
  end_factor: float = 4e-6,
  shape: str = 'cosine',
) -> Factor:
  """Up to the full learning rate at the fraction `peak`, and down (https://arxiv.org/abs/1708.07120).

  Both ways are half cosines, or straight lines with shape='linear'; defaults as in PyTorch.
  """
  _check('schedule.options.peak', peak, lambda x: 0 < x < 1, 'a number between 0 and 1')
  _check('schedule.options.start_factor', start_factor, lambda x: x >= 0, 'a number, not negative')
  _check('schedule.options.end_factor', end_factor, lambda x: x >= 0, 'a number, not negative')
  shapes = {'cosine': _ease, 'linear': lambda progress: progress}
  if shape not in shapes:
    raise errors.unknown('schedule.options.shape', shape, shapes)
  ease = shapes[shape]
  top = min(start + round(peak * (total - start)), total - 1)

  def value(step):
    up = _mix(start_factor, 1.0, ease(_progress(step, start, top)))
    down = _mix(1.0, end_factor, ease(_progress(step, top, total)))
    return _numpy(step).where(step < top, up, down)

  return value


SCHEDULES: dict[str, Callable[..., Factor]] = {
  'constant': _constant,
  'step': _step,
  'linear': _linear,
  'cosine': _cosine,
  'one_cycle': _one_cycle,
}


def create(
  name: str,
  *,
  learning_rate: float,
  total_steps: int,
  warmup_steps: int = 0,
  **options: Any,
) -> optax.Schedule:
  """A schedule by name.

  Args:
    name: one of SCHEDULES.
    learning_rate: the value at factor 1; a number, or a traced array (not checked).
    total_steps: number of updates of the whole run.
    warmup_steps: number of updates below full strength at the start.
    **options: step: `boundaries`, `factor`; linear and cosine: `end_factor`; one_cycle: `peak` (a
      fraction of the steps after warm-up), `start_factor`, `end_factor`, `shape`. Factors are
      relative to `learning_rate`.

  Returns:
    A function from the update's index (an integer or an array of them) to float32: by jax.numpy for
    JAX arrays, and by NumPy for all else, so that logging on the host costs the device nothing.

  Raises:
    UserError: an unknown name or option, or a value out of range.
  """
  if name not in SCHEDULES:
    raise errors.unknown('schedule.name', name, SCHEDULES)
  rule = SCHEDULES[name]
  takes = [p.name for p in inspect.signature(rule).parameters.values() if p.kind == p.KEYWORD_ONLY]
  for option, value in options.items():
    if option not in takes:
      raise errors.UserError(
        f'schedule.options.{option}={value!r} is not an option of {name!r}, which takes: '
        f'{", ".join(takes) or "none"}'
      )
  _check('optimizer.learning_rate', learning_rate, lambda x: x >= 0, 'a number, not negative')
  _check('total_steps', total_steps, lambda x: x > 0 and x == int(x), 'a positive whole number')
  _check(
    'schedule.warmup_steps',
    warmup_steps,
    lambda x: 0 <= x < total_steps and x == int(x),
    f'a whole number from 0 to below total_steps={total_steps}',
  )
  factor = rule(int(warmup_steps), int(total_steps), **options)

  def schedule(step):
    xp = _numpy(step)
    warmup = xp.minimum(xp.float32(1), xp.float32(step + 1) / xp.float32(warmup_steps + 1))
    return xp.asarray(learning_rate, xp.float32) * (warmup * factor(step))

  return schedule


def _numpy(step: Any) -> Any:
  return jnp if isinstance(step, jax.Array) else np


def _progress(step: Any, start: int, end: int) -> Any:
  """0 up to `start`, 1 from `end` on, exactly (compiled divisions may be off by a rounding)."""
  xp = _numpy(step)
  ratio = xp.float32(step - start) / xp.float32(max(end - start, 1))
  return xp.where(step >= end, xp.float32(1), xp.clip(ratio, 0, 1))


def _ease(progress: Any) -> Any:
  xp = _numpy(progress)
  return xp.where(progress < 1, 0.5 - 0.5 * xp.cos(xp.float32(math.pi) * progress), xp.float32(1))


def _mix(first: float, last: float, weight: Any) -> Any:
  """From `first` at weight 0 to `last` at weight 1, exact at both ends."""
  return (1 - weight) * first + weight * last


def _check(field: str, value: Any, holds: Callable[[float], bool], allowed: str) -> None:
  if isinstance(value, jax.Array):
    return
  number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  real: Any = value if number else math.nan
  if not (abs(real) < 2**53 and holds(float(real))):
    # So many times a rate of so much is a float32 still.
    large = ' and below 2**53' if abs(real) >= 2**53 else ''
    raise errors.UserError(f'{field}={value!r} must be {allowed}{large}')
