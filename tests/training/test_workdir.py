"""One run a directory: the lock, what it says, and that nothing stays of it."""

import fcntl
import os

import pytest

from cnnjax.errors import UserError
from cnnjax.training import workdir


def test_a_second_run_is_refused_and_a_later_one_is_not(tmp_path):
  directory = str(tmp_path / 'run')
  said = rf'in use by another run \(process {os.getpid()} on'
  with workdir.lock(directory), pytest.raises(UserError, match=said):
    workdir.lock(directory).__enter__()
  with workdir.lock(directory):  # the file is still there, and means nothing
    assert (tmp_path / 'run' / '.lock').read_text().count('\n') == 1


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog):
  def flock(file, operation):
    raise OSError(37, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', flock)
  with workdir.lock(str(tmp_path)):
    assert 'No locks available' in caplog.text
