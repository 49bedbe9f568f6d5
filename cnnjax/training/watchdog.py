"""Says that a step hangs, while it hangs."""

import contextlib
import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator

_LOGGER = logging.getLogger(__name__)

FACTOR = 10.0  # times the median


class Watchdog:
  """A context with a thread that logs one line when a step takes 10 times the median.

  A step's time is counted in looks of the thread, so neither a clock that jumps nor a process that
  was suspended looks like a hang.
  """

  def __init__(self, *, least: float = 5.0, window: int = 101) -> None:
    """Starts nothing yet.

    Args:
      least: seconds below which nothing is reported.
      window: of how many steps, the newest ones, the median is taken.
    """
    self._least, self._look = least, least / 10
    self._seconds: deque[float] = deque(maxlen=window)
    self._since: float | None = None
    self._step = 0
    self._looks: int | None = None  # since the step began; None: not counted
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._watch, name='watchdog', daemon=True)

  def __enter__(self) -> 'Watchdog':
    self._thread.start()
    return self

  def __exit__(self, *exc: object) -> None:
    self._end.set()
    self._thread.join()

  def finished(self, step: int) -> None:
    """Notes that a step has ended and the next one begins."""
    now = time.monotonic()
    if self._since is not None:
      self._seconds.append(now - self._since)
    self._since, self._step, self._looks = now, step, 0

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Doesn't watch what happens inside."""
    before, self._looks = time.monotonic(), None
    yield
    self._looks = 0
    if self._since is not None:
      self._since += time.monotonic() - before

  def _watch(self) -> None:
    while not self._end.wait(self._look):
      if self._looks is None or not self._seconds:
        continue
      self._looks += 1
      seconds, median = self._looks * self._look, statistics.median(tuple(self._seconds))
      if seconds >= max(self._least, FACTOR * median):
        _LOGGER.warning(
          'step %d has taken %.1f s so far, the median is %.3g s', self._step + 1, seconds, median
        )
        self._looks = None  # once a step
