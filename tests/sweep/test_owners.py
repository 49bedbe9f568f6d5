"""Which processes of a sweep live, told by locks that the kernel drops with their holder."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest

from cnnjax.cli import Stopped
from cnnjax.errors import UserError
from cnnjax.sweep import owners
from tests.commands import ROOT, is_one_line

JOINS = """
import sys
from cnnjax.sweep import owners
with owners.join(sys.argv[1], alone=False) as name:
  print(name, flush=True)
  sys.stdin.read()
"""


@contextlib.contextmanager
def joined(directory):
  """Another process of the sweep, and its name."""
  process = subprocess.Popen(
    [sys.executable, '-c', JOINS, str(directory)], cwd=ROOT, text=True,
    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
  )  # fmt: skip
  with process:
    yield process, process.stdout.readline().strip()
    process.stdin.close()


def test_a_killed_process_is_dead_at_once(tmp_path):
  with joined(tmp_path) as (process, name):
    assert name.startswith(f'{socket.gethostname()}-{process.pid}-')
    assert not owners.dead(str(tmp_path), name, one_machine=False)
    with owners.join(str(tmp_path), alone=False) as own:
      assert not owners.dead(str(tmp_path), own, one_machine=False)  # this one itself
    with pytest.raises(UserError, match='SQLite') as error, owners.join(str(tmp_path), alone=True):
      pass
    is_one_line(error.value)
    assert name in str(error.value)
    process.kill()
    process.wait()
    assert owners.dead(str(tmp_path), name, one_machine=False)
  with owners.join(str(tmp_path), alone=True):  # the dead don't count
    pass


def test_one_that_ended_well_leaves_nothing(tmp_path):
  with joined(tmp_path) as (_, name):
    assert os.listdir(tmp_path / 'owners').count(f'{name}.lock') == 1
  assert os.listdir(tmp_path / 'owners') == ['.joining']
  assert not owners.dead(str(tmp_path), name, one_machine=True)  # nothing is known of it


def test_what_an_error_leaves(tmp_path):
  for error, left in ((UserError('no'), 0), (Stopped('SIGTERM', 143), 0), (OSError('lost'), 1)):
    with contextlib.suppress(type(error)), owners.join(str(tmp_path), alone=False) as name:
      raise error
    assert os.listdir(tmp_path / 'owners').count(f'{name}.lock') == left
  assert owners.dead(str(tmp_path), name, one_machine=False)


def test_another_machine_is_not_judged_by_its_lock(tmp_path):
  (tmp_path / 'owners').mkdir()
  (tmp_path / 'owners' / 'else-where-12-ab.lock').write_text('')
  assert not owners.dead(str(tmp_path), 'else-where-12-ab', one_machine=False)
  assert owners.dead(str(tmp_path), 'else-where-12-ab', one_machine=True)


def test_a_directory_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  directory = str(tmp_path / 'file' / 'sweep')
  with (
    pytest.raises(UserError, match='cannot be written') as error,
    owners.join(directory, alone=True),
  ):
    pass
  assert repr(directory) in str(error.value)
