"""One run of a trial as a child process: its command, its share of the machine, its life.

What is run is the command that is printed, to the letter, so that it can be run again. It is read
back by the parser that `cnnjax.main` has before it is used.
"""

import copy
import glob
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path

from cnnjax import config as config_lib
from cnnjax.config import Config
from cnnjax.errors import UserError
from cnnjax.sweep import directory, owners
from cnnjax.training import writers

LOG = 'output.log'  # what a run prints, in its working directory
COMMAND = 'command.txt'  # how it was started, there as well
_POLL = 0.1  # seconds between two looks at a run

# The kernel ends the run when the sweep has died, however it died. The signal belongs to the
# process and stays through exec, so a small program sets it and becomes the run; Python's own
# place for such things (preexec_fn) isn't safe beside threads.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, ctypes.c_ulong(15))  # PR_SET_PDEATHSIG, SIGTERM
if os.getppid() != int(sys.argv[1]):  # it has died before
  sys.exit(143)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Pins(NamedTuple):
  """A worker's share of the machine.

  Attributes:
    cores: as `taskset -c` takes them; '' for all.
    environment: variables that name its GPUs.
  """

  cores: str = ''
  environment: Mapping[str, str] = {}


class Command(NamedTuple):
  """A program with its arguments, and the variables that stand before it on a command line."""

  argv: tuple[str, ...]
  environment: Mapping[str, str] = {}

  def __str__(self) -> str:
    variables = [f'{name}={shlex.quote(value)}' for name, value in self.environment.items()]
    return ' '.join([*variables, *map(_quoted, self.argv)])


def _quoted(word: str) -> str:
  """For a shell; the name of a flag is left as it is, which reads better."""
  name, equals, value = word.partition('=')
  if equals and re.fullmatch(r'--[\w.]+', name):
    return f'{name}={shlex.quote(value)}' if value else f'{name}='
  return shlex.quote(word)


