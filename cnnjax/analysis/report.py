"""A run's findings as one HTML page that needs nothing else: no network, no script.

Whatever comes from the run (names of classes, paths, config) is escaped where it enters the page,
and the page's own policy forbids its browser to load or run anything.
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cnnjax import config as config_lib
from cnnjax import document
from cnnjax.analysis import evaluation, plots
from cnnjax.analysis.findings import Findings
from cnnjax.document import escape


def render(findings: Findings) -> str:
  """The page, from `findings.collect`; a pure function."""
  run = findings.run
  title = f'{run.config.model.name} on {run.config.data.name}'
  sections = {
    'Run': _run(findings),
    'Curves': _curves(findings),
    'Classes': _classes(findings),
    'Calibration': _calibration(findings),
    'Worst mistakes': _mistakes(findings),
    'First layer': _filters(findings),
    'Receptive fields': _fields(findings),
    'Ledger': _ledger(findings),
  }
  return document.page(title, sections, kind='report')


def _run(findings: Findings) -> str:
  run, found, count = findings.run, findings.found, findings.count
  rows = [row for row in findings.rows if row['split'] == 'test']
  total, right = len(found.label), int((found.predicted == found.label).sum())
  error = evaluation.calibration(found).error
  figures = {
    'test accuracy': _number(right / total),
    'test loss, nats': _number(np.mean(found.loss, dtype=np.float64)),
    'calibration error': _number(error),
    'parameters': f'{count.parameters:,}',
    'MACs': f'{count.macs:,}',
  }
  big = ''.join(
    f'<div><dt>{key}</dt><dd>{escape(value)}</dd></div>' for key, value in figures.items()
  )
  facts = {
    'model': run.config.model.name,
    'data': f'{run.config.data.name}: {run.description["train_examples"]:,} training and'
    f' {run.description["test_examples"]:,} test examples, {len(run.description["class_names"]):,}'
    f' classes, images {_shape(findings.image.shape)}',
    'checkpoint': f'step {run.step:,}, evaluated for this page on {total:,} test examples:'
    f' {right:,} right',
    'workdir': findings.directory,
  }
  if rows:
    last = rows[-1]
    facts['metrics.jsonl'] = ', '.join(
      [f'step {last["step"]:,}']
      + [f'test {key} {_number(last[key])}' for key in ('accuracy', 'loss') if key in last]
    )
  if run.config.eval_statistics:
    facts['note'] = (
      'training measured its batch statistics anew before it evaluated (eval_statistics);'
      ' this page uses those of the checkpoint'
    )
  tables = {
    'Config': config_lib.leaves(run.config),
    'Environment of the last start': config_lib.leaves(findings.environment),
  }
  details = ''.join(
    f'<details><summary>{name}</summary>'
    f'{document.table(name, (), _shown(leaves), words=True)}</details>\n'
    for name, leaves in tables.items()
  )
  about = document.table('What was run', (), facts.items(), words=True)
  return f'<dl class="big">{big}</dl>\n{about}{details}'


def _shown(leaves: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
  return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in leaves]


def _curves(findings: Findings) -> str:
  rows = findings.rows
  if not rows:
    return '<p>metrics.jsonl holds no rows.</p>'
  drawn = (
    document.figure(
      plots.curves(rows, 'loss', 'loss, nats', log=True),
      'Loss over training steps. Of training, means since the row before, of augmented images and'
      ' with what regularises; of the test set, plain cross-entropy.',
    ),
    document.figure(plots.curves(rows, 'accuracy', 'accuracy'), 'Accuracy over training steps.'),
    document.figure(
      plots.curves(rows, 'learning_rate', 'learning rate', zero=True),
      'Learning rate over training steps.',
    ),
  )
  return f'<div class="row">{"".join(drawn)}</div>'


def _classes(findings: Findings) -> str:
  names, found = findings.run.description['class_names'], findings.found
  matrix = evaluation.confusion(found, len(names))
  classes = evaluation.per_class(found, len(names))
  wrong = matrix - np.diag(np.diag(matrix))
  rows = []
  for i, name in enumerate(names):
    j = int(wrong[i].argmax())
    taken = f'{names[j]} ({wrong[i, j]})' if wrong[i, j] else ''
    rows.append(
      (
        name,
        f'{classes.support[i]:,}',
        _number(classes.precision[i]),
        _number(classes.recall[i]),
        taken,
      )
    )
  picture = document.figure(
    plots.confusion(matrix, names),
    'Confusion matrix of the test set: examples of each true class (row) by predicted class'
    ' (column). The colour is the share of the row.',
  )
  head = ('class', 'examples', 'precision', 'recall', 'most often taken for')
  table = document.table('Each class of the test set', head, rows)
  return f'<div class="pair">{picture}{table}</div>'


def _calibration(findings: Findings) -> str:
  found = evaluation.calibration(findings.found)
  picture = document.figure(
    plots.reliability(found),
    f'Reliability diagram: accuracy of the test examples by the confidence of the prediction, in'
    f' {len(found.count)} bins, and how many there are in each. Below the diagonal the network is'
    ' surer than it is right.',
  )
  filled = found.count > 0
  sure, right = (
    np.average(x[filled], weights=found.count[filled]) if filled.any() else math.nan
    for x in (found.confidence, found.accuracy)
  )
  text = (
    f'<p>Expected calibration error {_number(found.error)}: so far are accuracy and confidence'
    f' apart, averaged over the bins by their examples (Guo et al. 2017). The mean confidence is'
    f' {_number(sure)}, the accuracy {_number(right)}.</p>'
  )
  return f'{text}<div class="row">{picture}</div>'


def _mistakes(findings: Findings) -> str:
  mistakes = findings.mistakes
  if not mistakes:
    return '<p>There are none: every test example is classified rightly.</p>'
  wrong = int((findings.found.predicted != findings.found.label).sum())
  text = f'{len(mistakes)} of {wrong:,} mistakes, the highest loss first'
  if mistakes[0].heat is None:
    text += '. There is no Grad-CAM beside the images: no layer of this model gives a map.'
  else:
    text += (
      '; beside each image its Grad-CAM (Selvaraju et al. 2017) at the last layer that gives a map:'
      ' bright is where the evidence for the predicted class is, on a scale of its own.'
    )
  shown = []
  for mistake in mistakes:
    alt = f'{mistake.name}, a {mistake.label} taken for {mistake.predicted}'
    pictures = _image(mistake.image, alt)
    if mistake.heat is not None:
      pictures += _image(plots.overlay(mistake.image, mistake.heat), f'Grad-CAM of {alt}')
    caption = (
      f'{escape(mistake.name)}: <strong>{escape(mistake.label)}</strong> taken for'
      f' <strong>{escape(mistake.predicted)}</strong>, confidence {_number(mistake.confidence)},'
      f' loss {_number(mistake.loss)}'
    )
    shown.append(f'<figure><div>{pictures}</div><figcaption>{caption}</figcaption></figure>')
  return f'<p>{text}</p>\n<div class="mistakes">{"".join(shown)}</div>'


def _filters(findings: Findings) -> str:
  if findings.kernel is None:
    return '<p>The first layer is no convolution with a kernel over the image.</p>'
  name, kernel = findings.kernel
  kh, kw, channels, number = kernel.shape
  caption = f'The {number} filters of {name}, {kh} x {kw} over {channels} channel'
  caption += 's' if channels > 1 else ''
  if number > plots.FILTERS:
    caption += f', the first {plots.FILTERS} of them'
  if channels == 3:
    caption += '. Red, green and blue are its weights for these channels; gray is 0'
  elif channels > 1:
    caption += ', the mean over which is shown'
  caption += '. One scale for all.'
  return f'<div class="row">{document.figure(plots.filters(kernel), caption)}</div>'


def _fields(findings: Findings) -> str:
  maps = [
    field for field in findings.fields
    if field.name and len(field.output) == 4 and all(field.stride)
  ]  # fmt: skip
  rows = [
    (
      field.name or 'the whole model',
      _shape(field.output[1:]),
      _shape(field.size),
      _shape(field.stride) if any(field.stride) else '',
      _shape(field.offset),
    )
    for field in findings.fields
  ]
  head = ('module', 'output', 'sees, pixels', 'every, pixels', 'first centre')
  table = document.table('Receptive fields: the pixels that an output can depend on', head, rows)
  if not maps:
    return f'<p>No layer gives a map whose outputs see different parts of the image.</p>{table}'
  picture = document.figure(
    plots.receptive_fields(findings.image, maps),
    'What the middle output of some of the layers can see, over the first test image. Boxes that'
    ' are larger than the image are cut off; outputs that all see the same have none.',
  )
  return f'<div class="pair">{picture}{table}</div>'


def _ledger(findings: Findings) -> str:
  rows = [
    (
      e.name,
      _shape(e.kernel),
      _shape(e.output),
      *(f'{n:,}' for n in (e.parameters, e.locally_connected_parameters)),
      *(f'{n:,}' for n in (e.fully_connected_parameters, e.connections)),
      f'{e.sparsity:.2%}',
      f'{e.reuse:,.0f}',
      f'{e.macs:,}',
      f'{e.intensity:.1f}',
    )
    for e in findings.entries
  ]
  head = ('layer', 'kernel', 'output', 'parameters', 'untied', 'fully connected', 'connections',
          'sparsity', 'reuse', 'MACs', 'ops/byte')  # fmt: skip
  text = (
    '<p>The parameters of each layer, and of the same layer with a kernel of its own at every'
    ' position (untied) or every output connected to every input; what sharing and sparse'
    ' connections save.</p>'
  )
  return text + document.table('Convolutions and dense layers', head, rows)


def _image(image: np.ndarray, alt: str) -> str:
  height, width = image.shape[:2]
  uri = plots.data_uri(image)
  return f'<img src="{uri}" width="{width}" height="{height}" alt="{escape(alt)}">'


def _number(value: Any) -> str:
  return f'{value:.4f}' if isinstance(value, int | float) and math.isfinite(value) else '-'


def _shape(sizes: Sequence[float]) -> str:
  return ' x '.join(f'{size:g}' for size in sizes)
