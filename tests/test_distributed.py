"""Two processes on one machine, over Gloo, as a user starts them."""

import json
import re
import shutil
import signal
import socket

import numpy as np
import pytest

from cnnjax.training import checkpoint
from tests.commands import refused, run, start

TIMEOUT = 6  # seconds of silence after which a process counts as dead
STEPS = 16
RUN = (
  '--config=experiments/digits/lenet5.py', '--config.schedule.warmup_epochs=0',
  f'--config.steps={STEPS}', '--config.log_every=2', f'--config.eval_every={STEPS}',
  '--config.checkpoint.every=3', '--config.augment=random_crop(padding=1)', '--config.ops=xla',
)  # fmt: skip


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def start_two(workdir, *overrides, second=(), run=RUN):
  """Both processes; `second` are arguments that only process 1 is given."""
  together = (
    f'--coordinator_address=127.0.0.1:{free_port()}', '--num_processes=2',
    f'--peer_timeout={TIMEOUT}', f'--workdir={workdir}',
  )  # fmt: skip
  return [
    start('main', *run, *together, f'--process_id={p}', *overrides, *(second if p else ()))
    for p in range(2)
  ]


def finish(processes):
  """Exit statuses and standard errors."""
  outputs = [process.communicate(timeout=300) for process in processes]
  return [process.returncode for process in processes], [err for _, err in outputs]


def after(step, processes, do):
  """Does something once process 0 has written the training metrics of a step."""
  for line in processes[0].stdout:
    found = re.match(r'step +(\d+)/\d+ +train', line)
    if found and int(found[1]) >= step:
      return do()
  raise AssertionError(finish(processes))


def newest(workdir):
  with checkpoint.Checkpoints(str(workdir), read_only=True) as checkpoints:
    return checkpoints.read()


def rows(workdir):
  timed = ('seconds', 'images_per_second', 'eta_seconds')
  with open(workdir / 'metrics.jsonl') as f:
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in f]


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """The workdir of a run of two processes that nothing has disturbed."""
  workdir = tmp_path_factory.mktemp('straight')
  statuses, errs = finish(start_two(workdir))
  assert statuses == [0, 0], errs
  return workdir


def test_every_test_example_counts_once_and_one_process_writes(straight):
  last = rows(straight)[-1]
  assert np.sum(last['confusion_matrix']) == 359
  assert [row['step'] for row in rows(straight)] == [*range(2, STEPS + 1, 2), STEPS]
  assert len(list(straight.glob('events.out.tfevents.*'))) == 1


def test_one_process_and_two_that_are_killed_take_turns_to_the_bit(straight, tmp_path):
  """One of two devices, that is, streamed and under shard_map: all against resident and pmap."""
  both, one = tmp_path / 'both', tmp_path / 'one'
  ways = ('--config.data.resident_megabytes=0', '--config.parallel.strategy=shard_map')
  alone = start('main', *RUN, *ways, f'--workdir={both}', devices=2)
  after(4, [alone], alone.terminate)
  (status,), errs = finish([alone])
  assert status == 143, errs
  for killed, step in ((1, 6), (0, 8)):
    processes = start_two(both, *ways)
    after(step, processes, processes[killed].kill)
    statuses, errs = finish(processes)
    assert statuses[killed] == -signal.SIGKILL
    assert statuses[1 - killed] == 4, errs
    assert re.search(rf'process {killed} on \S+ has died', errs[1 - killed])
    assert 'Traceback' not in errs[1 - killed]
  shutil.copytree(both, one)
  assert 0 < int(newest(one)['step']) < STEPS

  for workdir, devices in ((both, 2), (one, 1)):
    status, _, err = run('main', *RUN, *ways, f'--workdir={workdir}', devices=devices)
    assert status == 0, err
  assert rows(both) == rows(straight)
  assert [row.get('data') for row in rows(one)] == [row.get('data') for row in rows(straight)]
  expected, found, close = newest(straight), newest(both), newest(one)
  assert found.keys() == close.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)
    np.testing.assert_allclose(close[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_signal_to_one_stops_both_after_the_same_step(tmp_path):
  steps = (f'--config.steps={100 * STEPS}', f'--config.eval_every={100 * STEPS}')
  processes = start_two(tmp_path, *steps)
  after(2, processes, lambda: processes[1].send_signal(signal.SIGTERM))
  statuses, errs = finish(processes)
  assert statuses == [143, 143], errs
  said = [re.search(r'SIGTERM: stopped after step (\d+)', err) for err in errs]
  assert [int(found[1]) for found in said if found] == 2 * [int(newest(tmp_path)['step'])]


def test_a_mistake_in_one_process_ends_the_other_and_is_told_by_both(tmp_path):
  processes = start_two(tmp_path, second=['--config.data.name=folder:/nowhere'])
  statuses, errs = finish(processes)
  assert statuses == [4, 2], errs
  assert f'process 1 on {socket.gethostname()} failed: ' in errs[0]
  for err in errs:
    assert '/nowhere' in err.strip().splitlines()[-1]
    assert 'Traceback' not in err


def test_addresses_are_given_together(tmp_path):
  line = refused('main', *RUN, f'--workdir={tmp_path}', '--process_id=1')
  assert '--coordinator_address' in line
