"""The long forms of test_faults.py, and the faults that take long to meet: `make test-faults`."""

import json
import os
import pathlib
import random
import shutil
import signal
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import pipeline
from cnnjax.training import checkpoint
from tests.commands import start
from tests.test_distributed import start_two
from tests.test_faults import (  # noqa: F401  fixtures
  CONFIG,
  MOMENTS,
  STEPS,
  begin,
  cache,
  checkpoints_of,
  end,
  newest_row,
  one_line,
  outcome,
  result,
  survives,
  undisturbed,
  until,
)

pytestmark = pytest.mark.long

STREAMED = ('--config.data.resident_megabytes=0', '--config.data.workers=1')


def children(pid):
  """Process numbers of a process's data workers."""
  found = []
  for folder in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      parent = int((folder / 'stat').read_text().rpartition(')')[2].split()[1])
      if parent == pid and 'spawn_main' in (folder / 'cmdline').read_text():
        found.append(int(folder.name))
    except OSError:
      continue
  return found


def report(capsys, text):
  with capsys.disabled():
    print(f'\n  {text}')


@pytest.mark.parametrize('data', ['resident', 'streamed by a worker'])
def test_thirty_kills_change_no_bit(undisturbed, tmp_path, capsys, data):  # noqa: F811
  overrides = () if data == 'resident' else STREAMED
  folder = tmp_path / 'run'
  died = survives(folder, undisturbed, 30, lambda: [begin(folder, *overrides)])
  report(capsys, f'{data}: killed in {dict(Counter(died))}')


def begin_two(folder, *overrides):
  return start_two(folder, *overrides, run=(CONFIG,))


@pytest.fixture(scope='module')
def two_undisturbed(cache, tmp_path_factory):  # noqa: F811
  folder = tmp_path_factory.mktemp('two')
  for process in begin_two(folder):
    end(process, 0)
  return result(folder)


@pytest.mark.parametrize('data', ['resident', 'streamed by a worker'])
def test_thirty_kills_of_one_of_two_processes(two_undisturbed, tmp_path, capsys, data):
  # Few in the start: who has not arrived is waited for, for ten times as long.
  kills, overrides = (30, ()) if data == 'resident' else (6, STREAMED)
  folder, moments = tmp_path / 'run', (*MOMENTS[:-1], *MOMENTS)
  died = survives(folder, two_undisturbed, kills, lambda: begin_two(folder, *overrides), moments)
  report(capsys, f'two processes, {data}: killed in {dict(Counter(died))}')


def test_one_process_of_two_devices_and_two_processes_take_turns(two_undisturbed, tmp_path):
  """Two summands have one sum in any order, so all is equal to the bit, with XLA's convolutions."""
  folder, shard_map = tmp_path / 'run', '--config.parallel.strategy=shard_map'
  overrides = (*STREAMED, shard_map)
  for turn, step in enumerate((12, 27, 42, STEPS)):
    if turn % 2:
      processes = begin_two(folder, *overrides)
    else:
      processes = [start('main', CONFIG, f'--workdir={folder}', *overrides, devices=2)]
    until(processes[0], lambda step=step: newest_row(folder)['step'] >= step)
    for process in processes:
      if step < STEPS:
        process.kill()
        process.communicate()
      else:
        end(process, 0)
  assert result(folder) == two_undisturbed


@pytest.mark.parametrize('to', [(0,), (1,), (0, 1)])
def test_a_signal_ends_two_processes(two_undisturbed, tmp_path, to):
  folder = tmp_path / 'run'
  for _ in range(2):
    before, processes = newest_row(folder)['step'], begin_two(folder, *STREAMED)
    until(processes[0], lambda before=before: newest_row(folder)['step'] > before)
    for p in to:
      processes[p].send_signal(signal.SIGTERM)
    for process in processes:
      assert 'SIGTERM' in one_line(end(process, 143)[1])
  for process in begin_two(folder, *STREAMED):
    end(process, 0)
  assert outcome(result(folder)) == outcome(two_undisturbed)


