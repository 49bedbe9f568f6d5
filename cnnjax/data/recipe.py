"""Recipes: what a string such as 'random_crop(padding=4)|flip_horizontal' names.

Nothing in one is evaluated but literals. The checks of options at the end serve the functions that
recipes name; their errors read e.g. 'augment: rotate(degrees=400) must be a number in [0, 180]'.
"""

import ast
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from cnnjax import errors


def parse(
  field: str, spec: str, registry: Mapping[str, Callable[..., Any]], example: str
) -> list[Callable[..., Any]]:
  """The functions that a recipe names, in order, with their options bound.

  Args:
    field: the config key, for errors.
    spec: names from `registry`, with keyword options in parentheses, joined by `|`; '' for none.
    registry: functions whose options are their keyword-only parameters; `visit` isn't an option.
    example: a right recipe, for errors.

  Raises:
    UserError: wrong syntax, an unknown name or option, or one that is missing or isn't a literal.
      Whether a value is in range, the function itself says.
  """
  if not isinstance(spec, str):
    raise errors.UserError(f'{field}={spec!r} must be a string such as {example!r}')
  if not spec.strip():
    return []
  try:
    node = ast.parse(spec.strip(), mode='eval').body
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    raise errors.UserError(f'{field}={spec!r} has wrong syntax; write e.g. {example!r}') from error
  nodes = []  # Python's own grammar reads `a|b(c=1)`, as a tree that leans to the left
  while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    nodes.append(node.right)
    node = node.left
  return [_bind(field, spec, n, registry, example) for n in (node, *reversed(nodes))]


def takes_visit(function: Callable[..., Any]) -> bool:
  """Whether it has a parameter `visit`: how often the example was shown before, give or take 1."""
  return 'visit' in inspect.signature(function).parameters


def _bind(
  field: str,
  spec: str,
  node: ast.expr,
  registry: Mapping[str, Callable[..., Any]],
  example: str,
) -> Callable[..., Any]:
  call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
  if not isinstance(call.func, ast.Name) or call.args or any(k.arg is None for k in call.keywords):
    raise errors.UserError(f'{field}={spec!r} must be names with keyword options, e.g. {example!r}')
  name = call.func.id
  if name not in registry:
    raise errors.unknown(field, name, registry)
  function = registry[name]
  known = {
    p.name: p.default is p.empty
    for p in inspect.signature(function).parameters.values()
    if p.kind is p.KEYWORD_ONLY and p.name != 'visit'
  }
  try:
    options = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
  except (ValueError, TypeError, RecursionError, MemoryError) as error:
    raise errors.UserError(f'{field}={spec!r}: options must be plain values') from error
  if len(options) < len(call.keywords):
    raise errors.UserError(f'{field}={spec!r}: an option of {name} is given twice')
  for option in options:
    if option not in known:
      raise errors.unknown(f'{field}: option of {name}', option, known)
  for option, required in known.items():
    if required and option not in options:
      raise errors.UserError(f'{field}={spec!r}: {name} needs the option {option}')
  return functools.partial(function, **options)


def is_traced(value: Any) -> bool:
  """Whether a number is known to a compiled program alone: a member's, of `sweep.population`."""
  import jax  # who reads recipes on the host does without

  return isinstance(value, jax.Array)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_integer(where: str, option: str, value: Any, low: int, high: int | None = None) -> None:
  """Refuses all but integers from `low` to `high`; `where` is e.g. 'augment: cutout'.

  Numbers that are traced were checked before, here and below.
  """
  if is_traced(value):
    return
  whole = isinstance(value, int) and not isinstance(value, bool)
  if not whole or value < low or (high is not None and value > high):
    allowed = f'>= {low}' if high is None else f'in [{low}, {high}]'
    raise errors.UserError(f'{where}({option}={value!r}) must be an integer {allowed}')


def check_number(where: str, option: str, value: Any, low: float, high: float) -> None:
  """Refuses all but numbers from `low` to `high`."""
  if is_traced(value):
    return
  if not _is_number(value) or not low <= value <= high:
    raise errors.UserError(f'{where}({option}={value!r}) must be a number in [{low:g}, {high:g}]')


def check_interval(where: str, option: str, value: Any, low: float, high: float) -> None:
  """Refuses all but two numbers in increasing order, above `low` and up to `high`."""
  if isinstance(value, tuple) and any(map(is_traced, value)):
    return
  pair = value if isinstance(value, tuple | list) and all(map(_is_number, value)) else ()
  if len(pair) != 2 or not low < pair[0] <= pair[1] <= high:
    raise errors.UserError(
      f'{where}({option}={value!r}) must be two numbers (least, most) in ({low:g}, {high:g}]'
    )
