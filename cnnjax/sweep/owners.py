"""Which processes of a sweep live: each locks a file of its own in `owners/` as long as it does.

The kernel drops a lock when its process ends, however it ends; the file stays. So another process
on the same machine knows at once that a trial's owner has died.
"""

import contextlib
import fcntl
import os
import secrets
import socket
from collections.abc import Iterator

from cnnjax.cli import Stopped
from cnnjax.errors import UserError


def held(path: str) -> bool | None:
  """Whether a process holds the lock of a file; None where that can't be known."""
  try:
    with open(path, 'rb') as file:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:  # no such file, or a file system without locks
    return None
  return False


@contextlib.contextmanager
def join(directory: str, *, alone: bool) -> Iterator[str]:
  """Makes this process one of those that work on a sweep, as long as the context lasts.

  Args:
    directory: of the sweep; created if missing.
    alone: no other process may work on it.

  Yields:
    The process's name, HOST-PID-LETTERS.

  Raises:
    UserError: another process works on it and this one must be alone, or the directory can't be
      written.
  """
  folder = os.path.join(directory, 'owners')
  name = f'{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}'
  path = os.path.join(folder, f'{name}.lock')
  with contextlib.ExitStack() as stack:
    try:
      os.makedirs(folder, exist_ok=True)
      joining = stack.enter_context(open(os.path.join(folder, '.joining'), 'w'))
      file = stack.enter_context(open(path, 'w'))
    except OSError as e:
      raise UserError(f'--workdir={directory!r} cannot be written: {e.strerror}') from e
    with contextlib.suppress(OSError):  # a file system without locks
      fcntl.flock(joining, fcntl.LOCK_EX)  # one joins at a time, so that two don't miss each other
    others = [n for n in os.listdir(folder) if n != f'{name}.lock' and n.endswith('.lock')]
    living = [n for n in others if held(os.path.join(folder, n))]
    if alone and living:
      os.remove(path)
      raise UserError(
        f'--workdir={directory!r} is in use by {living[0].removesuffix(".lock")}, and its storage,'
        ' SQLite, is for one process: --storage=journal:FILE is for several on one machine,'
        ' postgresql://... for several machines'
      )
    with contextlib.suppress(OSError):
      fcntl.flock(file, fcntl.LOCK_EX)
    joining.close()
    try:
      yield name
    except (Stopped, UserError):
      os.remove(path)
      raise
    # After any other error it stays: trials may still be called running, and their owner is dead.
    os.remove(path)


def dead(directory: str, name: str, *, one_machine: bool) -> bool:
  """Whether a process is known to have ended.

  Args:
    directory: of the sweep.
    name: of the process, as `join` gave it.
    one_machine: all processes run on this machine, whatever it was called when they started. With
      False, locks of other machines aren't believed: a shared file system may not pass them on.
  """
  here = name.rsplit('-', 2)[0] == socket.gethostname()
  return (here or one_machine) and held(os.path.join(directory, 'owners', f'{name}.lock')) is False