def test_thirty_signals_change_no_bit(undisturbed, tmp_path, capsys):  # noqa: F811
  """SIGTERM and SIGINT in turn, to the group of processes, as queues and Ctrl-C send them."""
  folder, chance, ended = tmp_path / 'run', random.Random(0), Counter()
  for strike in range(30):
    process = begin(folder, *STREAMED, under=('setsid',))
    time.sleep(chance.uniform(0.5, 5))
    number = (signal.SIGTERM, signal.SIGINT)[strike % 2]
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=900)
    ended[process.returncode] += 1
    # Negative: it came before Python could listen.
    assert process.returncode in (0, 128 + number, -number), err
    if process.returncode == 128 + number and 'stopped' in err:
      one_line(err)
    if process.returncode == 0:
      assert outcome(result(folder)) == outcome(undisturbed)
      shutil.rmtree(folder)
  end(begin(folder, *STREAMED), 0)
  assert outcome(result(folder)) == outcome(undisturbed)
  report(capsys, f'ended with {dict(ended)}')


@pytest.mark.parametrize('fault', ['killed', 'hung'])
def test_a_lost_data_worker(undisturbed, tmp_path, fault):  # noqa: F811
  folder = tmp_path / 'run'
  process = begin(folder, *STREAMED, '--config.data.timeout=3')
  until(process, lambda: newest_row(folder)['step'] >= 15)
  (worker,) = children(process.pid)
  began = time.monotonic()
  os.kill(worker, signal.SIGKILL if fault == 'killed' else signal.SIGSTOP)
  _, err = end(process, 4)
  assert time.monotonic() - began < 30
  assert f'process {worker}' in err
  assert 'a data worker ended unexpectedly' in err  # before a word on the shared memory it left
  end(begin(folder, *STREAMED, '--config.data.timeout=300'), 0)
  assert result(folder) == undisturbed


HANGS = """
import time
from cnnjax.data import sources
from tests import slow_digits
def get_config():
  read = sources.ArraySource.__getitem__
  began = time.monotonic()
  def hangs(source, index):
    while time.monotonic() - began > 6:
      time.sleep(1)
    return read(source, index)
  sources.ArraySource.__getitem__ = hangs
  return slow_digits.get_config('2000')
"""


def test_storage_that_no_longer_answers(cache, tmp_path):  # noqa: F811
  config = tmp_path / 'config.py'
  config.write_text(HANGS)
  overrides = ('--config.data.resident_megabytes=0', '--config.data.timeout=2')
  _, err = end(begin(tmp_path / 'run', *overrides, config=f'--config={config}'), 4)
  assert 'does the storage answer?' in one_line(err)
  assert checkpoints_of(tmp_path / 'run')


def test_workers_of_a_killed_run_end(cache, tmp_path):  # noqa: F811
  before = set(os.listdir('/dev/shm'))
  process = begin(tmp_path / 'run', *STREAMED)
  until(process, lambda: newest_row(tmp_path / 'run')['step'] >= 15)
  (worker,) = children(process.pid)
  process.kill()
  process.communicate()
  for _ in range(100):
    if not os.path.exists(f'/proc/{worker}'):
      break
    time.sleep(0.1)
  assert not os.path.exists(f'/proc/{worker}')
  time.sleep(1)
  assert set(os.listdir('/dev/shm')) <= before


POISON = """
import jax
import jax.numpy as jnp
from cnnjax.training import experiment
from tests import slow_digits

def in_gradient():
  create = experiment.optimizers.create
  def poisoned(*args, **kwargs):
    optimizer = create(*args, **kwargs)
    def update(gradients, state, params):
      (count, *_) = [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32 and not x.ndim]
      bad = jnp.where(count == 23, jnp.nan, 1.0)
      return optimizer.update(jax.tree.map(lambda g: g * bad, gradients), state, params)
    return optimizer._replace(update=update)
  experiment.optimizers.create = poisoned

def in_data():
  make = experiment.preprocess.make_preprocess
  def poisoned(*args):
    normalise = make(*args)
    def apply(key, images, ids, train, **visits):
      bad = jnp.where(train & (ids == EXAMPLE), jnp.nan, 1.0)
      return normalise(key, images, ids, train, **visits) * bad[:, None, None, None]
    return apply
  experiment.preprocess.make_preprocess = poisoned

def get_config():
  PLACE()
  c = slow_digits.get_config()
  c.log_every, c.checkpoint.keep_last, c.checkpoint.keep_best = 7, 1, 0
  return c
"""


