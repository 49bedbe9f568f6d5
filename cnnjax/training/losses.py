"""Losses of classification: one number per example, unreduced, float32 whatever the logits' type.

Labels are class indices `[N]`, or a distribution (one-hot, soft, multi-hot) over classes `[N, C]`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

Loss = Callable[..., Array]


def softmax_cross_entropy(logits: Array, labels: Array, *, label_smoothing: float = 0.0) -> Array:
  """Cross-entropy between the labels and the softmax of the logits, in nats.

  Args:
    logits: `[N, C]`.
    labels: integer `[N]`, or `[N, C]`. An index outside [0, C) gives NaN, so that training stops
      instead of learning from it.
    label_smoothing: weight of the uniform distribution mixed into the labels: (1 - e) y + e / C,
      https://arxiv.org/abs/1512.00567 section 7; a number, or a traced one.

  Returns:
    `[N]` float32.
  """
  logits = logits.astype(jnp.float32)
  if labels.ndim == 1 and not _smooths(label_smoothing):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  else:
    losses = optax.softmax_cross_entropy(logits, _targets(logits, labels, label_smoothing))
  return _nan_where_invalid(losses, logits, labels)


def sigmoid_cross_entropy(logits: Array, labels: Array, *, label_smoothing: float = 0.0) -> Array:
  """Binary cross-entropies of independent classes, summed over the classes, in nats.

  Args:
    logits: `[N, C]`.
    labels: integer `[N]`, taken as one class against the rest, or `[N, C]` (multi-hot). An index
      outside [0, C) gives NaN.
    label_smoothing: as in `softmax_cross_entropy`: (1 - e) y + e / C.

  Returns:
    `[N]` float32.
  """
  logits = logits.astype(jnp.float32)
  targets = _targets(logits, labels, label_smoothing)
  losses = optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)
  return _nan_where_invalid(losses, logits, labels)


LOSSES: dict[str, Loss] = {
  'softmax_cross_entropy': softmax_cross_entropy,
  'sigmoid_cross_entropy': sigmoid_cross_entropy,
}


def _targets(logits: Array, labels: Array, label_smoothing: float) -> Array:
  if labels.ndim == 1:
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
  else:
    targets = labels.astype(jnp.float32)
  return optax.smooth_labels(targets, label_smoothing) if _smooths(label_smoothing) else targets


def _smooths(label_smoothing: Any) -> bool:
  return isinstance(label_smoothing, jax.Array) or bool(label_smoothing)


def _nan_where_invalid(losses: Array, logits: Array, labels: Array) -> Array:
  if labels.ndim != 1:
    return losses
  return jnp.where((labels >= 0) & (labels < logits.shape[-1]), losses, jnp.nan)
