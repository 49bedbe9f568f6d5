"""Order, errors, and an end without threads left over."""

import gc
import threading
import time

import pytest

from cnnjax.data.prefetch import prefetch


def _threads() -> list[threading.Thread]:
  return [thread for thread in threading.enumerate() if thread.name == 'prefetch']


def _wait_for_no_threads() -> bool:
  for _ in range(200):
    if not _threads():
      return True
    time.sleep(0.01)
  return False


class Counting:
  """Counts to `stop`, noting where it is and whether it was closed."""

  def __init__(self, stop: int, fail_at: int | None = None):
    self.next, self.stop, self.fail_at, self.closed = 0, stop, fail_at, 0

  def __iter__(self):
    return self

  def __next__(self):
    if self.next == self.fail_at:
      raise RuntimeError('read failed')
    if self.next == self.stop:
      raise StopIteration
    self.next += 1
    return self.next - 1

  def close(self):
    self.closed += 1


def test_order_and_end():
  source = Counting(7)
  stream = prefetch(source, lambda x: x * x)
  assert list(stream) == [0, 1, 4, 9, 16, 25, 36]
  assert list(stream) == []
  assert source.closed == 1
  assert not _threads()


def test_a_source_that_hangs_is_told_to_somebody_who_can_end_it():
  hangs, calls = threading.Event(), []

  def source():
    yield 1
    hangs.wait()
    yield 2

  def on_timeout():
    calls.append(1)
    if len(calls) == 2:
      hangs.set()

  assert list(prefetch(source(), lambda x: x, timeout=0.05, on_timeout=on_timeout)) == [1, 2]
  assert len(calls) == 2


def test_runs_in_a_thread_and_not_too_far_ahead():
  source = Counting(100)
  names = []
  with prefetch(source, lambda x: names.append(threading.current_thread().name), size=3) as stream:
    next(stream)
    for _ in range(200):
      if source.next == 5:
        break
      time.sleep(0.01)
    time.sleep(0.05)
    assert source.next == 5  # one taken, three waiting, one in the making
  assert set(names) == {'prefetch'}


@pytest.mark.parametrize('where', ['iterator', 'put'])
def test_error_comes_in_its_place(where):
  source = Counting(9, fail_at=2 if where == 'iterator' else None)

  def put(x):
    if where == 'put' and x == 2:
      raise RuntimeError('transfer failed')
    return x

  stream = prefetch(source, put)
  assert [next(stream), next(stream)] == [0, 1]
  with pytest.raises(RuntimeError, match='failed'):
    next(stream)
  assert list(stream) == []
  assert source.closed == 1
  assert not _threads()


def test_close_early_closes_the_iterator():
  source = Counting(10**9)
  stream = prefetch(source, lambda x: x)
  next(stream)
  stream.close()
  stream.close()
  assert source.closed == 1
  assert not _threads()
  with pytest.raises(StopIteration):
    next(stream)


def test_closes_a_generator_in_its_own_thread():
  ended = []

  def numbers():
    try:
      yield from range(10**9)
    finally:
      ended.append(threading.current_thread().name)

  with prefetch(numbers(), lambda x: x) as stream:
    next(stream)
  assert ended == ['prefetch']


def test_dropped_iterator_stops():
  stream = prefetch(Counting(10**9), lambda x: x)
  next(stream)
  del stream
  gc.collect()
  assert _wait_for_no_threads()


def test_size_must_be_positive():
  with pytest.raises(ValueError, match='size=0'):
    prefetch(iter(()), lambda x: x, size=0)
