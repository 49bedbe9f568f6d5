"""The wish to stop: a signal's, or that of the clock."""

import signal
import time

from cnnjax.training import signals


def test_the_time_is_over():
  with signals.Signals(0.05) as stop:
    assert not stop
    time.sleep(0.06)
    assert stop
    ended = stop.stopped('after step 3')
  assert (ended.status, str(ended)) == (75, 'config.max_seconds=0.05: stopped after step 3')


def test_a_signal_counts_more_than_the_time(monkeypatch):
  monkeypatch.setattr(time, 'time', lambda: 1e12)  # a clock that jumps
  with signals.Signals(3600.0) as stop:
    assert not stop
    signal.raise_signal(signal.SIGTERM)
    assert stop
    assert stop.stopped('').status == 143


def test_no_limit():
  with signals.Signals() as stop:
    assert not stop
