"""A finished run as pure functions: what its working directory holds, ready for analysis."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax import models
from cnnjax.data import preprocess
from cnnjax.errors import UserError
from cnnjax.tasks import Task, classification
from cnnjax.training import checkpoint, workdir


class Trained(NamedTuple):
  """A network as evaluation sees it.

  Attributes:
    config: validated.
    description: the data's: `class_names`, `train_examples`, `test_examples`, `mean`, `std`.
    step: of the checkpoint.
    model: `model.apply(variables, images, train=False) -> logits`.
    variables: the moving averages, where the run kept them, else the parameters and running
      statistics (those that training left: `config.eval_statistics` isn't repeated).
    preprocess: images `[N, H, W, C]` uint8 to the normalised floats that the model takes.
    task: `task.predict(variables, {'image': images})`, with the run's own views of each image.
  """

  config: config_lib.Config
  description: dict[str, Any]
  step: int
  model: nn.Module
  variables: dict[str, Any]
  preprocess: Callable[[Any], jax.Array]
  task: Task


def load(directory: str, step: int | None = None) -> Trained:
  """Reads a run; nothing is written and no data is read.

  Args:
    directory: the run's working directory.
    step: which checkpoint; the newest if None.

  Raises:
    UserError: the directory holds no run, or there is no such checkpoint, or it is damaged.
  """
  stored, description = (workdir.read_json(directory, f'{n}.json') for n in ('config', 'data'))
  if stored is None or description is None:
    raise UserError(
      f'--workdir={directory!r} holds no run: config.json and data.json must be there'
    )
  config = config_lib.validate(ConfigDict(stored))
  if not os.path.isdir(os.path.join(directory, 'checkpoints')):
    raise UserError(f'--workdir={directory!r} holds no checkpoints')
  with checkpoint.Checkpoints(directory, read_only=True) as checkpoints:
    flat = checkpoints.read(step)
  state = flax.traverse_util.unflatten_dict(flat, sep='/')
  parts = state.get('ema') or state
  options = {k: v for k, v in config.model.items() if k != 'name'}
  model = models.create(
    config.model.name,
    num_classes=len(description['class_names']),
    dtype=config.dtype,
    **options,
  )
  normalise = preprocess.make_preprocess(None, description['mean'], description['std'])
  return Trained(
    config,
    description,
    int(state['step']),
    model,
    {'params': parts['params'], 'batch_stats': parts.get('batch_stats', {})},
    lambda images: normalise(None, images, None, train=False),
    classification.classification(
      model,
      loss=config.loss.name,
      label_smoothing=config.loss.label_smoothing,
      mirror=config.eval_mirror,
      shift=config.eval_shift,
    ),
  )
