"""The working directory: what identifies the run, and the refusal of another run's directory."""

import contextlib
import fcntl
import json
import logging
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax

from cnnjax import errors
from cnnjax.config import Config, leaves

_LOGGER = logging.getLogger(__name__)

MAY_CHANGE = (
  'max_seconds',
  'data.timeout',
  'profile',
)  # no result depends on these
EVALUATION = ('eval_mirror', 'eval_shift', 'eval_statistics')  # no parameter depends on these


@contextlib.contextmanager
def lock(workdir: str) -> Iterator[None]:
  """Keeps every other run out of the directory, which is created if missing, until the end.

  The kernel drops the lock when this process ends, however it ends; the file stays, and means
  nothing by itself. On NFS it holds between machines where the server locks (NFSv4, or lockd).

  Raises:
    UserError: another run holds it, or the directory can't be written.
  """
  path = os.path.join(workdir, '.lock')
  try:
    os.makedirs(workdir, exist_ok=True)
    file = open(path, 'a+')  # noqa: SIM115  closed below
  except OSError as e:
    raise errors.UserError(f'--workdir={workdir!r} cannot be written: {e.strerror}') from e
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      file.seek(0)
      raise errors.UserError(
        f'--workdir={workdir!r} is in use by another run ({file.read().strip()}): wait for its end'
        ' or choose another workdir'
      ) from e
    except OSError as e:  # a file system without locks
      _LOGGER.warning('%s cannot be locked (%s): start no second run there', path, e.strerror)
    file.truncate(0)
    print(f'process {os.getpid()} on {socket.gethostname()}', file=file, flush=True)
    yield


def prepare(workdir: str, config: Config) -> None:
  """Creates the directory, or checks that it is this config's; writes environment.json.

  Raises:
    UserError: the directory can't be written, or holds the run of another config.
  """
  try:
    os.makedirs(workdir, exist_ok=True)
    if check(workdir, config) is None:
      write_json(workdir, 'config.json', json.loads(config.to_json()))
    write_json(workdir, 'environment.json', environment())
  except OSError as e:
    raise errors.UserError(f'--workdir={workdir!r} cannot be written: {e.strerror}') from e


def check(workdir: str, config: Config, may_change: Sequence[str] = ()) -> Any:
  """The config that the directory holds a run of; None if it holds none.

  Args:
    workdir: the directory.
    config: what is to be done there.
    may_change: keys that may differ, beside those that no result depends on.

  Raises:
    UserError: it differs from `config`; the message names the keys.
  """
  old = read_json(workdir, 'config.json')
  if old is None:
    return None
  before, after = dict(leaves(old)), dict(leaves(json.loads(config.to_json())))
  keys = sorted({*before, *after}.difference(MAY_CHANGE, may_change))
  changed = [k for k in keys if before.get(k) != after.get(k)]
  if changed:
    key = changed[0]
    raise errors.UserError(
      f'--workdir={workdir!r} holds a run of another config; it differs in {", ".join(changed)}'
      f' ({key} was {before.get(key)!r}, is {after.get(key)!r}): choose another workdir'
    )
  return old


def read_json(workdir: str, name: str) -> Any:
  """The object in a JSON file of the directory; None where there is none.

  Raises:
    UserError: the file isn't a JSON object.
  """
  path = os.path.join(workdir, name)
  if not os.path.exists(path):
    return None
  with open(path) as f:
    try:
      found = json.load(f)
    except (ValueError, RecursionError) as e:
      raise errors.UserError(f'{path} is not JSON: {e}') from e
  if not isinstance(found, dict):
    raise errors.UserError(f'{path} is not a JSON object')
  return found


def write_json(workdir: str, name: str, value: Any) -> None:
  """Writes a file beside and renames it, so that a crash leaves the old one or the new one."""
  path = os.path.join(workdir, name)
  with open(path + '.partial', 'w') as f:
    json.dump(value, f, indent=2)
    f.write('\n')
  os.replace(path + '.partial', path)


def write_data(workdir: str, description: Mapping[str, Any]) -> None:
  """Writes data.json: class names, sizes and normalisation statistics."""
  write_json(workdir, 'data.json', dict(description))


def environment() -> dict[str, Any]:
  """Versions, devices, git revision and flags of this process."""
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
  package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  git = subprocess.run(
    ['git', '-C', package, 'describe', '--always', '--dirty'],
    capture_output=True,
    text=True,
    check=False,
  )
  return {
    'cnnjax': metadata.version('cnnjax'),
    'git': git.stdout.strip() or None,
    'python': platform.python_version(),
    'platform': platform.platform(),
    'packages': {name: metadata.version(name) for name in packages},
    'devices': [str(d) for d in jax.devices()],
    'processes': jax.process_count(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'argv': sys.argv,
  }
