"""Training and evaluation of one config in one working directory."""

import contextlib
import dataclasses
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.cli import NonFinite
from cnnjax.config import Config
from cnnjax.training import (
  checkpoint,
  experiment,
  metrics,
  probes,
  processes,
  steps,
  workdir,
  writers,
)
from cnnjax.training.clock import Clock
from cnnjax.training.signals import Signals
from cnnjax.training.state import State
from cnnjax.training.watchdog import Watchdog

Row = dict[str, Any]


@dataclasses.dataclass
class Progress:
  """What resuming needs besides the state: sums since the last line of training metrics.

  Attributes:
    updates: in the window.
    count: examples in the window.
    loss: summed over them.
    correct: how many of them were classified right.
    gradient_norm: summed over the steps.
    seconds: spent in steps, in the whole run.
    data: a checksum of the examples of all steps so far, in the steps' order.
  """

  updates: int = 0
  count: float = 0.0
  loss: float = 0.0
  correct: float = 0.0
  gradient_norm: float = 0.0
  seconds: float = 0.0
  data: int = 0

  def add(self, values: Mapping[str, Any]) -> None:
    """Adds one step's metrics, in float64."""
    self.updates += 1
    for name in ('count', 'loss', 'correct', 'gradient_norm'):
      setattr(self, name, getattr(self, name) + float(values[name]))
    self.data = zlib.crc32(int(values['data']).to_bytes(4, 'little'), self.data)

  def figures(self) -> Row:
    """Means over the window: of loss and accuracy over examples, of the norm over steps."""
    count = max(self.count, 1.0)
    return {
      'loss': self.loss / count,
      'accuracy': self.correct / count,
      'gradient_norm': self.gradient_norm / max(self.updates, 1),
      'data': f'{self.data:08x}',
    }

  def clear(self) -> None:
    """Starts the next window."""
    self.updates, self.count, self.loss, self.correct, self.gradient_norm = 0, 0.0, 0.0, 0.0, 0.0


def train(config: Config, directory: str) -> Row:
  """Trains, or resumes training, and evaluates on the test split.

  Args:
    config: validated.
    directory: the working directory, which holds all that the run leaves; created if missing.

  Returns:
    The last evaluation's row of `metrics.jsonl`.

  Raises:
    UserError: a mistake in the config or data.
    NonFinite: the loss, its gradient or a parameter stopped being a number.
    MachineError: the disk is full, or a process was lost; the newest checkpoint stands.
    Stopped: SIGTERM or SIGINT came, or the time is over; the state is saved.
  """
  with Signals(config.max_seconds) as signals, contextlib.ExitStack() as stack:
    # Set-up: data, model, steps
    if jax.process_index() == 0:
      stack.enter_context(workdir.lock(directory))
    processes.share(lambda: workdir.prepare(directory, config))
    setup = experiment.create(config, directory)
    plan = setup.plan
    checkpoints = stack.enter_context(
      checkpoint.Checkpoints(
        directory,
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        best_metric=config.checkpoint.best_metric,
      )
    )

    # Restore
    state, progress = setup.init(), Progress()
    if checkpoints.steps():
      state, saved = checkpoints.restore(state)
      progress = Progress(**saved)
    state = processes.broadcast(state)
    progress = Progress(**processes.share(lambda: dataclasses.asdict(progress)))
    first = int(state.step)
    if first == plan.steps:
      return processes.share(lambda: last_evaluation(directory))
    state = setup.devices.replicate(state)
    if processes.stopping(signals, first):
      raise signals.stopped(f'before step {first + 1}')

    # Loop
    clock = Clock(progress.seconds)
    output = stack.enter_context(writers.Writers(directory, plan.steps, step=first))
    batches = stack.enter_context(contextlib.closing(setup.train_batches(first)))
    watchdog = stack.enter_context(Watchdog())
    pending: list[steps.Metrics] = []

    def drain(step: int) -> None:
      # Reading a metric waits for its step: once for many steps, not at every one.
      for done, values in enumerate(jax.device_get(pending), start=step - len(pending) + 1):
        if not np.isfinite([values['loss'], values['gradient_norm']]).all():
          raise NonFinite(
            f'step {done}: the loss is {values["loss"] / max(values["count"], 1):g}, the gradient'
            f' norm {values["gradient_norm"]:g}; the newest checkpoint is of step'
            f' {max(checkpoints.steps(), default=None)}'
          )
        progress.add(values)
      pending.clear()
      checkpoints.check()

    def log(step: int) -> None:
      steps_per_second, seconds_per_step = clock.lap()
      progress.seconds = clock.seconds
      row = {'step': step, 'split': 'train', **progress.figures()}
      row['learning_rate'] = float(np.asarray(setup.schedule(step - 1)))
      row['seconds'] = clock.seconds
      if steps_per_second and seconds_per_step:
        row['images_per_second'] = steps_per_second * plan.batch_size
        row['eta_seconds'] = seconds_per_step * (plan.steps - step)
      output.write(row)
      progress.clear()

    def save(step: int, row: Row | None) -> None:
      # What can't be gone on from is not saved, or it would drive out the last healthy checkpoint.
      if not all_finite(state):
        raise NonFinite(f'step {step}: a number of the state is no longer finite')
      figures = {k: v for k, v in row.items() if isinstance(v, float)} if row else None
      checkpoints.save(state, dataclasses.asdict(progress), figures)

    profile = stack.enter_context(profiling(config.profile, directory))
    for step in range(first + 1, plan.steps + 1):
      profile(step, pending)
      state, values = setup.train_step(state, next(batches))
      pending.append(values)
      clock.step()
      if step == first + 1:
        jax.block_until_ready(values)
        clock.start()  # this step was compiled as well, so it isn't timed
      elif len(pending) > 1:
        # One step ahead of the device and no more: a signal waits for what is under way.
        jax.block_until_ready(pending[-2])

      last = step == plan.steps
      # Looked at once: a signal that comes later waits a step.
      stopping = processes.stopping(signals, step) and not last
      evaluating = last or step % plan.eval_every == 0
      saving = last or stopping or step % plan.checkpoint_every == 0
      if last or step % config.log_every == 0:
        drain(step)
        log(step)
      watchdog.finished(step)
      if not (evaluating or saving):
        continue
      drain(step)
      with clock.paused(), watchdog.paused():
        row = None
        if evaluating:
          row = {'step': step, 'split': 'test', **evaluate(setup, state)}
          output.write(row)
        if last and config.eval_probes:
          figures = probe(setup, state, config.eval_probes)
          output.write({'step': step, 'split': 'probe', **figures})
        if saving:
          save(step, row)
      if stopping:
        raise signals.stopped(f'after step {step}; the same command resumes')
    assert row is not None
    return row


