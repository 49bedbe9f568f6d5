"""Which processes belong together, and that they agree on when to stop."""

import itertools
import signal
import threading
import time

import numpy as np
import pytest

from cnnjax.training import processes


@pytest.mark.parametrize(
  ('variables', 'several'),
  [
    ({}, False),
    ({'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '8', 'SLURM_JOB_ID': '7'}, False),
    ({'SLURM_STEP_NUM_TASKS': '8'}, True),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, False),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, False),
  ],
)
def test_launched(monkeypatch, variables, several):
  for name in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE', 'JOB_COMPLETION_INDEX'):
    monkeypatch.delenv(name, raising=False)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  assert processes.launched() == several


class Store:
  """JAX's key-value store, in this process."""

  def __init__(self):
    self.values, self.barrier = {}, threading.Barrier(3)

  def key_value_set(self, key, value, allow_overwrite=False):
    assert allow_overwrite or key not in self.values
    self.values[key] = value

  def blocking_key_value_get(self, key, milliseconds):
    if key not in self.values:
      time.sleep(milliseconds / 1000)
      raise RuntimeError('DEADLINE_EXCEEDED')
    return self.values[key]

  def wait_at_barrier(self, name, milliseconds):
    self.barrier.wait(milliseconds / 1000)

  def key_value_dir_get(self, folder):
    return [(k, v) for k, v in list(self.values.items()) if k.startswith(folder)]


def test_all_stop_after_the_same_step_however_far_apart_they_are():
  store, stopped = Store(), {}
  peers = [processes._Peers(store, 'localhost:1', p, 3, 0.5) for p in range(3)]
  for peer in peers:
    peer._limit = 1 << 30  # nobody is dead, however slow this machine is

  def train(p):
    for step in itertools.count():
      time.sleep(0.002 * (1 + 3 * p))
      wish = signal.SIGTERM if p == 1 and step >= 20 else None
      if peers[p].stop_at(step, wish) is not None:
        stopped[p] = step
        break
    peers[p].finish()

  threads = [threading.Thread(target=train, args=(p,)) for p in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert len(stopped) == 3
  assert len(set(stopped.values())) == 1
  assert stopped[1] >= 20


def test_sharing_and_arrays_are_the_process_s_own_where_it_is_alone():
  assert processes.share(lambda: [1, 'a']) == [1, 'a']
  tree = {'a': np.array([-0.0], np.float32)}
  assert processes.broadcast(tree) is tree
