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
  micro_batches: int = 1,
  sam_radius: float = 0.0,
  ema_decay: float = 0.0,
) -> Callable[[State, Batch], tuple[State, Metrics]]:
  """Makes `step(state, batch) -> (state, metrics)`, one update on the cost J.

  J is the mean of the per-example losses over the examples of all devices whose mask is 1. All
  randomness is `fold_in(fold_in(key, step), id)`, so neither the number of devices nor where an
  example lies in the batch changes what is drawn for it.

  Numbers and the key may be traced: those of a population's members, under `vmap`.

  Args:
    task: gives the per-example losses.
    optimizer: turns gradients into updates.
    key: the run's key.
    preprocess: `(key, images, ids, train)`, uint8 images to augmented, normalised floats; where
      batches have `epoch`, called with `visits` besides.
    mix: of `data.mix`, applied to the preprocessed batch.
    axis_name: the mapped axis of devices, or None on one device.
    micro_batches: k: the gradient is summed over k parts of the batch, one after the other, in the
      memory of one. Row r of the batch is in part r % k, whatever the number of devices. Without
      batch normalisation that is the same update; with it, each part is normalised by its own
      statistics, and the running ones are updated k times.
    sam_radius: rho of sharpness-aware minimisation (Foret et al. 2021, arXiv:2010.01412, equation
      2): the update takes the gradient at params + rho g / |g|, g being the whole batch's at
      params. Loss and running statistics are those at params. 0: off.
    ema_decay: d of the state's moving average a <- a + (1 - min(d, (1 + t) / (10 + t))) (x - a)
      over parameters and running statistics x after update t, if the state has one.

  Returns:
    A pure function. Its metrics are sums over all devices (`loss`, `correct`, `count`) and the
    global `gradient_norm` before clipping.
  """

  def over_devices(tree):
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)

  def step(state: State, batch: Batch) -> tuple[State, Metrics]:
    step_key = jax.random.fold_in(key, state.step)
    augment_key, model_key = jax.random.split(step_key)
    batch = _augment(preprocess, key, augment_key, batch)
    if mix is not None:
      batch = mix(jax.random.fold_in(step_key, 2), batch, axis_name=axis_name)
    count = jnp.maximum(over_devices(batch['mask'].sum()), 1.0)

    def share(params, batch_stats, part):
      """What some of the examples add to J's gradient; new running statistics; sums."""

      def cost(params):
        variables = {'params': params, 'batch_stats': batch_stats}
        losses, outputs = task.loss(variables, part, key=model_key, train=True)
        return jnp.where(part['mask'] > 0, losses, 0.0).sum() / count, (losses, outputs)

      gradients, (losses, outputs) = jax.grad(cost, has_aux=True)(params)
      sums = metrics_lib.training_sums(losses, outputs.logits, part)
      return gradients, outputs.batch_stats, sums

    def differentiate(params):
      if micro_batches == 1:
        gradients, batch_stats, sums = share(params, state.batch_stats, batch)
        return over_devices(gradients), batch_stats, over_devices(sums)
      parts = jax.tree.map(lambda x: _parts(x, micro_batches), batch)
      first = jax.tree.map(lambda x: x[0], parts)
      shapes, _, sums = jax.eval_shape(share, params, state.batch_stats, first)
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shapes, sums))

      def add(carry, part):
        total, batch_stats = carry
        gradients, batch_stats, sums = share(params, batch_stats, part)
        return (jax.tree.map(jnp.add, total, (gradients, sums)), batch_stats), None

      ((gradients, sums), batch_stats), _ = jax.lax.scan(add, (zeros, state.batch_stats), parts)
      return over_devices(gradients), batch_stats, over_devices(sums)

    gradients, batch_stats, metrics = differentiate(state.params)
    if isinstance(sam_radius, jax.Array) or sam_radius:
      scale = sam_radius / jnp.maximum(optax.tree.norm(gradients), 1e-12)
      shifted = jax.tree.map(lambda x, g: x + scale * g, state.params, gradients)
      gradients, _, _ = differentiate(shifted)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    metrics['gradient_norm'] = optax.tree.norm(gradients)
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
    )
    if state.ema is not None:
      keep = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
      average = jax.tree.map(lambda a, x: a + (1 - keep) * (x - a), state.ema, state.variables)
      state = dataclasses.replace(state, ema=average)
    return state, metrics

  return step


def _parts(x: jax.Array, number: int) -> jax.Array:
  """[N, ...] to [number, N / number, ...]; row r goes to part r % number."""
  return x.reshape(-1, number, *x.shape[1:]).swapaxes(0, 1)


def make_statistics_step(
  task: Task, *, key: jax.Array, preprocess: Preprocess, axis_name: str | None = None
) -> Callable[[State, Batch], Any]:
  """Makes `step(state, batch) -> batch_stats`: those of one training batch, augmented as ever.

  They are taken with the variables that are evaluated (the moving average, if there is one).

  Args:
    task: of a model whose batch normalisation keeps nothing of the old statistics (momentum 0).
    key: the run's key.
    preprocess: as in `make_train_step`.
    axis_name: as in `make_train_step`.
  """

  def step(state: State, batch: Batch) -> Any:
    augment_key, model_key = jax.random.split(jax.random.fold_in(key, state.step))
    batch = _augment(preprocess, key, augment_key, batch)
    _, outputs = task.loss(state.evaluated, batch, key=model_key, train=True)
    return outputs.batch_stats

  return step


def make_features_step(
  task: Task, *, preprocess: Preprocess, axis_name: str | None = None
) -> Callable[[State, Batch], tuple[jax.Array, jax.Array, jax.Array]]:
  """Makes `step(state, batch) -> (features [N, D], label [N], mask [N])` over all devices."""

  def step(state: State, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    assert task.features is not None
    images = preprocess(jax.random.key(0), batch['image'], batch['id'], train=False)
    features = task.features(state.evaluated, {**batch, 'image': images})
    found = features, batch['label'], batch['mask']
    return found if axis_name is None else jax.lax.all_gather(found, axis_name, tiled=True)

  return step


def _augment(
  preprocess: Preprocess, run_key: jax.Array, augment_key: jax.Array, batch: Batch
) -> Batch:
  shown = {'visits': _visits(run_key, batch)} if 'epoch' in batch else {}
  images = preprocess(augment_key, batch['image'], batch['id'], train=True, **shown)
  return {**batch, 'image': images}


def _visits(key: jax.Array, batch: Batch) -> jax.Array:
  """How often each example was shown before, plus a 0 or 1 drawn once for it: int32 [N]."""
  run_key = jax.random.fold_in(key, _RUN)
  draw = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(run_key, i)))
  return batch['epoch'] + draw(batch['id'])


def make_eval_step(
  task: Task, *, preprocess: Preprocess, axis_name: str | None = None
) -> Callable[[State, Batch], dict[str, Any]]:
  """Makes `step(state, batch) -> sums`: the task's additive metrics over all devices.

  The variables are the moving averages, where the state has them. Sums of several batches add up
  to the sums of their union; `task.summarize` turns them into figures. Padding (mask 0) counts
  for nothing.
  """

  def step(state: State, batch: Batch) -> dict[str, Any]:
    key = jax.random.key(0)  # nothing is drawn in evaluation
    images = preprocess(key, batch['image'], batch['id'], train=False)
    batch = {**batch, 'image': images}
    sums = task.metrics(task.predict(state.evaluated, batch), batch)
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)

  return step
