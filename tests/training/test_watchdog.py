"""A step that hangs is told of while it hangs, and only then."""

import threading
import time

from cnnjax.training.watchdog import Watchdog


def wait_for(condition):
  for _ in range(500):
    if condition():
      return True
    time.sleep(0.01)
  return False


def messages(caplog):
  return [line for line in caplog.messages if 'has taken' in line]


def test_speaks_once_while_a_step_hangs(caplog):
  with Watchdog(least=0.1) as watchdog:
    for step in range(1, 6):
      watchdog.finished(step)
    assert wait_for(lambda: messages(caplog))  # step 6 hasn't finished yet
    time.sleep(0.3)
    watchdog.finished(6)
  (line,) = messages(caplog)
  assert line.startswith('step 6 has taken')
  assert 'the median is' in line
  assert not [t for t in threading.enumerate() if t.name == 'watchdog']


def test_is_silent_about_pauses_first_steps_and_short_ones(caplog):
  with Watchdog(least=0.1) as watchdog:
    time.sleep(0.2)  # compiling: there is no median yet
    for step in range(1, 6):
      watchdog.finished(step)
    with watchdog.paused():
      time.sleep(0.3)
    watchdog.finished(6)
  assert not messages(caplog)


def test_long_steps_need_ten_times_their_median(caplog):
  with Watchdog(least=0.01) as watchdog:
    for step in range(1, 5):
      watchdog.finished(step)
      time.sleep(0.1)
    time.sleep(0.3)  # 4 times the median
    watchdog.finished(5)
    assert not messages(caplog)
    assert wait_for(lambda: messages(caplog))
  assert messages(caplog)[0].startswith('step 6 has taken')
