"""SIGTERM, SIGINT and the end of the time, as a wish that the loop looks at between steps."""

import signal
import threading
import time
from types import FrameType

from cnnjax.cli import Stopped

OUT_OF_TIME = 75  # EX_TEMPFAIL of sysexits.h: not finished, try again


class Signals:
  """A context in which the first SIGTERM or SIGINT is remembered and the second acts as ever.

  Attributes:
    received: the signal, or None; `processes` sets it where it came to another process.
  """

  def __init__(self, max_seconds: float = 0.0) -> None:
    """Installs nothing yet.

    Args:
      max_seconds: how long the run may take from now; 0 for as long as it likes.
    """
    self._max_seconds = max_seconds
    self._started = time.monotonic()
    self.received: signal.Signals | None = None
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
    self.received = signal.Signals(number)
    signal.signal(number, self._previous[number])  # type: ignore[arg-type]

  def __bool__(self) -> bool:
    return self.wish is not None

  @property
  def wish(self) -> int | None:
    """The signal that came; 0 if the time is over; None as long as the run may go on."""
    if self.received is not None:
      return int(self.received)
    late = self._max_seconds and time.monotonic() - self._started >= self._max_seconds
    return 0 if late else None

  def stopped(self, where: str) -> Stopped:
    """The exception that ends the run: exit status 75, or 128 + the signal's number."""
    if self.received is None:
      return Stopped(f'config.max_seconds={self._max_seconds:g}: stopped {where}', OUT_OF_TIME)
    return Stopped(f'{self.received.name}: stopped {where}', 128 + self.received)
