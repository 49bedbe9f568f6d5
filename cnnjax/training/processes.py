"""Several processes as one run: they start together, agree, and end together.

About once a second a thread of every process writes a note about itself to JAX's key-value store,
and process 0 answers with news for all. Who is silent for too many rounds counts as dead. Rounds
are counted, not timed: a run that is suspended as a whole goes on, and a clock may jump.
"""

import atexit
import contextlib
import ctypes
import functools
import glob
import importlib.util
import itertools
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cnnjax import cli, errors
from cnnjax.training.signals import Signals

_NOTE, _NEWS, _SHARED = 'cnnjax/note/', 'cnnjax/news', 'cnnjax/shared/'  # keys
_PATIENCE = 1800  # seconds that a living process may keep the others waiting
_GRACE = 2  # seconds in which a process may end with its own words before another's end it

_peers: '_Peers | None' = None  # one a process, as JAX's client is
_calls = itertools.count()  # of `share`: the same in all processes


def launched() -> bool:
  """Whether the environment says that this is one of several processes, or on a TPU."""
  # Of this srun, not of the allocation: a shell in an allocation of many tasks is one process.
  sizes = (os.environ.get(name, '1') for name in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'))
  if any(size.isdecimal() and int(size) > 1 for size in sizes):
    return True
  if 'JOB_COMPLETION_INDEX' in os.environ:  # an indexed Job; JAX asks Kubernetes for the rest
    return importlib.util.find_spec('kubernetes') is not None
  chips = glob.glob('/dev/accel[0-9]*') + glob.glob('/dev/vfio/[0-9]*')
  return bool(chips) and importlib.util.find_spec('libtpu') is not None


@contextlib.contextmanager
def together(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  peer_timeout: float = 30.0,
) -> Iterator[None]:
  """Joins this process to the others for what is done inside, and waits for them at the end.

  An error inside ends all of them. So does a process that dies: within about `peer_timeout` the
  others print a line that names it and exit with status 4.

  Args:
    coordinator_address: 'HOST:PORT' of process 0; None where JAX learns it from the launcher.
    num_processes: how many there are; None as above.
    process_id: which of them this is, from 0; None as above.
    peer_timeout: seconds of silence after which a process counts as dead.

  Raises:
    UserError: the processes can't be found.
    MachineError: the others don't arrive within 10 times `peer_timeout`, or to their end.
  """
  import jax

  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # JAX's handler of SIGTERM would take the place of ours.
  jax.config.update('jax_enable_preemption_service', False)
  # For one that dies just then: JAX holds Python's lock meanwhile, and nothing of ours can look.
  jax.config.update('jax_cpu_get_global_topology_timeout_minutes', 1)
  arrival = round(10 * peer_timeout)
  try:
    with _without_abort():
      jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        initialization_timeout=arrival,
        # Ours comes first: JAX's goes by the clock, and can't say whom it has lost.
        heartbeat_timeout_seconds=round(20 * peer_timeout + 600),
        shutdown_timeout_seconds=round(peer_timeout),  # who dies after its work is waited for
      )
  except ValueError as e:
    atexit.register(_exit, 2)
    reason = str(e).partition('\n')[0]
    raise errors.UserError(
      f'--distributed: {reason}; allowed: a launcher that JAX knows, or --coordinator_address,'
      ' --num_processes and --process_id, the same address in all processes'
    ) from e
  except RuntimeError as e:
    atexit.register(_exit, 4)
    reason = str(e).partition('\n')[0]
    raise errors.MachineError(
      f'--distributed: the processes did not come together within {arrival} s ({reason}): do all'
      ' live, have the same address of the first, and reach it?'
    ) from e
  from jax._src.distributed import global_state

  global _peers
  client, address = global_state.client, str(global_state.coordinator_address)
  try:
    index, count = jax.process_index(), jax.process_count()
  except RuntimeError:  # most likely one has died since; JAX doesn't say which
    index, count = global_state.process_id, int(global_state.num_processes or 1)
    _peers = _Peers(client, address, index, count, peer_timeout)
    _peers.wait_for_end()
    raise
  if count == 1:
    yield
    return
  _peers = _Peers(client, address, index, count, peer_timeout)
  try:
    yield
  except cli.Stopped as e:
    _peers.finish(e.status)
    raise
  except BaseException as e:
    if isinstance(e, jax.errors.JaxRuntimeError):
      _peers.wait_for_end()  # most likely a collective that a peer has left: the thread says whose
    _peers.fail(e)
    raise
  _peers.finish()