@contextlib.contextmanager
def profiling(steps_range: str, directory: str) -> Iterator[Callable[[int, Any], None]]:
  """Profiles the steps 'FIRST:LAST' into `<directory>/profile`.

  Yields:
    `before(step, pending)`, to be called before each step with results that steps before it owe.
  """
  first, last = map(int, steps_range.split(':')) if steps_range else (0, -1)
  running = False

  def before(step: int, pending: Any) -> None:
    nonlocal running
    if step in (first, last + 1) and first <= last:
      jax.block_until_ready(pending)  # so that each step's work is on its own side
    if running and step > last:
      jax.profiler.stop_trace()
      running = False
    elif not running and first <= step <= last:
      jax.profiler.start_trace(os.path.join(directory, 'profile'))
      running = True

  try:
    yield before
  finally:
    if running:
      jax.profiler.stop_trace()


@jax.jit
def all_finite(tree: Any) -> jax.Array:
  """Whether every element of every array is a finite number."""
  return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def evaluate(setup: experiment.Experiment, state: State) -> dict[str, Any]:
  """The task's figures over the whole test split, every example once."""
  state = setup.recalibrate(state)
  total: metrics.Sums = {}
  with contextlib.closing(setup.test_batches()) as batches:
    for batch in batches:
      total = metrics.accumulate(total or None, setup.eval_step(state, batch))
  return setup.task.summarize(total)


def probe(setup: experiment.Experiment, state: State, names: Sequence[str]) -> dict[str, float]:
  """Test accuracies of classifiers on the network's features (`cnnjax.training.probes`)."""
  state = setup.recalibrate(state)
  (train, labels), (test, truth) = (setup.features(state, split) for split in ('train', 'test'))
  classes = len(setup.description['class_names'])
  predicted = {n: probes.PROBES[n](train, labels, test, num_classes=classes) for n in names}
  return {f'{n}_accuracy': float((found == truth).mean()) for n, found in predicted.items()}


def evaluate_checkpoint(config: Config, directory: str, step: int | None = None) -> Row:
  """Evaluates a checkpoint on the test split; writes nothing.

  Args:
    config: the run's own; `workdir.EVALUATION` may differ.
    directory: its working directory.
    step: which checkpoint; the newest if None.

  Raises:
    UserError: there is no such checkpoint, or the directory is another config's.
  """
  processes.share(lambda: bool(workdir.check(directory, config, workdir.EVALUATION)))
  setup = experiment.create(config, directory)
  with checkpoint.Checkpoints(directory, read_only=True) as checkpoints:
    state = setup.init()
    if jax.process_index() == 0:
      state, _ = checkpoints.restore(state, step)
    state = processes.broadcast(state)
  figures = evaluate(setup, setup.devices.replicate(state))
  return {'step': int(state.step), 'split': 'test', **figures}


def last_evaluation(directory: str) -> Row:
  """The newest row of a finished run's test split."""
  return [row for row in writers.read(directory) if row['split'] == 'test'][-1]
