"""Keeps the device fed: the next batches are transferred while the current one is computed."""

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

In = TypeVar('In')
Out = TypeVar('Out')

_POLL = 0.1  # seconds between looks at whether the consumer has gone
_LOOKS = 10  # in which a timeout is waited for: a process that was suspended loses only one


class _End:
  """Ends the stream, with the error that ended it, if any."""

  def __init__(self, error: BaseException | None):
    self.error = error


def _fill(
  iterator: Iterator[Any], put: Callable[[Any], Any], out: queue.Queue, stop: threading.Event
) -> None:
  def offer(item: Any) -> None:
    while not stop.is_set():
      try:
        return out.put(item, timeout=_POLL)
      except queue.Full:
        continue

  error = None
  try:
    while not stop.is_set():
      try:
        item = next(iterator)
      except StopIteration:
        break
      offer(put(item))
      del item  # or the last batch would live as long as the thread
  except BaseException as raised:
    error = raised
  # Here, not in the consumer's thread: a generator can't be closed while it runs.
  try:
    if close := getattr(iterator, 'close', None):
      close()
  except BaseException as raised:
    error = error or raised
  offer(_End(error))


def _stop(stop: threading.Event, thread: threading.Thread) -> None:
  stop.set()
  if thread is not threading.current_thread():
    thread.join()


class Prefetch(Generic[Out]):
  """An iterator that a thread fills; see `prefetch`. A context manager that closes."""

  def __init__(
    self,
    iterator: Iterator[Any],
    put: Callable[[Any], Out],
    size: int,
    timeout: float,
    on_timeout: Callable[[], None],
  ):
    self._queue: queue.Queue = queue.Queue(size)
    self._timeout, self._on_timeout = timeout, on_timeout
    stop = threading.Event()
    # The thread doesn't hold `self`: an iterator that nobody holds any more stops by itself, and
    # at exit the finalizer joins the thread before the interpreter is torn down.
    thread = threading.Thread(
      target=_fill, args=(iterator, put, self._queue, stop), name='prefetch', daemon=True
    )
    self._finalize = weakref.finalize(self, _stop, stop, thread)
    thread.start()

  def __iter__(self) -> 'Prefetch[Out]':
    return self

  def __next__(self) -> Out:
    if not self._finalize.alive:
      raise StopIteration
    item = self._get()
    if isinstance(item, _End):
      self.close()
      if item.error is not None:
        raise item.error
      raise StopIteration
    return item

  def _get(self) -> Any:
    if not self._timeout:
      return self._queue.get()
    while True:
      for _ in range(_LOOKS):
        with contextlib.suppress(queue.Empty):
          return self._queue.get(timeout=self._timeout / _LOOKS)
      self._on_timeout()

  def close(self) -> None:
    """Stops the thread and closes the iterator underneath; closing twice is harmless."""
    self._finalize()

  def __enter__(self) -> 'Prefetch[Out]':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def prefetch(
  iterator: Iterator[In],
  put: Callable[[In], Out],
  size: int = 2,
  *,
  timeout: float = 0.0,
  on_timeout: Callable[[], None] = lambda: None,
) -> Prefetch[Out]:
  """Runs `put` (the transfer to the device) ahead of the consumer, in a thread.

  Args:
    iterator: host batches; used only by the thread from here on, and closed at the end.
    put: called on each item.
    size: how many results may wait; one more is in the making.
    timeout: seconds that the consumer waits before `on_timeout` is called; 0 for ever.
    on_timeout: does something about an iterator that hangs; the wait goes on after it.

  Returns:
    An iterator over `put(item)` in order. An error in the iterator or in `put` is raised where
    the failed item would have come.
  """
  if size < 1:
    raise ValueError(f'size={size}: allowed 1 or more')
  return Prefetch(iterator, put, size, timeout, on_timeout)
