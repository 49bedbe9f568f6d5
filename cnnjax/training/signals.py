"""SIGTERM, SIGINT and the end of the time, as a wish that the loop looks at between steps."""

import signal
import threading
import time
from types import FrameType

from cnnjax.cli import Stopped

OUT_OF_TIME = 75  # EX_TEMPFAIL of sysexits.h: not finished, try again


class Signals:
  """A context in which the first SIGTERM or SIGINT is remembered and the second acts as ever.

  True once a signal came or the time is over.
  """

  def __init__(self, max_seconds: float = 0.0) -> None:
    """Installs nothing yet.

    Args:
      max_seconds: how long the run may take from now; 0 for as long as it likes.
    """
    self._max_seconds = max_seconds
    self._started = time.monotonic()
    self._received: signal.Signals | None = None
    self._previous: dict[int, object] = {}

  def __enter__(self) -> 'Signals':
    # Python runs handlers in the main thread only; elsewhere signals are the caller's business.
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._remember)
    return self

  def __exit__(self, *exc: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)  # type: ignore[arg-type]
    self._previous.clear()

  def _remember(self, number: int, frame: FrameType | None) -> None:
    del frame
    self._received = signal.Signals(number)
    signal.signal(number, self._previous[number])  # type: ignore[arg-type]

  def __bool__(self) -> bool:
    late = self._max_seconds and time.monotonic() - self._started >= self._max_seconds
    return self._received is not None or bool(late)

  def stopped(self, where: str) -> Stopped:
    """The exception that ends the run: exit status 75, or 128 + the signal's number."""
    if self._received is None:
      return Stopped(f'config.max_seconds={self._max_seconds:g}: stopped {where}', OUT_OF_TIME)
    return Stopped(f'{self._received.name}: stopped {where}', 128 + self._received)
