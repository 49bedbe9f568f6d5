"""Tasks: what a model is trained for, as a tuple of pure functions that the one loop runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

Batch = dict[str, Array]
Variables = dict[str, Any]  # 'params' and, with batch normalisation, 'batch_stats'


class Outputs(NamedTuple):
  """What a forward pass gives besides losses."""

  logits: Array
  batch_stats: Any  # as they go in, or updated in training; {} where the model has none


class Task(NamedTuple):
  """Pure functions over one batch, whose `image` is already normalised.

  Attributes:
    init: `(key, batch) -> variables`; the batch's shapes are enough.
    loss: `(variables, batch, *, key=None, train) -> (losses [N], Outputs)`; losses are per example
      and take no account of the mask.
    metrics: `(logits, batch) -> sums` that add over devices and batches, without masked examples.
    predict: `(variables, batch) -> logits`; needs no labels.
    summarize: `sums -> dict` of numbers and lists, on the host.
    features: `(variables, batch) -> [N, D]`, what the model makes of the images before its head.
  """

  init: Callable[[Array, Batch], Variables]
  loss: Callable[..., tuple[Array, Outputs]]
  metrics: Callable[[Array, Batch], dict[str, Array]]
  predict: Callable[[Variables, Batch], Array]
  summarize: Callable[[dict[str, Any]], dict[str, Any]]
  features: Callable[[Variables, Batch], Array] | None = None
