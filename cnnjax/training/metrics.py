"""Classification metrics as sums over examples, so that they add over devices and batches.

A prediction is the largest logit; equal logits rank by index, lowest first, as `argmax` and
`lax.top_k` do (so constant logits are right only on class 0, and in top-5 on classes 0 to 4).
An example with a logit that isn't finite counts, and counts as wrong.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

BINS = 15  # of the calibration error, as in Guo et al.
MAX_CONFUSION_CLASSES = 100  # beyond, a matrix per evaluation costs more than it tells

Batch = dict[str, Array]
Sums = dict[str, Any]


def training_sums(losses: Array, logits: Array, batch: Batch) -> Sums:
  """The cheap sums, for every training step.

  Args:
    losses: `[N]`.
    logits: `[N, C]`.
    batch: has `label`, integer `[N]`, or `[N, C]` where the largest entry is the true class; and
      `mask` `[N]`: an example counts where it is positive. Without a mask all count.

  Returns:
    Scalars: `loss` float32, `count` and `correct` int32, and with `id` in the batch `data` uint32:
    a checksum of which examples count, whatever their order.
  """
  true, keep = _true_and_keep(batch)
  correct = keep & (_rank(logits, true) == 0)
  sums = {
    'loss': jnp.where(keep, losses, 0.0).sum(dtype=jnp.float32),
    'count': keep.sum(dtype=jnp.int32),
    'correct': correct.sum(dtype=jnp.int32),
  }
  if 'id' in batch:
    sums['data'] = jnp.where(keep, _hash(batch['id']), 0).sum(dtype=jnp.uint32)
  return sums


def _hash(ids: Array) -> Array:
  """32 bits that mix those of each id, with the constants of https://nullprogram.com/blog/2018/07/31"""
  x = ids.astype(jnp.uint32) + 1
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def evaluation_sums(
  losses: Array,
  logits: Array,
  batch: Batch,
  *,
  activation: Callable[[Array], Array] = jax.nn.softmax,
) -> Sums:
  """All sums, for evaluation.

  Args:
    losses: `[N]`.
    logits: `[N, C]`.
    batch: as in `training_sums`.
    activation: logits to probabilities; the largest one is the prediction's confidence.

  Returns:
    Those of `training_sums` and, in int32 where not said otherwise, `top5`; `class_count` and
    `class_correct` `[C]`; `confusion` `[C, C]` (rows: true class; up to MAX_CONFUSION_CLASSES
    classes); `bin_count`, `bin_correct` and `bin_confidence` (float32) `[BINS]`. The confusion
    matrix and the bins leave out examples whose logits aren't finite: these predict nothing.
  """
  logits = logits.astype(jnp.float32)
  num_classes = logits.shape[-1]
  true, keep = _true_and_keep(batch)
  predicted, rank = jnp.argmax(logits, axis=-1), _rank(logits, true)
  correct = keep & (rank == 0)
  valid = keep & jnp.isfinite(logits).all(axis=-1)

  # Bin m of M holds confidences in (m / M, (m + 1) / M].
  confidence = jnp.where(valid, activation(logits).max(axis=-1), 0.0)
  bins = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
  in_bin = (bins[:, None] == jnp.arange(BINS)[None, :]) & valid[:, None]  # [N, BINS]

  per_class = jnp.zeros(num_classes, jnp.int32)
  sums = training_sums(losses, logits, batch) | {
    'top5': (keep & (rank < min(5, num_classes))).sum(dtype=jnp.int32),
    'class_count': per_class.at[true].add(keep.astype(jnp.int32)),
    'class_correct': per_class.at[true].add(correct.astype(jnp.int32)),
    'bin_count': in_bin.sum(axis=0, dtype=jnp.int32),
    'bin_correct': (in_bin & correct[:, None]).sum(axis=0, dtype=jnp.int32),
    'bin_confidence': jnp.where(in_bin, confidence[:, None], 0.0).sum(axis=0),
  }
  if num_classes <= MAX_CONFUSION_CLASSES:
    empty = jnp.zeros((num_classes, num_classes), jnp.int32)
    sums['confusion'] = empty.at[true, predicted].add(valid.astype(jnp.int32))
  return sums


def accumulate(total: Sums | None, sums: Sums) -> Sums:
  """Adds one batch's sums to the total on the host, in float64 and int64; None starts a total."""
  wide = {
    name: np.asarray(value, np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64)
    for name, value in jax.device_get(sums).items()
  }
  return wide if total is None else {name: total[name] + value for name, value in wide.items()}


def summarize(sums: Sums) -> dict[str, Any]:
  """Means from sums, on the host in float64, as plain numbers and lists (for JSON).

  Args:
    sums: of `training_sums` or `evaluation_sums`, of one batch or accumulated.

  Returns:
    `loss`, `accuracy` and, from `evaluation_sums`, `top5_accuracy`, `expected_calibration_error`
    (https://arxiv.org/abs/1706.04599 equation 3; None where no logits are finite),
    `per_class_accuracy` (None for a class without examples) and `confusion_matrix`.

  Raises:
    ValueError: no example was counted.
  """
  sums = accumulate(None, sums)
  count = int(sums['count'])
  if not count:
    raise ValueError('no examples to summarize: the count is 0')
  summary: dict[str, Any] = {
    'loss': float(sums['loss'] / count),
    'accuracy': float(sums['correct'] / count),
  }
  if 'top5' in sums:
    binned = int(sums['bin_count'].sum())
    gap = float(np.abs(sums['bin_correct'] - sums['bin_confidence']).sum())
    summary['top5_accuracy'] = float(sums['top5'] / count)
    summary['expected_calibration_error'] = gap / binned if binned else None
    summary['per_class_accuracy'] = [
      float(correct / n) if n else None
      for correct, n in zip(sums['class_correct'], sums['class_count'], strict=True)
    ]
  if 'confusion' in sums:
    summary['confusion_matrix'] = sums['confusion'].tolist()
  return summary


def _true_and_keep(batch: Batch) -> tuple[Array, Array]:
  """The true classes [N], and where an example counts [N]."""
  labels = batch['label']
  true = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
  return true, batch['mask'] > 0 if 'mask' in batch else jnp.ones(true.shape, bool)


def _rank(logits: Array, true: Array) -> Array:
  """Place of the true class among the logits, 0 the best; C where a logit isn't finite."""
  num_classes = logits.shape[-1]
  target = jnp.take_along_axis(logits, true[:, None], axis=-1)  # [N, 1]
  earlier = jnp.arange(num_classes)[None, :] < true[:, None]
  rank = ((logits > target) | ((logits == target) & earlier)).sum(axis=-1, dtype=jnp.int32)
  return jnp.where(jnp.isfinite(logits).all(axis=-1), rank, num_classes)
