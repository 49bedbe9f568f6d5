"""What is found in a finished run, for the report and its `--json`."""

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import numpy as np

from cnnjax import analysis, ops
from cnnjax.analysis import attribution, evaluation, ledger
from cnnjax.analysis.evaluation import Predictions
from cnnjax.data import pipeline, sources
from cnnjax.errors import UserError
from cnnjax.training import experiment, trained, workdir, writers

MISTAKES = 12  # shown
_BATCH = 64  # examples


class Mistake(NamedTuple):
  """An example that the network gets wrong.

  Attributes:
    name: its file, or 'example 17'.
    label, predicted: names of classes.
    confidence: probability of the predicted class.
    loss: in nats.
    image: uint8 [H, W, C].
    heat: where the evidence for the predicted class is, [H, W], nonnegative; None without maps.
  """

  name: str
  label: str
  predicted: str
  confidence: float
  loss: float
  image: np.ndarray
  heat: np.ndarray | None


class Findings(NamedTuple):
  """All that the report tells.

  Attributes:
    directory: the run's.
    run: read back.
    rows: of metrics.jsonl.
    environment: of environment.json.
    count: parameters and MACs.
    found: what the network says of each test example.
    mistakes: the worst first.
    image: uint8 [H, W, C], an example of the test set.
    kernel: name and weights [kh, kw, C, F] of the first layer; None where it isn't a convolution.
    entries: of the ledger.
    fields: of every module.
  """

  directory: str
  run: trained.Trained
  rows: Sequence[dict[str, Any]]
  environment: dict[str, Any]
  count: analysis.Count
  found: Predictions
  mistakes: Sequence[Mistake]
  image: np.ndarray
  kernel: tuple[str, np.ndarray] | None
  entries: Sequence[ledger.Entry]
  fields: Sequence[analysis.Field]


def test_set(run: trained.Trained) -> sources.Source:
  """The test split that the run was evaluated on.

  Raises:
    UserError: the data isn't there, or has changed since.
  """
  source = experiment.source(run.config, 'test')
  now = {'class_names': list(source.class_names), 'test_examples': len(source)}
  for key, value in now.items():
    if run.description[key] != value:
      raise UserError(
        f'config.data.name={run.config.data.name!r} has changed since the run: {key} was'
        f' {run.description[key]!r}, is {value!r}'
      )
  return source


def evaluate(run: trained.Trained, source: sources.Source) -> tuple[Predictions, np.ndarray]:
  """What the network says of every example, read in batches.

  Returns:
    The predictions, and the examples' numbers [N]: images that can't be read are left out.
  """

  @jax.jit
  def look(variables: Any, images: jax.Array, labels: jax.Array) -> Predictions:
    with ops.using(run.config.ops):
      logits = run.task.predict(variables, {'image': run.preprocess(images)})
    return evaluation.predictions(logits, labels, loss=run.config.loss.name)

  parts, ids = [], []
  for batch in pipeline.eval_batches(source, batch_size=min(_BATCH, len(source))):
    keep = batch['mask'] > 0
    found = jax.device_get(look(run.variables, batch['image'], batch['label']))
    parts.append([x[keep] for x in found])
    ids.append(batch['id'][keep])
  return Predictions(*map(np.concatenate, zip(*parts, strict=True))), np.concatenate(ids)


def summary(directory: str) -> dict[str, Any]:
  """The figures of a run on its test set as JSON holds them: None is what isn't a finite number.

  Raises:
    UserError: no run is there, or its data isn't.
  """
  run = trained.load(directory)
  found, ids = evaluate(run, test_set(run))
  names = run.description['class_names']
  classes = evaluation.per_class(found, len(names))
  calibration = evaluation.calibration(found)
  number = lambda x: float(x) if np.isfinite(x) else None
  return {
    'model': run.config.model.name,
    'data': run.config.data.name,
    'step': run.step,
    'examples': len(ids),
    'accuracy': float(np.mean(found.predicted == found.label)),
    'loss': number(np.mean(found.loss, dtype=np.float64)),
    'expected_calibration_error': number(calibration.error),
    'calibration': [
      {'examples': int(n), 'confidence': number(sure), 'accuracy': number(right)}
      for n, sure, right in zip(*calibration[:3], strict=True)
    ],
    'classes': [
      {'name': name, 'examples': int(n), 'precision': number(p), 'recall': number(r)}
      for name, n, p, r in zip(names, *classes, strict=True)
    ],
    'confusion_matrix': evaluation.confusion(found, len(names)).tolist(),
    'mistakes': [
      {
        'id': int(ids[i]),
        'label': names[found.label[i]],
        'predicted': names[found.predicted[i]] if found.predicted[i] >= 0 else None,
        'confidence': number(found.confidence[i]),
        'loss': number(found.loss[i]),
      }
      for i in evaluation.worst(found, MISTAKES)
    ],
  }


def collect(directory: str) -> Findings:
  """Reads a run and its test set, evaluates the network and looks into it.

  Raises:
    UserError: no run is there, or its data isn't.
  """
  run = trained.load(directory)
  source = test_set(run)
  found, ids = evaluate(run, source)
  image = source[int(ids[0])]['image']
  entries, fields = ledger.entries(run.model, image.shape), analysis.fields(run.model, image.shape)
  return Findings(
    directory=os.path.abspath(directory),
    run=run,
    rows=writers.read(directory),
    environment=workdir.read_json(directory, 'environment.json') or {},
    count=analysis.count(run.model, image.shape),
    found=found,
    mistakes=_mistakes(run, source, found, ids),
    image=image,
    kernel=_kernel(run, entries, image.shape[-1]),
    entries=entries,
    fields=fields,
  )


def _mistakes(
  run: trained.Trained, source: sources.Source, found: Predictions, ids: np.ndarray
) -> list[Mistake]:
  chosen = evaluation.worst(found, MISTAKES)
  if not len(chosen):
    return []
  images = np.stack([source[int(i)]['image'] for i in ids[chosen]])
  classes = np.maximum(found.predicted[chosen], 0)
  explain = jax.jit(functools.partial(attribution.grad_cam, run.model))
  with ops.using(run.config.ops):
    try:
      heats = list(np.nan_to_num(explain(run.variables, run.preprocess(images), classes)))
    except UserError:  # no layer's output is a map
      heats = [None] * len(chosen)
  names = [*run.description['class_names'], 'nothing: logits that are not finite']
  return [
    Mistake(
      sources.describe(source, int(ids[i])),
      names[found.label[i]],
      names[found.predicted[i]],
      float(found.confidence[i]),
      float(found.loss[i]),
      image,
      heat,
    )
    for i, image, heat in zip(chosen, images, heats, strict=True)
  ]


def _kernel(
  run: trained.Trained, entries: Sequence[ledger.Entry], channels: int
) -> tuple[str, np.ndarray] | None:
  """The kernel through which the image goes first, if it is one of a convolution."""
  flat: dict[str, Any] = flax.traverse_util.flatten_dict(run.variables['params'], sep='/')
  for entry in entries[:1]:
    kernel = flat.get(f'{entry.name}/kernel')
    if kernel is not None and kernel.shape == entry.kernel and entry.kernel[2:3] == (channels,):
      return entry.name, np.asarray(kernel)
  return None