@pytest.mark.parametrize('place', ['in_gradient', 'in_data'])
def test_a_nan_keeps_the_last_healthy_checkpoint(tmp_path, place):
  config = tmp_path / 'config.py'
  example = pipeline.train_ids(0, 14, 1438, 64)[0]  # of step 15, counted from 1
  config.write_text(POISON.replace('PLACE', place).replace('EXAMPLE', str(example)))
  for _ in range(2):  # the second resumes, and meets it again
    _, err = end(begin(tmp_path / 'run', config=f'--config={config}'), 3)
    assert 'the loss is nan' in one_line(err) or 'no longer finite' in one_line(err)
  with checkpoint.Checkpoints(str(tmp_path / 'run'), read_only=True) as checkpoints:
    (step,) = checkpoints.steps()
    assert all(np.isfinite(array).all() for array in checkpoints.read().values())
  assert step == (20 if place == 'in_gradient' else 10)


JUMPS = """
import random, time
from tests import slow_digits
real = time.time
def get_config():
  time.time = lambda: real() + random.Random(time.monotonic() // 0.2).choice([-1e8, 0, 1e8])
  return slow_digits.get_config()
"""


def test_a_clock_that_jumps(undisturbed, tmp_path):  # noqa: F811
  config = tmp_path / 'config.py'
  config.write_text(JUMPS)
  folder = tmp_path / 'run'
  for _ in range(10):
    process = begin(folder, config=f'--config={config}')
    _, err = process.communicate(timeout=900)
    if process.returncode == 0:
      break
    # Orbax waits by the wall clock: a leap ahead in a save ends the wait, and the run.
    assert process.returncode == 4, err
    assert 'a checkpoint cannot be saved' in err
  assert result(folder) == undisturbed
  rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  seconds = [row['seconds'] for row in rows if row['split'] == 'train']
  assert sorted(seconds) == seconds
  assert seconds[-1] < 60


def test_image_files_that_vanish_or_rot(cache, tmp_path):  # noqa: F811
  random_bits = np.random.default_rng(0)
  for i in range(64):
    path = tmp_path / 'images' / str(i % 2) / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_bits.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
  data = (f'--config.data.name=folder:{tmp_path}/images', '--config.data.resident_megabytes=0')
  data += ('--config.batch_size=8', '--config.data.max_unreadable=4', '--config.augment=')
  files = sorted((tmp_path / 'images').rglob('*.png'))

  folder = tmp_path / 'few'
  process = begin(folder, *data)
  until(process, lambda: newest_row(folder)['step'] >= 5)
  hidden = files[0].read_bytes()
  files[0].unlink()
  files[1].write_bytes(files[1].read_bytes()[:60])
  _, err = end(process, 0)
  assert {line.split()[-1] for line in err.splitlines()} <= {str(f) for f in files[:2]}
  assert all('unreadable image, left out' in line for line in err.splitlines())

  files[1].write_bytes(hidden)
  folder = tmp_path / 'many'
  process = begin(folder, *data)
  until(process, lambda: newest_row(folder)['step'] >= 15)
  for file in files[2:30]:
    file.unlink()
  _, err = end(process, 2)
  assert 'data.max_unreadable' in err.splitlines()[-1]
  assert checkpoints_of(folder)
  _, err = end(begin(folder, *data), 2)  # in another order of examples it may not go on
  assert 'has changed since this run began' in err.splitlines()[-1]


def test_a_torn_compilation_cache(undisturbed, cache, tmp_path):  # noqa: F811
  for file in cache.rglob('*-cache'):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  end(begin(tmp_path / 'run'), 0)
  assert result(tmp_path / 'run') == undisturbed


def resident_memory(pid):
  """In MiB; None once the process has ended, before its parent has asked for its status."""
  memory = pathlib.Path(f'/proc/{pid}/status').read_text().partition('VmRSS:')[2].split()
  return int(memory[0]) / 1024 if memory else None


def test_memory_is_flat_over_2000_steps(cache, tmp_path, capsys):  # noqa: F811
  """Compares the second and the last quarter of a run that saves and evaluates every 20 steps."""
  folder, megabytes = tmp_path / 'run', {}
  overrides = ('--config.checkpoint.every=20', '--config.log_every=20')
  process = begin(folder, *overrides, config='--config=tests/slow_digits.py:2000')
  while process.poll() is None:
    step = newest_row(folder)['step']
    if step >= 500 and (memory := resident_memory(process.pid)):
      megabytes.setdefault(step, memory)
    time.sleep(0.05)
  end(process, 0)
  second, last = (
    np.median([m for step, m in megabytes.items() if low <= step < low + 500])
    for low in (500, 1500)
  )
  report(capsys, f'{second:.1f} MiB in steps 500 to 999, {last:.1f} MiB in steps 1500 to 1999')
  assert last - second < 16  # a state leaked by each checkpoint would be 36
