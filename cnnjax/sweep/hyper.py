"""The hyper-parameters in which the members of a population differ: which can be traced, and how.

A member is the config with numbers of its own. Those that differ become arrays `[K]` by config key;
inside the compiled step a member's config holds its traced numbers (`substitute`), and all that
makes a step of a config takes them as they are.
"""

import functools
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax import config as config_lib
from cnnjax.config import Config
from cnnjax.data import augment, mix, recipe
from cnnjax.errors import UserError
from cnnjax.sweep import space

NUMBERS = (
  'optimizer.learning_rate',
  'optimizer.weight_decay',
  'optimizer.momentum',
  'optimizer.b1',
  'optimizer.b2',
  'optimizer.eps',
  'optimizer.clip_norm',
  'loss.label_smoothing',
  'ema_decay',
  'sam_radius',
)
_ALLOWED = f'seed, {", ".join(NUMBERS)}, schedule.*, and numbers in augment and mix'
_INSTEAD = '--mode=search runs such a space'
_OPERATIONS = {'augment': augment.operations, 'mix': mix.operations}
_CHECKS: dict[str, Callable[[str], Any]] = {
  'augment': augment.parse,
  'mix': functools.partial(mix.parse, num_classes=2),
}

Values = Mapping[str, Any]  # by config key: arrays [K] of all members, or numbers of one


def read(
  config: Config, points: Sequence[Mapping[str, Any]]
) -> tuple[list[Config], dict[str, np.ndarray]]:
  """The members' configs, and where they differ.

  Args:
    config: validated.
    points: of each member, config key -> value.

  Returns:
    Each member's own config, validated; and arrays [K] by config key of what isn't the same in all
    of them: `seed` uint32, `optimizer.learning_rate` and the others of NUMBERS float32, and int32
    or float32 options of recipes by their place, as in `augment.1.degrees` and `augment.0.scale.1`.
    `schedule` int32 stands for all of schedule's keys: the place, among those that differ and in
    the order of the members, of a member's.

  Raises:
    UserError: a value that config can't have, or a difference that can't be traced.
  """
  if not points:
    raise UserError('a population needs at least one member')
  configs = [space.apply(config, point) for point in points]
  leaves = [dict(config_lib.leaves(c)) for c in configs]
  values: dict[str, np.ndarray] = {}
  schedules = [tuple((k, v) for k, v in own.items() if k.startswith('schedule.')) for own in leaves]
  distinct = [own for i, own in enumerate(schedules) if own not in schedules[:i]]
  for key in dict.fromkeys(key for own in leaves for key in own):
    found: list[Any] = [own.get(key) for own in leaves]
    if _same(found):
      continue
    if key.startswith('schedule.'):
      values['schedule'] = np.array([distinct.index(own) for own in schedules], np.int32)
    elif key in _OPERATIONS:
      values |= _options(key, found)
    elif key == 'seed':
      values[key] = np.array(found, np.uint32)
    elif key in NUMBERS and None not in found:
      values[key] = np.array(found, np.float32)
    elif key in NUMBERS:
      raise UserError(f'config.{key} takes {_shown(found)}: every member needs a number')
    else:
      raise UserError(
        f'config.{key} takes {_shown(found)}, but members of one program can differ only in'
        f' {_ALLOWED}; {_INSTEAD}'
      )
  return configs, values


def substitute(config: Config, values: Values) -> Config:
  """The config with other numbers, which may be traced and so aren't checked.

  Args:
    config: validated; its recipes and its schedule stay as they are.
    values: as of `read`, one member's.
  """
  changed = config.copy_and_resolve_references()
  with changed.unlocked(), changed.ignore_type():
    for path, value in values.items():
      *groups, key = path.split('.')
      if path in (*NUMBERS, 'seed'):
        functools.reduce(operator.getitem, groups, changed)[key] = value
  return changed


def operations(field: str, spec: str, values: Values) -> list[Callable[..., Any]]:
  """A recipe's operations, some of their options replaced; for `augment.compose`, `mix.compose`.

  Args:
    field: 'augment' or 'mix'.
    spec: the recipe.
    values: as of `read`, one member's.
  """
  found = _OPERATIONS[field](spec)
  return [_bind(f'{field}.{place}', function, values) for place, function in enumerate(found)]


def _bind(prefix: str, function: Any, values: Values) -> Callable[..., Any]:
  bound = {}
  for option, value in _keywords(function).items():
    key = f'{prefix}.{option}'
    if isinstance(value, tuple | list):
      bound[option] = tuple(values.get(f'{key}.{i}', number) for i, number in enumerate(value))
    else:
      bound[option] = values.get(key, value)
  return functools.partial(function.func, **bound)


def _keywords(function: Any) -> dict[str, Any]:
  """All options of an operation whose recipe gave some of them."""
  parameters = inspect.signature(function.func).parameters.values()
  defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
  defaults.pop('visit', None)  # no option
  return {**defaults, **function.keywords}


def _options(field: str, specs: Sequence[str]) -> dict[str, np.ndarray]:
  """The numbers in which recipes of the same operations differ."""
  for spec in dict.fromkeys(specs):
    _CHECKS[field](spec)
  recipes = [_OPERATIONS[field](spec) for spec in specs]
  names = [[function.func for function in recipe] for recipe in recipes]
  if not _same(names):
    raise UserError(
      f'config.{field} takes {_shown(specs)}, but members of one program differ only in the numbers'
      f' of the same operations; {_INSTEAD}'
    )
  values: dict[str, np.ndarray] = {}
  for place, functions in enumerate(zip(*recipes, strict=True)):
    function = functions[0].func
    options = [_keywords(f) for f in functions]
    for option, parameter in inspect.signature(function).parameters.items():
      found = [own.get(option) for own in options]
      if _same(found):
        continue
      key, kind = (
        f'{field}.{place}.{option}',
        np.int32 if parameter.annotation is int else np.float32,
      )
      if all(isinstance(x, tuple | list) for x in found):
        for i, numbers in enumerate(zip(*found, strict=True)):
          if not _same(numbers):
            values[f'{key}.{i}'] = np.array(numbers, kind)
      elif all(isinstance(x, int | float) for x in found):
        values[key] = np.array(found, kind)
      mine = {k: v[0] for k, v in values.items() if k.startswith(key)}
      if not mine or not _traces(field, specs[0], mine):
        raise UserError(
          f'config.{field}: {option} of {function.__name__} takes {_shown(found)}, but it cannot be'
          f' traced, as members of one program need it; {_INSTEAD}'
        )
  return values


def _traces(field: str, spec: str, values: Values) -> bool:
  """Whether the recipe can do without knowing these numbers; nothing is computed."""

  def draw(key: jax.Array, image: jax.Array, values: Values) -> Any:
    functions = operations(field, spec, values)
    if field == 'mix':
      return [function(key, *image.shape[:2]) for function in functions]
    whole = augment.compose(functions)
    return whole(key, image, **({'visit': jnp.int32(0)} if recipe.takes_visit(whole) else {}))

  image = jax.ShapeDtypeStruct((256, 256, 3), jnp.float32)
  try:
    jax.eval_shape(draw, jax.random.key(0), image, dict(values))
  except Exception:  # of whatever needs a number that it can look at
    return False
  return True


def _same(values: Sequence[Any]) -> bool:
  return all(value == values[0] for value in values)


def _shown(values: Sequence[Any]) -> str:
  texts = list(dict.fromkeys(map(repr, values)))
  return ' and '.join(texts) if len(texts) < 4 else f'{", ".join(texts[:3])} and others'
