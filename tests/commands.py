"""Runs cnnjax's commands as a user does: another process, its exit status and what it prints."""

import contextlib
import os
import pathlib
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent


def environment(devices: int = 1) -> dict[str, str]:
  """This environment, with a number of virtual CPU devices."""
  flags = f'--xla_force_host_platform_device_count={devices}'
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
