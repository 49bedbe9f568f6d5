"""Runs cnnjax's commands as a user does: another process, its exit status and what it prints."""

import contextlib
import faulthandler
import os
import pathlib
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent


def environment(devices: int = 1) -> dict[str, str]:
  """This environment, with a number of virtual CPU devices; 0: what JAX has by itself."""
  flags = f'--xla_force_host_platform_device_count={devices}' if devices else ''
  return {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}


def start(
  module: str, *arguments: object, devices: int = 1, under: tuple[str, ...] = ()
) -> subprocess.Popen:
  """Starts `python -m cnnjax.<module>` in the repository's root, `under` a command that runs it."""
  return subprocess.Popen(
    [*under, sys.executable, '-m', f'cnnjax.{module}', *map(str, arguments)],
    cwd=ROOT,
    env=environment(devices),
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@contextlib.contextmanager
def limited_files(size: int) -> Iterator[None]:
  """As on a full disk: no file of this process may grow beyond so many bytes."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def is_one_line(error: Exception) -> None:
  """What a user is told is one line."""
  assert len(str(error).splitlines()) == 1


class Hang(BaseException):
  """Not an Exception, which the code under test might take for damage."""


@contextlib.contextmanager
def bounded(megabytes: int = 1024, seconds: int = 120) -> Iterator[None]:
  """What takes so much more memory than this process has meets a MemoryError; a hang ends it."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  limits = resource.getrlimit(resource.RLIMIT_AS)

  def hangs(*_: object) -> None:
    raise Hang(f'not over after {seconds} s')

  before = signal.signal(signal.SIGALRM, hangs)
  signal.alarm(seconds)
  # Where compiled code hangs, no exception comes through: this ends the process.
  faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__)
  resource.setrlimit(
    resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * 2**20, limits[1])
  )
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, limits)
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def run(module: str, *arguments: object, **options: Any) -> tuple[int, str, str]:
  """Runs a command to its end; returns exit status, standard output and standard error."""
  process = start(module, *arguments, **options)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def refused(module: str, *arguments: object, **options: Any) -> str:
  """Runs a command that must end with status 2 and one line; returns the line."""
  status, _, err = run(module, *arguments, **options)
  lines = err.strip().splitlines()
  assert status == 2, (status, err)
  assert len(lines) == 1, err
  return lines[0]
