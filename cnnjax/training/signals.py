"""SIGTERM and SIGINT as a wish that the loop looks at between steps."""

import signal
import threading
from types import FrameType

from cnnjax.cli import Stopped


class Signals:
  """A context in which the first SIGTERM or SIGINT is remembered and the second acts as ever.

  Attributes:
    received: the signal, or None; `processes` sets it where it came to another process.
  """

  def __init__(self) -> None:
    """Installs nothing yet."""
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
    return self.received is not None

  def stopped(self, where: str) -> Stopped:
    """The exception that ends the run: exit status 128 + the signal's number."""
    assert self.received is not None
    return Stopped(f'{self.received.name}: stopped {where}', 128 + self.received)
