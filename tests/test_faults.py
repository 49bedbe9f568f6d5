"""Faults of the machine against the real command line; docs/reliability.md has a row for each.

Each victim is a run of the same short experiment. What is left in the end, after every fault and
restart, must equal the run that was never disturbed: every bit of the state, every figure of every
row of metrics.jsonl, the checksum of the examples it was trained on, and the checkpoints kept.

`pytest -m long` (`make test-faults`) has the long forms.
"""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import time

import pytest

from cnnjax.training import checkpoint, workdir
from tests.commands import refused, start

STEPS = 60
CONFIG = f'--config=tests/slow_digits.py:{STEPS}'


def begin(folder, *overrides, largest_file=None, config=CONFIG, under=()):
  """Starts the run; with `largest_file`, on a disk that is full when a file has so many bytes."""
  process = start('main', config, f'--workdir={folder}', *overrides, under=under)
  if largest_file:
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest_file, largest_file))
  return process


def end(process, status):
  out, err = process.communicate(timeout=900)
  assert process.returncode == status, (process.returncode, err[-2000:])
  return out, err.strip()


def one_line(err):
  # JAX warns when it cannot keep a compiled program on a full disk, Python when it tidies up shared
  # memory after a worker; the second line of a warning begins with spaces.
  others = ('compilation cache', 'resource_tracker')
  lines = [x for x in err.splitlines() if x[:1] != ' ' and not any(o in x for o in others)]
  assert len(lines) == 1, err
  return lines[0]


def result(folder):
  """All that a run must leave as if nothing had happened, less the times it took."""
  timed = ('seconds', 'images_per_second', 'eta_seconds')
  with open(folder / 'metrics.jsonl') as file:
    rows = [json.loads(line) for line in file]
  with checkpoint.Checkpoints(str(folder), read_only=True) as checkpoints:
    states = {s: checkpoint.fingerprint(checkpoints.read(s)) for s in checkpoints.steps()}
  assert STEPS in states
  assert sorted(os.listdir(folder / 'checkpoints')) == sorted(map(str, states))  # no leftovers
  return [{k: v for k, v in row.items() if k not in timed} for row in rows], states


def outcome(of):
  """A result without older checkpoints: a run that was told to stop has left one of that step."""
  rows, states = of
  return rows, states[STEPS]


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """Compiled programs are shared by the runs of this file, and by nobody else."""
  folder = tmp_path_factory.mktemp('cache')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(folder))
    yield folder


@pytest.fixture(scope='module')
def undisturbed(cache, tmp_path_factory):
  folder = tmp_path_factory.mktemp('undisturbed')
  end(begin(folder), 0)
  rows, states = result(folder)
  assert len({row['data'] for row in rows if row['split'] == 'train'}) == STEPS // 5
  return rows, states


# When to strike: each waits for its moment in a run, and returns at once if the run has ended.
def until(process, condition):
  while process.poll() is None and not condition():
    time.sleep(0.0005)


def newest_row(folder):
  with contextlib.suppress(OSError, ValueError, IndexError):
    return json.loads((folder / 'metrics.jsonl').read_bytes().splitlines()[-1])
  return {'step': 0, 'split': ''}


def in_the_start(process, folder, chance):
  time.sleep(chance.uniform(0, 3))


def in_the_first_step(process, folder, chance):
  """After the data is read, while the step is compiled, or its compiled form read."""
  began = time.time()
  until(process, lambda: any(f.stat().st_mtime > began for f in folder.glob('environment.json')))
  time.sleep(chance.uniform(0, 1.5))


def in_a_save(process, folder, chance):
  before = newest_row(folder)['step']
  until(process, lambda: newest_row(folder)['step'] > before)  # what a killed save left is gone
  until(process, lambda: list(folder.glob('checkpoints/*.orbax-checkpoint-tmp')))
  time.sleep(chance.uniform(0, 0.03))


def in_an_evaluation(process, folder, chance):
  before = newest_row(folder)['step']

  def evaluating():
    row = newest_row(folder)
    return row['split'] == 'train' and row['step'] % 20 == 0 and row['step'] > before

  until(process, evaluating)
  time.sleep(chance.uniform(0, 0.01))


def anywhere(process, folder, chance):
  before = newest_row(folder)['step']
  until(process, lambda: newest_row(folder)['step'] > before)
  time.sleep(chance.uniform(0, 1.2))


def what_it_was_in(folder, before):
  """Where a run was when it died, from what it left, and its newest row when it began."""
  row = newest_row(folder)
  if row['step'] <= before['step']:
    return 'start or first step'
  if list(folder.glob('checkpoints/*.orbax-checkpoint-tmp')):
    return 'save'
  if row['split'] == 'train' and row['step'] % 20 == 0:
    return 'evaluation'
  return 'elsewhere'


MOMENTS = (in_the_first_step, in_a_save, in_an_evaluation, anywhere, in_the_start)


