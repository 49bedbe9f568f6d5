"""Checkpoints of the state: the only file that names Orbax.

A checkpoint holds every array of the state under its path (`params/head/kernel`) and, as JSON,
the progress that isn't an array. Arrays are written from host copies, so a checkpoint doesn't
depend on how many devices made it.
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import flax.serialization
import flax.traverse_util
import jax
import numpy as np

from cnnjax import errors
from cnnjax.training.state import State

PARTS = ('params', 'batch_stats', 'opt_state', 'ema')


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
    """
    self._manager: Any = None
    if jax.process_index() != 0:
      return
    import orbax.checkpoint as ocp

    directory = os.path.abspath(os.path.join(workdir, 'checkpoints'))
    if not read_only:
      os.makedirs(directory, exist_ok=True)
    self._ocp = ocp
    policies = ocp.checkpoint_managers
    keep: list[Any] = [policies.LatestN(keep_last)]
    if keep_best:
      keep.append(
        policies.BestN(
          get_metric_fn=lambda metrics: metrics[best_metric],
          n=keep_best,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._manager = ocp.CheckpointManager(
      directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(keep),
        enable_async_checkpointing=not read_only,
        read_only=read_only,
        create=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0}),
      ),
      item_handlers={
        'state': ocp.PyTreeCheckpointHandler(),
        'progress': ocp.JsonCheckpointHandler(),
      },
    )

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
    """
    step = int(state.step)
    if not self._manager or step in self._manager.all_steps():
      return
    args = self._ocp.args
    self._manager.save(
      step,
      args=args.Composite(
        state=args.PyTreeSave(_to_flat(state)), progress=args.JsonSave(dict(progress))
      ),
      metrics=None if metrics is None else dict(metrics),
    )

  def read(self, step: int | None = None) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by path, on the host.

    Args:
      step: which; the newest if None.

    Raises:
      UserError: there is no such checkpoint.
    """
    args = self._ocp.args
    return self._manager.restore(self._step(step), args=args.Composite(state=args.PyTreeRestore()))[
      'state'
    ]

  def restore(self, state: State, step: int | None = None) -> tuple[State, dict[str, Any]]:
    """Fills `state`'s arrays from a checkpoint.

    Args:
      state: a state of the right structure, whose values are replaced.
      step: which checkpoint; the newest if None.

    Returns:
      The state (NumPy arrays) and the progress saved with it.

    Raises:
      UserError: there is no such checkpoint, or it is another model's.
    """
    step = self._step(step)
    args = self._ocp.args
    restored = self._manager.restore(step, args=args.Composite(progress=args.JsonRestore()))
    return _from_flat(state, self.read(step)), restored['progress']

  def _step(self, step: int | None) -> int:
    steps = self.steps()
    if not steps or (step is not None and step not in steps):
      raise errors.UserError(
        f'no checkpoint {"" if step is None else f"of step {step} "}in'
        f' {self._manager.directory}; steps there: {steps}'
      )
    return steps[-1] if step is None else step

  def check(self) -> None:
    """Raises what an asynchronous save has failed with since the last look."""
    if self._manager:
      self._manager.check_for_errors()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *exc: object) -> None:
    """Waits for saves under way and raises what they failed with."""
    if self._manager:
      self._manager.wait_until_finished()
      self._manager.close()
