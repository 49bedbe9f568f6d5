"""What a classifier gets right and how sure it is of it, as pure functions of logits and labels.

`predictions` keeps four numbers of an example, so that test sets of any size go through in batches;
the others are NumPy on what all batches gave. As in `training.metrics`, an example with a logit
that isn't finite predicts nothing: it is a mistake, and in no confusion matrix and no bin.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cnnjax.tasks import classification
from cnnjax.training import losses, metrics


class Predictions(NamedTuple):
  """One entry for each example.

  Attributes:
    label: true class, int32 [N].
    predicted: class of the largest logit, the lowest of equals; -1 where a logit isn't finite.
    confidence: probability of that class, float32 [N].
    loss: in nats, float32 [N].
  """

  label: Any
  predicted: Any
  confidence: Any
  loss: Any


class Classes(NamedTuple):
  """One entry for each class, NaN where there is nothing to divide by.

  Attributes:
    support: examples of the class, int64 [C].
    precision: share of what is taken for the class that is of it.
    recall: share of the class that is recognised.
  """

  support: np.ndarray
  precision: np.ndarray
  recall: np.ndarray


class Calibration(NamedTuple):
  """Bin m of M holds confidences in (m / M, (m + 1) / M].

  Attributes:
    count: examples in each bin, int64 [M].
    confidence: their mean confidence [M], NaN in an empty bin.
    accuracy: the share of them that are right [M], NaN in an empty bin.
    error: expected calibration error: the mean of |accuracy - confidence| over bins, weighted by
      their counts; NaN without examples.
  """

  count: np.ndarray
  confidence: np.ndarray
  accuracy: np.ndarray
  error: float


def predictions(logits: Any, labels: Any, *, loss: str = 'softmax_cross_entropy') -> Predictions:
  """What is kept of each example; works under `jax.jit`.

  Args:
    logits: [N, C].
    labels: integer [N].
    loss: of the task, one of `training.losses.LOSSES`; it also says how logits become
      probabilities (softmax or sigmoid).
  """
  logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
  valid = jnp.isfinite(logits).all(-1)
  return Predictions(
    labels,
    jnp.where(valid, logits.argmax(-1), -1).astype(jnp.int32),
    classification.ACTIVATIONS[loss](logits).max(-1),
    losses.LOSSES[loss](logits, labels),
  )


def confusion(found: Predictions, num_classes: int) -> np.ndarray:
  """How often class i (row) was taken for class j (column): int64 [C, C]."""
  label, predicted = (np.asarray(x)[np.asarray(found.predicted) >= 0] for x in found[:2])
  cells = label.astype(np.int64) * num_classes + predicted
  return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class(found: Predictions, num_classes: int) -> Classes:
  """Support, precision and recall of each class."""
  matrix = confusion(found, num_classes)
  support = np.bincount(found.label, minlength=num_classes)
  right = np.diag(matrix)
  return Classes(support, _share(right, matrix.sum(0)), _share(right, support))


def calibration(found: Predictions, bins: int = metrics.BINS) -> Calibration:
  """Whether examples of which the network is so sure are right so often.

  Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599,
  equations 1 to 3.

  Args:
    found: of `predictions`.
    bins: M, of equal width.
  """
  valid = np.asarray(found.predicted) >= 0
  label, predicted, confidence = (np.asarray(x)[valid] for x in found[:3])
  place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
  count, sure, right = (
    np.bincount(place, weights, minlength=bins)
    for weights in (None, confidence, predicted == label)
  )
  error = np.abs(right - sure).sum() / count.sum() if count.any() else np.nan
  return Calibration(count, _share(sure, count), _share(right, count), float(error))


def worst(found: Predictions, count: int) -> np.ndarray:
  """Indices of at most `count` mistakes, of the highest loss first (equals as they come)."""
  wrong = np.flatnonzero(np.asarray(found.predicted) != np.asarray(found.label))
  loss = np.nan_to_num(np.asarray(found.loss)[wrong], nan=np.inf)
  return wrong[np.argsort(-loss, kind='stable')[:count]]


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
