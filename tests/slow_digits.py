"""A short run whose steps take 20 ms longer, so that faults find it at work. Argument: steps."""

import time

from cnnjax.training.clock import Clock
from experiments.digits import lenet5


def get_config(steps='60'):
  count = Clock.step

  def slowly(clock):
    time.sleep(0.02)
    count(clock)

  Clock.step = slowly

  c = lenet5.get_config()
  c.steps = int(steps)
  c.schedule.warmup_epochs = 0
  c.ops = 'xla'  # says nothing, wherever it runs
  c.log_every, c.eval_every, c.checkpoint.every = 5, 20, 10
  return c
