"""A run's findings as one HTML page that needs nothing else: no network, no script.

Whatever comes from the run (names of classes, paths, config) is escaped where it enters the page,
and the page's own policy forbids its browser to load or run anything.
"""

import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cnnjax import config as config_lib
from cnnjax.analysis import evaluation, plots
from cnnjax.analysis.findings import Findings

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de;
  --page: #ffffff; --band: #f3f5f8; --link: #0b5cad }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a3abb5; --line: #3a424c;
  --page: #14171c; --band: #1e232a; --link: #79b8ff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .5rem 0 } h2 { font-size: 1.2rem;
  margin: 2rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line) }
p { max-width: 42rem; margin: .5rem 0 } a { color: var(--link) }
nav a { display: inline-block; padding: .35rem .75rem .35rem 0 }
.soft, figcaption { color: var(--soft); font-size: .875rem }
.big { display: flex; flex-wrap: wrap; gap: .25rem 2rem; margin: .75rem 0; padding: 0 }
.big div { display: flex; flex-direction: column-reverse }
.big dt { color: var(--soft); font-size: .875rem } .big dd { margin: 0; font-size: 1.4rem;
  font-variant-numeric: tabular-nums }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr));
  gap: 1rem; align-items: start }
.pair { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1rem; align-items: start }
@media (min-width: 50rem) { .pair { grid-template-columns: 24rem minmax(0, 1fr) } }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: 1rem }
figure { margin: 0; min-width: 0 } figure svg { display: block; width: 100%; max-width: 27rem;
  height: auto } svg text { font-family: system-ui, sans-serif !important }
svg * { stroke-linejoin: round; stroke-linecap: butt } svg image, img { image-rendering: pixelated }
.mistakes figure div { display: flex; gap: .25rem }
.mistakes img { width: calc(50% - .125rem); height: auto }
.scroll { overflow: auto; max-height: 32rem; border: 1px solid var(--line); max-width: 100%;
  width: fit-content; margin: .75rem 0 }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal } caption { text-align: left; padding: .4rem .6rem; color: var(--soft) }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap;
  border-top: 1px solid var(--line) } th { font-weight: 600 }
th:first-child, .words td { text-align: left }
.words td { white-space: normal; overflow-wrap: anywhere }
tbody tr:nth-child(odd) { background: var(--band) }
summary { cursor: pointer; padding: .35rem 0 }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
  name = lambda heading: heading.lower().replace(' ', '-')
  links = ' '.join(f'<a href="#{name(heading)}">{heading}</a>' for heading in sections)
  body = '\n'.join(
    f'<section aria-labelledby="{name(heading)}"><h2 id="{name(heading)}">{heading}</h2>\n'
    f'{content}</section>'
    for heading, content in sections.items()
  )
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_escape(title)}: report</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{_escape(title)}</h1>
<nav aria-label="Sections">{links}</nav></header>
<main>
{body}
</main>
</body>
</html>
"""


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
    f'<div><dt>{key}</dt><dd>{_escape(value)}</dd></div>' for key, value in figures.items()
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
    f'<details><summary>{name}</summary>{_table(name, (), _shown(leaves), words=True)}</details>\n'
    for name, leaves in tables.items()
  )
  about = _table('What was run', (), facts.items(), words=True)
  return f'<dl class="big">{big}</dl>\n{about}{details}'


def _shown(leaves: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
  return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in leaves]


def _curves(findings: Findings) -> str:
  rows = findings.rows
  if not rows:
    return '<p>metrics.jsonl holds no rows.</p>'
  drawn = (
    _figure(
      plots.curves(rows, 'loss', 'loss, nats', log=True),
      'Loss over training steps. Of training, means since the row before, of augmented images and'
      ' with what regularises; of the test set, plain cross-entropy.',
    ),
    _figure(plots.curves(rows, 'accuracy', 'accuracy'), 'Accuracy over training steps.'),
    _figure(
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
  picture = _figure(
    plots.confusion(matrix, names),
    'Confusion matrix of the test set: examples of each true class (row) by predicted class'
    ' (column). The colour is the share of the row.',
  )
  head = ('class', 'examples', 'precision', 'recall', 'most often taken for')
  return f'<div class="pair">{picture}{_table("Each class of the test set", head, rows)}</div>'


def _calibration(findings: Findings) -> str:
  found = evaluation.calibration(findings.found)
  picture = _figure(
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
      f'{_escape(mistake.name)}: <strong>{_escape(mistake.label)}</strong> taken for'
      f' <strong>{_escape(mistake.predicted)}</strong>, confidence {_number(mistake.confidence)},'
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
  return f'<div class="row">{_figure(plots.filters(kernel), caption)}</div>'


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
  table = _table('Receptive fields: the pixels that an output can depend on', head, rows)
  if not maps:
    return f'<p>No layer gives a map whose outputs see different parts of the image.</p>{table}'
  picture = _figure(
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
  return text + _table('Convolutions and dense layers', head, rows)


def _table(
  caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], *, words: bool = False
) -> str:
  top = ''.join(f'<th scope="col">{_escape(cell)}</th>' for cell in head)
  lines = ''.join(
    f'<tr><th scope="row">{_escape(first)}</th>'
    f'{"".join(f"<td>{_escape(cell)}</td>" for cell in rest)}</tr>\n'
    for first, *rest in rows
  )
  return (
    f'<div class="scroll" role="region" tabindex="0" aria-label="{_escape(caption)}">'
    f'<table{" class=words" * words}><caption>{_escape(caption)}</caption>'
    f'{f"<thead><tr>{top}</tr></thead>" if head else ""}<tbody>\n{lines}</tbody></table></div>\n'
  )


def _figure(svg: str, caption: str) -> str:
  text = _escape(caption)
  return (
    f'<figure><div role="img" aria-label="{text}">{svg}</div>'
    f'<figcaption>{text}</figcaption></figure>\n'
  )


def _image(image: np.ndarray, alt: str) -> str:
  height, width = image.shape[:2]
  uri = plots.data_uri(image)
  return f'<img src="{uri}" width="{width}" height="{height}" alt="{_escape(alt)}">'


def _escape(value: Any) -> str:
  return html.escape(plots.plain(str(value)))


def _number(value: Any) -> str:
  return f'{value:.4f}' if isinstance(value, int | float) and math.isfinite(value) else '-'


def _shape(sizes: Sequence[float]) -> str:
  return ' x '.join(f'{size:g}' for size in sizes)
