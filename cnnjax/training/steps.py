"""One step of training and of evaluation: pure functions of one device's share of a batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cnnjax.data.mix import Mix
from cnnjax.tasks import Task
from cnnjax.training import metrics as metrics_lib
from cnnjax.training.state import State

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Preprocess = Callable[..., jax.Array]  # (key, images, ids, train, [visits]) -> float images

_RUN = 2**32 - 1  # what a draw for the whole run folds in where others fold in the step


def make_train_step(
  task: Task,
  optimizer: optax.GradientTransformation,
  *,
  key: jax.Array,
  preprocess: Preprocess,
  mix: Mix | None = None,
  axis_name: str | None = None,
) -> Callable[[State, Batch], tuple[State, Metrics]]:
  """Makes `step(state, batch) -> (state, metrics)`, one update on the cost J.

  J is the mean of the per-example losses over the examples of all devices whose mask is 1. All
  randomness is `fold_in(fold_in(key, step), id)`, so neither the number of devices nor where an
  example lies in the batch changes what is drawn for it.

  Args:
    task: gives the per-example losses.
    optimizer: turns gradients into updates.
    key: the run's key.
    preprocess: `(key, images, ids, train)`, uint8 images to augmented, normalised floats; where
      batches have `epoch`, called with `visits` besides.
    mix: of `data.mix`, applied to the preprocessed batch.
    axis_name: the mapped axis of devices, or None on one device.

  Returns:
    A pure function. Its metrics are sums over all devices (`loss`, `correct`, `count`) and the
    global `gradient_norm` before clipping.
  """

  def over_devices(tree):
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)

  def step(state: State, batch: Batch) -> tuple[State, Metrics]:
    step_key = jax.random.fold_in(key, state.step)
    augment_key, model_key = jax.random.split(step_key)
    shown = {'visits': _visits(key, batch)} if 'epoch' in batch else {}
    images = preprocess(augment_key, batch['image'], batch['id'], train=True, **shown)
    batch = {**batch, 'image': images}
    if mix is not None:
      batch = mix(jax.random.fold_in(step_key, 2), batch, axis_name=axis_name)
    count = jnp.maximum(over_devices(batch['mask'].sum()), 1.0)

    def cost(params):
      variables = {'params': params, 'batch_stats': state.batch_stats}
      losses, outputs = task.loss(variables, batch, key=model_key, train=True)
      return jnp.where(batch['mask'] > 0, losses, 0.0).sum() / count, (losses, outputs)

    gradients, (losses, outputs) = jax.grad(cost, has_aux=True)(state.params)
    gradients = over_devices(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    metrics = over_devices(metrics_lib.training_sums(losses, outputs.logits, batch))
    metrics['gradient_norm'] = optax.tree.norm(gradients)
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=outputs.batch_stats,
      opt_state=opt_state,
    )
    return state, metrics

  return step


def _visits(key: jax.Array, batch: Batch) -> jax.Array:
  """How often each example was shown before, plus a 0 or 1 drawn once for it: int32 [N]."""
  run_key = jax.random.fold_in(key, _RUN)
  draw = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(run_key, i)))
  return batch['epoch'] + draw(batch['id'])


def make_eval_step(
  task: Task, *, preprocess: Preprocess, axis_name: str | None = None
) -> Callable[[State, Batch], dict[str, Any]]:
  """Makes `step(state, batch) -> sums`: the task's additive metrics over all devices.

  Sums of several batches add up to the sums of their union; `task.summarize` turns them into
  figures. Padding (mask 0) counts for nothing.
  """

  def step(state: State, batch: Batch) -> dict[str, Any]:
    key = jax.random.key(0)  # nothing is drawn in evaluation
    images = preprocess(key, batch['image'], batch['id'], train=False)
    batch = {**batch, 'image': images}
    sums = task.metrics(task.predict(state.variables, batch), batch)
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)

  return step