def survives(folder, undisturbed, kills, start, moments=MOMENTS):
  """Kills `kills` runs, resuming each; then one ends as if nothing had been. Where they died.

  `start()` gives the run's processes. One of them is killed; the others must end by themselves.
  """
  chance, died = random.Random(seed := random.SystemRandom().randrange(10**6)), []
  for strike in range(3 * kills):
    before = newest_row(folder)
    processes = start()
    if len(died) == kills:
      for process in processes:
        end(process, 0)
      assert result(folder) == undisturbed, (seed, died)
      break
    moments[strike % len(moments)](processes[0], folder, chance)
    victim = chance.randrange(len(processes))
    processes[victim].kill()
    errs = [process.communicate(timeout=120)[1] for process in processes]
    statuses = [process.returncode for process in processes]
    if statuses[victim] == 0:  # it was quicker than the blow: once more from the start
      assert result(folder) == undisturbed, (seed, died)
      shutil.rmtree(folder)
      continue
    died.append(what_it_was_in(folder, before))
    for p, (status, err) in enumerate(zip(statuses, errs, strict=True)):
      if p == victim:
        assert status == -signal.SIGKILL, err
      elif status:  # or it had done its work
        assert status == 4, (seed, died, err)
        names = rf'process {victim} on \S+ has died|processes did not come together'
        assert re.search(names, err), (seed, died, err)
  assert len(died) == kills
  return died


def test_five_kills_change_no_bit(undisturbed, tmp_path):
  folder = tmp_path / 'run'
  survives(folder, undisturbed, 5, lambda: [begin(folder)])


@pytest.fixture(scope='module')
def halfway(undisturbed, tmp_path_factory):
  """A run that SIGTERM has stopped after step 25 or so: two checkpoints, the newest its own."""
  folder = tmp_path_factory.mktemp('halfway')
  process = begin(folder)
  until(process, lambda: newest_row(folder)['step'] >= 25)
  process.send_signal(signal.SIGTERM)
  assert 'SIGTERM' in one_line(end(process, 143)[1])
  return folder


@pytest.fixture
def copy(halfway, tmp_path):
  shutil.copytree(halfway, tmp_path / 'run')
  return tmp_path / 'run'


def checkpoints_of(folder):
  with checkpoint.Checkpoints(str(folder), read_only=True) as checkpoints:
    return checkpoints.steps()


def damage(file, how):
  data = file.read_bytes()
  middle = len(data) // 2
  cut = data[:middle]
  file.write_bytes(cut if how == 'cut' else cut + bytes([data[middle] ^ 16]) + data[middle + 1 :])


def largest(folder):
  return max((f for f in folder.rglob('*') if f.is_file()), key=lambda f: f.stat().st_size)


def test_full_disks_damage_and_the_end_of_the_time_change_no_bit(undisturbed, copy):
  before = checkpoints_of(copy)
  rows = (copy / 'metrics.jsonl').stat().st_size
  # No file may grow beyond the metrics that are there: the next row doesn't fit.
  _, err = end(begin(copy, largest_file=rows + 100), 4)
  assert 'metrics' in one_line(err)
  assert 'File too large' in err
  assert checkpoints_of(copy) == before

  # Metrics fit, weights don't.
  _, err = end(begin(copy, largest_file=rows + 50_000), 4)
  assert 'a checkpoint cannot be saved' in one_line(err)
  assert 'File too large' in err
  assert checkpoints_of(copy) == before

  # The newest checkpoint is damaged, and the last line cut off; then the allowed time is over.
  damage(largest(copy / 'checkpoints' / str(before[-1]) / 'state'), 'flipped')
  with open(copy / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 30, "sp')
  _, err = end(begin(copy, '--config.max_seconds=0.8'), 75)
  fell_back, stopped = err.splitlines()
  assert f'{before[-1]} is damaged' in fell_back
  assert f'going on from step {before[-2]}' in fell_back
  assert 'config.max_seconds=0.8: stopped' in stopped

  end(begin(copy), 0)
  assert outcome(result(copy)) == outcome(undisturbed)


# Root writes into read-only directories, unless it gives this up.
OBEYING = ('setpriv', '--bounding-set=-dac_override') if os.getuid() == 0 else ()


def test_what_cannot_be_used_is_refused(copy):
  command = ('main', CONFIG, f'--workdir={copy}')
  with workdir.lock(str(copy)):
    line = refused(*command)
  assert f'in use by another run (process {os.getpid()} on' in line

  for folder in (copy, copy / 'checkpoints'):
    folder.chmod(0o555)
  try:
    assert 'cannot be written: Permission denied' in refused(*command, under=OBEYING)
  finally:
    for folder in (copy, copy / 'checkpoints'):
      folder.chmod(0o755)

  for step in checkpoints_of(copy):
    damage(copy / 'checkpoints' / str(step) / 'progress' / 'metadata', 'cut')
  line = refused(*command)
  for step in checkpoints_of(copy):
    assert f'step {step} (progress' in line
