"""Checkpoints of the state: the only file that names Orbax.

A checkpoint holds every array of the state under its path (`params/head/kernel`) and, as JSON,
the progress that isn't an array, the test figures, and SHA-256 sums of all of these, against which
they are held when they are read. Arrays are written from host copies, so a checkpoint doesn't
depend on how many devices made it.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.serialization
import flax.traverse_util
import jax
import numpy as np

from cnnjax import errors
from cnnjax.training.state import State

_LOGGER = logging.getLogger(__name__)

PARTS = ('params', 'batch_stats', 'opt_state', 'ema')


class Damaged(Exception):
  """What a checkpoint's files hold isn't what was saved; the message says what differs."""


class _Keep(NamedTuple):
  """Which checkpoints Orbax keeps: the last ones, and the best.

  Not Orbax's own BestN: with it the figures aren't saved, so that a resumed run drops its best.
  """

  last: int
  best: int
  figures: dict[int, float]  # by step

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
    del context
    steps = [c.step for c in checkpoints]
    ranked = sorted((self.figures[s], s) for s in steps if s in self.figures)
    kept = {*steps[-self.last :], *(s for _, s in ranked[len(ranked) - self.best :])}
    return [s in kept for s in steps]


def _to_flat(state: State) -> dict[str, np.ndarray]:
  # A copy, always: on the CPU np.asarray shares memory with the device array, and the next step,
  # to which the state is donated, would overwrite it under the asynchronous save.
  tree = flax.serialization.to_state_dict(state)
  flat = flax.traverse_util.flatten_dict(tree, sep='/')
  return {k: np.array(v) for k, v in jax.device_get(flat).items() if v is not None}


def _from_flat(state: State, flat: Mapping[str, np.ndarray]) -> State:
  tree = flax.serialization.to_state_dict(state)
  template: dict[str, Any] = flax.traverse_util.flatten_dict(tree, sep='/', keep_empty_nodes=True)
  arrays = {k for k, v in template.items() if hasattr(v, 'shape')}
  wrong = sorted(arrays ^ set(flat)) or sorted(
    k for k in arrays if (template[k].shape, template[k].dtype) != (flat[k].shape, flat[k].dtype)
  )
  if wrong:
    raise errors.UserError(
      f'the checkpoint does not fit this config: {len(wrong)} arrays are missing, extra or of'
      f' another shape or type, the first {wrong[0]!r}'
    )
  tree = flax.traverse_util.unflatten_dict({**template, **flat}, sep='/')
  restored: Any = flax.serialization.from_state_dict(state, tree)
  return restored


def fingerprint(flat: Mapping[str, np.ndarray]) -> dict[str, str]:
  """SHA-256 of each part of a state, over names, types, shapes and bytes in the names' order.

  Args:
    flat: arrays by path, as a checkpoint holds them.
  """
  hashes = {part: hashlib.sha256() for part in PARTS}
  for name in sorted(flat):
    part = name.partition('/')[0]
    if part in hashes:
      array = np.ascontiguousarray(flat[name])
      hashes[part].update(f'{name} {array.dtype.str} {array.shape}\n'.encode())
      hashes[part].update(array.tobytes())
  return {part: h.hexdigest() for part, h in hashes.items()}


def _sha256(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _refuse_links(folder: str) -> None:
  """Orbax would follow links out of the checkpoint, and wait for pipes."""
  for root, folders, files in os.walk(folder):
    for path in (os.path.join(root, name) for name in (*folders, *files)):
      try:
        mode = os.lstat(path).st_mode
      except FileNotFoundError:  # the run that owns it is at work
        continue
      if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise errors.UserError(f'{path} is neither a file nor a folder')


@functools.cache
def _silence() -> None:
  """Once a read has failed, TensorStore tells asyncio of the others, which no longer listens."""
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  before = sys.unraisablehook
  sys.unraisablehook = lambda u: str(u.exc_value) == 'Event loop is closed' or before(u)


@contextlib.contextmanager
def _saving(directory: Any) -> Iterator[None]:
  try:
    yield
  except Exception as e:  # of the file system, from many libraries
    code = re.search(r"os_error_code='(\d+)'", str(e))  # TensorStore's words, at the end of many
    number = int(code[1]) if code else getattr(e, 'errno', None)
    reason = os.strerror(number) if number else f'{type(e).__name__}: {e}'[:300]
    raise errors.MachineError(f'a checkpoint cannot be saved in {directory}: {reason}') from e


class Checkpoints:
  """The checkpoints of a working directory. Process 0 has them; in others nothing is ever there.

  Saving is asynchronous. An error of an earlier save surfaces at the next `save`, `check` or
  the end of the `with` block, never silently.
  """

  def __init__(
    self,
    workdir: str,
    *,
    keep_last: int = 2,
    keep_best: int = 1,
    best_metric: str = 'accuracy',
    read_only: bool = False,
  ):
    """Opens `<workdir>/checkpoints`.

    Args:
      workdir: the run's directory.
      keep_last: how many of the newest are kept.
      keep_best: how many of the best by `best_metric` are kept besides.
      best_metric: a test metric for which higher is better.
      read_only: never create or delete anything.

    Raises:
      UserError: a link, a pipe or a device is among the files, or its metadata can't be read.
    """
    self._manager: Any = None
    if jax.process_index() != 0:
      return
    import orbax.checkpoint as ocp

    directory = os.path.abspath(os.path.join(workdir, 'checkpoints'))
    if not read_only:
      os.makedirs(directory, exist_ok=True)
    _refuse_links(directory)
    self._ocp = ocp
    self._read_only, self._best_metric = read_only, best_metric
    self._damaged = os.path.abspath(os.path.join(workdir, 'damaged'))
    self._keep = _Keep(keep_last, keep_best, {})
    try:
      self._manager = ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=self._keep,
          enable_async_checkpointing=not read_only,
          read_only=read_only,
          create=False,
          cleanup_tmp_directories=not read_only,  # what a killed save has left
          multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0}),
        ),
        item_handlers={
          'state': ocp.PyTreeCheckpointHandler(),
          'progress': ocp.JsonCheckpointHandler(),
        },
      )
    except (ValueError, TypeError, LookupError, AttributeError) as e:
      raise errors.UserError(f'{directory} is damaged: {type(e).__name__}: {e}') from e
    for step in () if read_only else self.steps():
      with contextlib.suppress(Damaged):
        self._note(step, self._read_json(step)['figures'])

  def steps(self) -> list[int]:
    """The steps that can be restored, ascending."""
    return sorted(self._manager.all_steps()) if self._manager else []

  def save(
    self, state: State, progress: Mapping[str, Any], metrics: Mapping[str, float] | None = None
  ) -> None:
    """Starts saving; a step that is already there is left as it is.

    Args:
      state: with `state.step` as the checkpoint's name.
      progress: JSON that resuming needs besides the state.
      metrics: test figures, by which the best are kept.

    Raises:
      MachineError: this save or the one before failed; what is there stays as it is.
    """
    step = int(state.step)
    if not self._manager or step in self._manager.all_steps():
      return
    args, flat = self._ocp.args, _to_flat(state)
    saved: dict[str, Any] = {'progress': dict(progress), 'figures': dict(metrics or {})}
    saved['fingerprint'] = fingerprint(flat)
    saved['sha256'] = _sha256(saved)
    self._note(step, saved['figures'])
    with _saving(self._manager.directory):
      items = args.Composite(state=args.PyTreeSave(flat), progress=args.JsonSave(saved))
      self._manager.save(step, args=items)

  def _note(self, step: int, figures: Mapping[str, float]) -> None:
    if self._best_metric in figures:
      self._keep.figures[step] = figures[self._best_metric]

  def _read_json(self, step: int) -> dict[str, Any]:
    args = self._ocp.args
    try:
      saved = self._manager.restore(step, args=args.Composite(progress=args.JsonRestore()))
      saved = saved['progress']
      if saved.pop('sha256') == _sha256(saved):
        figures = {type(figure) for figure in saved['figures'].values()}
        if figures <= {int, float} and {**saved['progress'], **saved['fingerprint']}:
          return saved
      reason = 'its SHA-256 is another'
    except Exception as e:  # of any library: damaged bytes break anything
      reason = ' '.join(f'{type(e).__name__}: {e}'.split())[:200]
    raise Damaged(f'progress: {reason}')

  def _read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the JSON of a step, held against their sums."""
    _silence()
    saved, args = self._read_json(step), self._ocp.args
    try:
      flat = self._manager.restore(step, args=args.Composite(state=args.PyTreeRestore()))['state']
      found, number = fingerprint(flat), int(flat['step'])
    except Exception as e:
      raise Damaged(f'state: {" ".join(f"{type(e).__name__}: {e}".split())[:200]}') from e
    if number != step:
      raise Damaged(f'step: it says {flat.get("step")}')
    for part, digest in found.items():
      if saved['fingerprint'].get(part) != digest:
        raise Damaged(f'{part}: its SHA-256 is another')
    return flat, saved

  def read(self, step: int | None = None) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by path, on the host.

    Args:
      step: which; the newest if None.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    step = self._step(step)
    try:
      return self._read(step)[0]
    except Damaged as e:
      raise errors.UserError(f'{self._manager.directory}/{step} is damaged: {e}') from e

  def restore(self, state: State, step: int | None = None) -> tuple[State, dict[str, Any]]:
    """Fills `state`'s arrays from a checkpoint.

    Args:
      state: a state of the right structure, whose values are replaced.
      step: which checkpoint; if None, the newest that isn't damaged. Damaged newer ones are named
        in a log line and, unless read only, moved to `<workdir>/damaged`.

    Returns:
      The state (NumPy arrays) and the progress saved with it.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or it is another model's.
    """
    steps = self.steps() if step is None else []
    damaged: dict[int, Damaged] = {}
    for candidate in reversed(steps or [self._step(step)]):
      try:
        flat, saved = self._read(candidate)
      except Damaged as e:
        damaged[candidate] = e
        continue
      restored = _from_flat(state, flat)
      for bad, reason in damaged.items():
        _LOGGER.warning(
          '%s/%d is damaged (%s): going on from step %d',
          self._manager.directory, bad, reason, candidate,
        )  # fmt: skip
        self._set_aside(bad)
      return restored, saved['progress']
    reasons = ', '.join(f'step {s} ({e})' for s, e in damaged.items())
    raise errors.UserError(
      f'every checkpoint asked for in {self._manager.directory} is damaged: {reasons}; to train'
      ' from the start, remove that folder'
    )

  def _set_aside(self, step: int) -> None:
    # Out of the way of the step's next checkpoint, and of the count of those that are kept.
    if self._read_only:
      return
    aside = os.path.join(self._damaged, str(step))
    shutil.rmtree(aside, ignore_errors=True)
    os.makedirs(self._damaged, exist_ok=True)
    os.replace(self._manager.directory / str(step), aside)
    self._manager.reload()
    self._keep.figures.pop(step, None)

  def _step(self, step: int | None) -> int:
    steps = self.steps()
    if not steps or (step is not None and step not in steps):
      raise errors.UserError(
        f'no checkpoint {"" if step is None else f"of step {step} "}in'
        f' {self._manager.directory}; steps there: {steps}'
      )
    return steps[-1] if step is None else step

  def check(self) -> None:
    """Raises a MachineError if an asynchronous save has failed since the last look."""
    if not self._manager:
      return
    with _saving(self._manager.directory):
      self._manager.check_for_errors()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *exc: object) -> None:
    """Waits for saves under way; raises a MachineError if one failed."""
    if not self._manager:
      return
    with _saving(self._manager.directory):
      self._manager.wait_until_finished()
      self._manager.close()