class _Peers:
  """The notes and news of one process.

  A note holds `host`, `at` (the first step after which this process can stop) and, where it is so,
  `stop` (a `Signals.wish`), `frozen` (`at` stays as it is), `failed` (in words) and `bye`. News are
  `stop`, `stop_at` (the step after which all stop) and `end`: (process, words).
  """

  def __init__(self, client: Any, coordinator: str, index: int, count: int, timeout: float):
    self._client, self._coordinator = client, coordinator
    self._index, host = index, socket.gethostname()
    self._pause = min(1.0, timeout / 10)
    self._limit = round(timeout / self._pause)  # rounds
    self._note: dict[str, Any] = {'host': host, 'at': -1}
    self._news: dict[str, Any] = {'host': host if index == 0 else self._coordinator}
    self._notes: dict[int, dict[str, Any]] = {p: {} for p in range(count)}  # in process 0
    self._silent = dict.fromkeys(range(count), 0)  # rounds; process 0 of all, others of process 0
    self._changed, self._done = threading.Condition(), threading.Event()
    self._leaving, self._ending, self._status = False, threading.Lock(), 0
    self._thread = threading.Thread(target=self._rounds, name='peers', daemon=True)
    self._thread.start()

  # For the main thread

  def stop_at(self, step: int, wish: int | None) -> int | None:
    """The wish (`Signals.wish`) for which all processes stop after `step`, or None."""
    with self._changed:
      if wish is not None:
        self._note['stop'] = int(wish)
      # While the step is being agreed on, nobody goes past what it has told.
      self._changed.wait_for(lambda: 'frozen' not in self._note or 'stop_at' in self._news)
      if step >= self._news.get('stop_at', step + 1):
        return self._news['stop']
      self._note['at'] = step + 1
      return None

  def share(self, call: int, make: Callable[[], Any]) -> Any:
    """What `make` returns in process 0."""
    if self._index == 0:
      value = make()
      self._client.key_value_set(f'{_SHARED}{call}', json.dumps(value))
      return value
    for _ in range(_PATIENCE):
      with contextlib.suppress(RuntimeError):  # not there yet
        return json.loads(self._client.blocking_key_value_get(f'{_SHARED}{call}', 1000))
    raise errors.MachineError(f'process 0 has kept this one waiting for more than {_PATIENCE} s')

  def wait_for_end(self) -> None:
    """Waits until the run's end is known, if there is one; then the thread ends this process."""
    with self._changed:
      found = self._changed.wait_for(
        lambda: 'end' in self._news, 2 * _GRACE + self._pause * (self._limit + 3)
      )
    if found:
      self._thread.join()

  def fail(self, error: BaseException) -> None:
    """Tells the others that this process is about to end, and why."""
    words = (
      str(error)
      if isinstance(error, errors.UserError | errors.MachineError | cli.NonFinite)
      else repr(error)
    )
    self._leaving = True
    self._note['failed'] = words.partition('\n')[0][:500]
    atexit.register(self._leave, cli.status(error))
    self.wait_for_end()

  def finish(self, status: int = 0) -> None:
    """Waits until all processes have come to their end; `status` is what this one exits with."""
    try:
      self._client.wait_at_barrier('cnnjax/done', 1000 * _PATIENCE)
    except RuntimeError as e:
      raise errors.MachineError(f'other processes are still at work after {_PATIENCE} s') from e
    self._status = status
    self._done.set()
    self._thread.join()

  # For the thread, and one of JAX's

  def coordinator_lost(self) -> None:
    """Ends this process, if it is true."""
    host, port = self._coordinator.rsplit(':', 1)
    time.sleep(_GRACE / 2)
    if self._done.is_set():  # all have done their work: who dies now is not missed
      _exit(self._status)
    try:
      socket.create_connection((host, int(port)), timeout=_GRACE).close()
    except OSError:
      self._end(*self._without_coordinator())
      time.sleep(5 * _GRACE)  # the main thread is ending the process already, in its own words

  def _rounds(self) -> None:
    for k in itertools.count():
      self._put(f'{_NOTE}{self._index}', {**self._note, 'round': k})
      if self._done.wait(self._pause):
        return
      news = self._gather() if self._index == 0 else self._hear()
      if self._index == 0:
        self._put(_NEWS, {**news, 'round': k})
      with self._changed:
        self._news = news
        if 'stop' in news:
          self._note['frozen'] = True
        self._changed.notify_all()
      if 'end' in news:
        return self._end(*news['end'])

  def _put(self, key: str, value: Any) -> None:
    def put() -> None:
      with contextlib.suppress(RuntimeError):
        self._client.key_value_set(key, json.dumps(value), allow_overwrite=True)

    # Without process 0 the call can last for ever.
    writer = threading.Thread(target=put, daemon=True)
    writer.start()
    writer.join(_GRACE)

  def _hear(self) -> dict[str, Any]:
    news = self._news
    with contextlib.suppress(RuntimeError):
      news = json.loads(self._client.blocking_key_value_get(_NEWS, round(1000 * self._pause)))
    self._silent[0] = 0 if news != self._news else self._silent[0] + 1
    return {'end': self._without_coordinator()} if self._silent[0] > self._limit else news

  def _gather(self) -> dict[str, Any]:
    self._read()
    news, notes = dict(self._news), self._notes.values()
    if signals := [note['stop'] for note in notes if 'stop' in note]:
      news.setdefault('stop', signals[0])
    if all('frozen' in note for note in notes):
      news['stop_at'] = max(note['at'] for note in notes)
    for p, note in self._notes.items():
      if 'failed' in note:
        news.setdefault('end', (p, f'process {p} on {note["host"]} failed: {note["failed"]}'))
      elif self._silent[p] > self._limit:
        news.setdefault('end', (p, self._dead(p, note.get('host', 'an unknown host'))))
    return news

  def _read(self) -> None:
    for key, text in self._client.key_value_dir_get(_NOTE):
      p, note = int(key.rpartition('/')[2]), json.loads(text)
      self._silent[p] = 0 if note != self._notes[p] else self._silent[p] + 1
      self._notes[p] = note

  def _dead(self, process: int, host: str) -> str:
    seconds = self._limit * self._pause
    return f"process {process} on {host} has died or can't be reached (for {seconds:g} s)"

  def _without_coordinator(self) -> tuple[int, str]:
    return 0, self._dead(0, self._news['host'])

  def _end(self, by: int, words: str) -> None:
    with self._ending:
      time.sleep(0 if by == self._index else _GRACE)
      words = '' if self._leaving else words
      if words:
        print(f'cnnjax: process {self._index} ends: {words}', file=sys.stderr, flush=True)
      # The others hear nothing any more when process 0 is gone.
      while self._index == 0 and any(
        p and 'bye' not in note and self._silent[p] * self._pause < 3 * _GRACE
        for p, note in self._notes.items()
      ):
        time.sleep(self._pause)
        self._read()
      if words:
        self._leave(4)

  def _leave(self, status: int) -> None:
    self._put(f'{_NOTE}{self._index}', {**self._note, 'bye': True})
    _exit(status)


