"""The clock counts steps and leaves out what happens while it is paused."""

import pytest

from cnnjax.training import clock as clock_lib


@pytest.fixture
def time(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(clock_lib.time, 'monotonic', lambda: now[0])
  return now


def test_laps(time):
  clock = clock_lib.Clock(seconds=5.0)
  clock.step()  # before the start: the step that compiles
  time[0] += 30
  assert clock.lap() == (None, None)
  clock.start()
  for _ in range(4):
    clock.step()
  time[0] += 2
  with clock.paused():
    time[0] += 50
  assert clock.lap() == (2.0, 0.5)
  for _ in range(2):
    clock.step()
  time[0] += 4
  assert clock.lap() == (0.5, 1.0)
  assert clock.seconds == 11.0
