"""What all commands share: flags parsed, a mistake told in one line, and the exit status.

0 done; 2 a mistake in flags, config or data; 3 a non-finite loss; 4 the machine failed (a full
disk, a lost process), and the newest checkpoint stands; 75 when `config.max_seconds` are over, 143
after SIGTERM and 130 after SIGINT, with the state saved. After 4, 75, 130 and 143 the same command
goes on.
"""

import errno
import logging
import os
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging

from cnnjax import errors, memory


class Stopped(Exception):
  """The run was told to stop and has saved its state; `status` is what the shell is told."""

  def __init__(self, message: str, status: int):
    super().__init__(message)
    self.status = status


# What a file answers when it is the machine's fault or its owner's, not that of this program.
_MACHINE = {
  getattr(errno, name)
  for name in ('ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS', 'EIO', 'ESTALE', 'EACCES', 'EPERM')
}


class NonFinite(Exception):
  """The cost or its gradient is no longer a number."""


def status(error: BaseException) -> int:
  """The exit status that goes with an error; 1 for what nobody foresaw."""
  kinds = ((errors.UserError, 2), (NonFinite, 3), (errors.MachineError, 4))
  known = (number for kind, number in kinds if isinstance(error, kind))
  return error.status if isinstance(error, Stopped) else next(known, 1)


def _parse(argv: list[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as e:
    raise errors.UserError(str(e).removeprefix('flag --')) from e
  except KeyError as e:  # a group of the config that doesn't exist
    raise errors.UserError(str(e.args[0])) from e
  except Exception as e:  # whatever a config file raises: it is Python, and flags run it
    raise errors.UserError(f'--config: {type(e).__name__}: {e}') from e
  if len(rest) > 1:
    raise errors.UserError(f'{rest[1]!r} is not a flag; flags are written --name=value')
  return rest


def run(main: Callable[[], None]) -> None:
  """Runs a command and exits with its status.

  Args:
    main: the command; it reads absl flags defined in its module.
  """
  absl_logging.set_verbosity(absl_logging.FATAL)  # libraries' chatter; they raise errors as well
  logging.basicConfig(format='%(message)s', stream=sys.stderr)  # our own messages, a line each
  logging.getLogger('cnnjax').setLevel(logging.INFO)
  argv = sys.argv
  if any(a in ('--help', '-h', '--helpshort', '--helpfull', '-helpfull') for a in argv[1:]):
    app.define_help_flags()
  try:
    _parse(argv)
    main()
  except (errors.UserError, errors.MachineError, NonFinite, Stopped) as e:
    print(f'{_name(argv)}: {e}', file=sys.stderr)
    sys.exit(status(e))
  except OSError as e:
    if e.errno not in _MACHINE:
      raise
    print(f'{_name(argv)}: {e.strerror}: {e.filename or "a file"}', file=sys.stderr)
    sys.exit(4)
  except KeyboardInterrupt:
    print(f'{_name(argv)}: interrupted', file=sys.stderr)
    sys.exit(130)


def use_compilation_cache() -> None:
  """Keeps compiled programs between runs, as `config.compilation_cache` says."""
  from cnnjax import compiled

  cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  # The user's own directory: in a shared one, another user could plant compiled code.
  compiled.keep(os.path.join(cache, 'cnnjax', 'xla'))


def start_again() -> None:
  """Starts this command again if its memory isn't managed as training needs it."""
  if variables := memory.environment():
    os.environ |= variables
    os.execv(sys.executable, sys.orig_argv)


def _name(argv: list[str]) -> str:
  main = sys.modules['__main__'].__spec__
  return main.name.removesuffix('.__main__') if main else argv[0]
