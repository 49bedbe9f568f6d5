"""Errors that end a command with one line: a person's mistakes, and faults of the machine."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
  """A mistake in flags, config or data; the command line prints its one line and exits with 2."""

  def __init__(self, message: str):
    super().__init__(' '.join(message.split()))


class MachineError(RuntimeError):
  """A full disk, a lost process: status 4. The config is right, the newest checkpoint stands."""

  def __init__(self, message: str):
    super().__init__(' '.join(message.split()))


def closest(value: Any, allowed: Iterable[str]) -> str:
  """'did you mean 'adam'? ' with the closest names, or '' where none is close."""
  close = difflib.get_close_matches(str(value), sorted(allowed), n=3)
  return f'did you mean {" or ".join(map(repr, close))}? ' if close else ''


def unknown(field: str, value: Any, allowed: Iterable[str]) -> UserError:
  """The error for a name that isn't in a registry; names the closest ones.

  Args:
    field: the config key or argument, e.g. `model.name`.
    value: what was given.
    allowed: the names that exist.
  """
  allowed = sorted(allowed)
  hint = closest(value, allowed)
  return UserError(f'{field}={value!r} is unknown: {hint}Allowed: {", ".join(allowed)}')