def _exit(status: int) -> None:
  """Ends this process without JAX's farewell, which waits for processes that may never come."""
  for child in multiprocessing.active_children():
    child.kill()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


@contextlib.contextmanager
def _without_abort() -> Iterator[None]:
  """Inside, JAX's clients are made so that they end a process with a sentence.

  When process 0 dies, a thread of the client aborts the process with a stack trace. A callback can
  take the place of that. JAX offers it to nobody, and jaxlib 0.10 to 0.12 fail to call it: they
  can't convert its argument, and throw; so C++'s handler of last resort calls it as well.
  """
  from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

  make = _jax.get_distributed_runtime_client
  _jax.get_distributed_runtime_client = functools.partial(make, missed_heartbeat_callback=_lost)
  with contextlib.suppress(OSError, AttributeError):  # no libstdc++: JAX aborts as ever
    ctypes.CDLL('libstdc++.so.6')['_ZSt13set_terminatePFvvE'](_on_terminate)
  try:
    yield
  finally:
    _jax.get_distributed_runtime_client = make


def _lost(status: Any = None) -> None:
  del status
  if _peers is not None:
    _peers.coordinator_lost()
  os.abort()


_on_terminate = ctypes.CFUNCTYPE(None)(_lost)  # C++ keeps it as long as the process lives


def stopping(signals: Signals, step: int) -> bool:
  """Whether training stops after `step`: the same in all processes, whichever got the signal."""
  if _peers is None:
    return bool(signals)
  number = _peers.stop_at(step, signals.wish)
  if number:
    signals.received = signal.Signals(number)
  return number is not None


def share(make: Callable[[], Any]) -> Any:
  """What `make` returns in process 0, where alone it is called; JSON."""
  return make() if _peers is None else _peers.share(next(_calls), make)


def broadcast(tree: Any) -> Any:
  """The arrays of process 0, to the bit; those of other processes only give shapes and types."""
  if _peers is None:
    return tree
  import jax
  from jax.experimental import multihost_utils

  leaves, structure = jax.tree.flatten(jax.device_get(tree))
  # As bytes: what JAX sends is a sum, in which -0.0 would become 0.0.
  data = np.concatenate([np.ravel(x).view(np.uint8) for x in leaves])
  data = np.asarray(multihost_utils.broadcast_one_to_all(data))
  parts = np.split(data, np.cumsum([x.nbytes for x in leaves])[:-1])
  pairs = zip(parts, leaves, strict=True)
  return structure.unflatten([part.view(x.dtype).reshape(x.shape) for part, x in pairs])