def shares(workers: int) -> list[Pins]:
  """Divides the cores that this process may use, and its GPUs, among workers.

  All get equally many, so that a trial's bits don't depend on its worker. What there is less of
  than workers is shared.
  """
  if workers == 1:
    return [Pins()]
  pinnable = hasattr(os, 'sched_getaffinity') and shutil.which('taskset')
  cores = sorted(os.sched_getaffinity(0)) if pinnable else []
  gpus = _gpus()
  environment: dict[str, str] = {}
  if 0 < len(gpus) < workers:
    sharing = -(-workers // len(gpus))
    environment = {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / sharing:.2f}'}
  found = []
  for i in range(workers):
    mine = {'CUDA_VISIBLE_DEVICES': ','.join(_share(gpus, i, workers))} if gpus else {}
    found.append(Pins(_ranges(_share(cores, i, workers)), {**mine, **environment}))
  return found


def _share(items: Sequence[Any], index: int, workers: int) -> Sequence[Any]:
  each = max(1, len(items) // workers)
  first = index * each % max(1, len(items))
  return items[first : first + each]


def _ranges(cores: Sequence[int]) -> str:
  if len(cores) > 1 and cores[-1] - cores[0] == len(cores) - 1:
    return f'{cores[0]}-{cores[-1]}'
  return ','.join(map(str, cores))


def _gpus() -> list[str]:
  if os.environ.get('JAX_PLATFORMS') == 'cpu':
    return []
  visible = os.environ.get('CUDA_VISIBLE_DEVICES')
  if visible is not None:
    return [name for name in visible.split(',') if name]
  return [str(i) for i in range(len(glob.glob('/dev/nvidia[0-9]*')))]


def command(
  file: str,
  base: Config,
  values: Mapping[str, Any],
  expected: Config,
  *,
  workdir: str,
  pins: Pins = Pins(),  # noqa: B008  immutable
) -> Command:
  """The `cnnjax.main` command of a run.

  Args:
    file: the config's file, with its argument if it has one, as --config takes it.
    base: what the file gives.
    values: what is set on the command line, by config key; groups before their members.
    expected: the validated config that it must mean.
    workdir: of the run.
    pins: where it runs.

  Raises:
    UserError: the flags of a command line can't say what is expected.
  """
  arguments = overrides(base, values)
  if read(base, arguments).to_json(sort_keys=True) != expected.to_json(sort_keys=True):
    raise UserError(f'--config={file!r}: flags cannot set {", ".join(arguments)}')
  python = 'python' if shutil.which('python') == sys.executable else sys.executable
  pinned = ('taskset', '-c', pins.cores) if pins.cores else ()
  run = (python, '-m', 'cnnjax.main', f'--config={file}', f'--workdir={workdir}', *arguments)
  return Command((*pinned, *run), pins.environment)


def base(file: str) -> Config:
  """What a config file gives, before any flag; `file` as --config takes it."""
  found, argv = flags.FlagValues(), ['cnnjax.main', f'--config={file}']
  holder = config_flags.DEFINE_config_file(
    'config', None, flag_values=found, lock_config=False, sys_argv=argv
  )
  found(argv)
  return ConfigDict(holder.value) if isinstance(holder.value, dict) else holder.value


def overrides(base: Config, values: Mapping[str, Any]) -> list[str]:
  """Flags `--config.KEY=VALUE` that set the values, each once: a tuple's second would add to it."""
  found = []
  for key, value in values.items():
    kind = _kind(base, key)
    if value is None and kind is not object and config_path.get_value(key, base) is None:
      continue  # no flag says None; it is so already
    found.append(f'--config.{key}={_text(kind, value)}')
  return found


def _kind(base: Config, key: str) -> Any:
  """The type by which a flag is parsed: `object`, a Python literal, where the file has no value."""
  try:
    return config_path.get_type(key, base, default_type=object)
  except (AttributeError, KeyError):
    return object


def _text(kind: Any, value: Any) -> str:
  if isinstance(value, ConfigDict):
    value = value.to_dict()
  if isinstance(value, str) and kind is not object:
    return value
  # A literal takes other words for strings, but for these.
  if isinstance(value, str) and value.isidentifier() and value.lower() not in _CONSTANTS:
    return value
  if isinstance(value, float):
    return float.__repr__(value)  # the shortest that reads back as the same, of NumPy's floats too
  text = repr(value)
  return text if '"' in text else text.replace("'", '"')  # the shell's quotes are the other ones


_CONSTANTS = ('true', 'false', 'none')


def read(base: Config, arguments: Sequence[str]) -> Config:
  """The validated config that `cnnjax.main` makes of a file's config and flags.

  Raises:
    UserError: a flag is wrong.
  """
  found, argv = flags.FlagValues(), ['cnnjax.main', *arguments]
  try:
    holder = config_flags.DEFINE_config_dict(
      'config',
      copy.deepcopy(base),
      flag_values=found,
      lock_config=False,
      accept_new_attributes=True,
      sys_argv=argv,
    )
    found(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    raise UserError(f'{" ".join(arguments)}: {e.args[0] if e.args else e}') from e
  return config_lib.validate(holder.value)


def run(
  command: Command,
  workdir: str,
  watch: Callable[[list[dict[str, Any]]], bool],
  stop: Callable[[], bool],
) -> int:
  """Runs a command to its end, which SIGTERM brings where it is asked for.

  An earlier run in the same directory, whose sweep has died, is let save and end first.

  Args:
    command: the run.
    workdir: its directory; created if missing. `output.log` there takes what it prints, and
      `command.txt` the command.
    watch: called with all rows of metrics.jsonl before it starts, whenever they change, and when it
      has ended; True ends the run, or keeps it from starting.
    stop: asked again and again; True ends it as well.

  Returns:
    Its exit status, negative for a signal; 143 where it wasn't started.
  """
  os.makedirs(workdir, exist_ok=True)
  while owners.held(os.path.join(workdir, '.lock')) and not stop():
    time.sleep(_POLL)
  if stop() or watch(writers.read(workdir)):
    return 143
  directory.write(os.path.join(workdir, COMMAND), f'{command}\n')
  parent: tuple[str, ...] = ()
  if sys.platform == 'linux':
    parent = (sys.executable, '-I', '-S', '-c', _DIE_WITH_PARENT, str(os.getpid()))
  with open(os.path.join(workdir, LOG), 'ab') as log:
    process = subprocess.Popen(
      [*parent, *command.argv],
      env={**os.environ, **command.environment},
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      process_group=0,  # Ctrl-C comes to the sweep alone, which passes it on once: twice kills
    )
  ending, seen = False, None
  try:
    while process.poll() is None:
      time.sleep(_POLL)
      seen, rows = _news(workdir, seen)
      if not ending and (stop() or (rows is not None and watch(rows))):
        ending = True
        process.send_signal(signal.SIGTERM)
  finally:
    if process.poll() is None:  # after an error here
      process.send_signal(signal.SIGTERM)
      process.wait()
  watch(writers.read(workdir))
  return process.returncode


def _news(workdir: str, seen: Any) -> tuple[Any, list[dict[str, Any]] | None]:
  """What tells the file's state, and the rows where it isn't `seen`."""
  try:
    status = os.stat(os.path.join(workdir, 'metrics.jsonl'))
  except FileNotFoundError:
    return seen, None
  state = (status.st_ino, status.st_size)  # a resumed run replaces it by a shorter one
  return state, None if state == seen else writers.read(workdir)


def ran(workdir: str) -> str:
  """The command that last ran in a directory; '' where none has."""
  try:
    with open(os.path.join(workdir, COMMAND), encoding='utf-8') as file:
      return file.read().strip()
  except FileNotFoundError:
    return ''


def last_words(workdir: str) -> str:
  """The last line that a run printed, which says why it failed; '' where there is none."""
  try:
    with open(os.path.join(workdir, LOG), 'rb') as file:
      file.seek(max(0, os.path.getsize(file.name) - 4096))
      lines = file.read().decode(errors='replace').strip().splitlines()
  except FileNotFoundError:
    return ''
  return lines[-1].removeprefix('cnnjax.main: ')[:500] if lines else ''
