"""Time spent in training steps, without compilation, evaluation and checkpoints."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
  """Counts steps and the seconds they took.

  Attributes:
    seconds: spent in steps up to the last `lap`, over all sessions of a resumed run.
  """

  def __init__(self, seconds: float = 0.0):
    """Makes a stopped clock that starts from `seconds`."""
    self.seconds = seconds
    self._since: float | None = None
    self._steps = self._lap_steps = 0
    self._session = 0.0

  def start(self) -> None:
    """Starts; what came before isn't counted."""
    self._since = time.monotonic()

  def step(self) -> None:
    """Counts one step, if the clock runs."""
    if self._since is not None:
      self._lap_steps += 1

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Doesn't count what happens inside."""
    before = time.monotonic()
    yield
    if self._since is not None:
      self._since += time.monotonic() - before

  def lap(self) -> tuple[float | None, float | None]:
    """Ends a lap, after the device has finished its steps.

    Returns:
      Steps per second in this lap, and seconds per step over all laps since `start`; None where
      no step was timed.
    """
    if self._since is None:
      return None, None
    now = time.monotonic()
    took, steps = now - self._since, self._lap_steps
    self._since, self._lap_steps = now, 0
    self.seconds += took
    self._session += took
    self._steps += steps
    return (
      steps / took if steps and took > 0 else None,
      self._session / self._steps if self._steps else None,
    )
