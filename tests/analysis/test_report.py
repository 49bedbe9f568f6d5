"""The page of a tiny run: whole, closed to the network, escaped, and shown by a real browser."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.analysis import findings, report
from cnnjax.data import sources
from cnnjax.training import loop
from tests import browser, pages


def train(directory, model):
  c = config_lib.default()
  c.model = ConfigDict(model)
  c.steps, c.log_every, c.parallel.devices = 8, 2, 1
  c.optimizer.learning_rate = 0.02
  return loop.train(config_lib.validate(c), str(directory))


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  directory = tmp_path_factory.mktemp('run')
  train(directory, {'name': 'cnn', 'features': (4, 8), 'dense': ()})
  return findings.collect(str(directory))


def test_the_figures_of_json(found):
  row, summary = found.rows[-1], findings.summary(found.directory)
  assert json.loads(json.dumps(summary, allow_nan=False)) == summary
  assert (summary['step'], summary['examples']) == (row['step'], 359) == (8, 359)
  for key in ('accuracy', 'loss', 'expected_calibration_error'):
    assert summary[key] == pytest.approx(row[key], rel=1e-5)
  assert summary['confusion_matrix'] == row['confusion_matrix']
  assert [c['recall'] for c in summary['classes']] == row['per_class_accuracy']
  digits = sources.digits('test')
  for mistake in summary['mistakes']:
    assert mistake['label'] == digits.class_names[digits.labels[mistake['id']]]
  assert 0.2 < row['accuracy'] < 0.98


def test_a_whole_page(found):
  page = report.render(found)
  read = pages.Reader(page)
  tags = [tag for tag, _ in read.elements]
  assert tags.count('h1') == 1
  assert tags.count('h2') == 8
  assert tags.count('svg') == 7
  assert tags.count('img') == 2 * findings.MISTAKES
  pages.is_closed(read, page)
  assert all(len(attributes['alt']) > 10 for tag, attributes in read.elements if tag == 'img')
  text = ''.join(read.text)
  right = int((found.found.predicted == found.found.label).sum())
  assert f'{right:,} right' in text
  assert f'{right / 359:.4f}' in text
  assert len(page) < 1_500_000
  # The ink of figures is the page's.
  assert '#010203' not in page
  assert 'currentColor' in page


def test_mistakes_are_shown_with_their_evidence(found):
  assert len(found.mistakes) == findings.MISTAKES
  losses = [mistake.loss for mistake in found.mistakes]
  assert losses == sorted(losses, reverse=True)
  for mistake in found.mistakes:
    assert mistake.label != mistake.predicted
    assert mistake.heat is not None
    assert mistake.heat.shape == (8, 8)
    assert mistake.heat.min() >= 0


def test_what_comes_from_the_run_is_escaped(found):
  evil = '</style><script>alert(1)</script>" onload="x'
  names = [evil, '$x_{', '猫', '\udce4\x07', 'a' * 300, '_hidden', '&lt;', "'", '', '%']
  run = found.run._replace(
    description={**found.run.description, 'class_names': names},
    config=found.run.config.copy_and_resolve_references(),
  )
  run.config.data.name = f'folder:{evil}'
  mistakes = [m._replace(name=evil, label=evil, predicted=names[3]) for m in found.mistakes]
  page = report.render(
    found._replace(run=run, mistakes=mistakes, directory=evil, environment={evil: [evil]})
  )
  read = pages.Reader(page.encode('utf-8', 'strict').decode())
  assert 'script' not in [tag for tag, _ in read.elements]
  assert not any('onload' in attributes for _, attributes in read.elements)
  assert page.count('&lt;script&gt;') > 10
  assert '猫' in page


def test_a_network_without_maps(tmp_path):
  train(tmp_path, {'name': 'mlp', 'hidden': ()})
  dense = findings.collect(str(tmp_path))
  assert dense.kernel is None
  assert dense.mistakes[0].heat is None
  text = ''.join(pages.Reader(report.render(dense)).text)
  assert 'no layer of this model gives a map' in text
  assert 'no convolution with a kernel over the image' in text
  assert 'No layer gives a map' in text
  # One without mistakes, rows or examples of each class.
  right = dense.found._replace(label=np.ones(359, int), predicted=np.ones(359, int))
  text = ''.join(
    pages.Reader(report.render(dense._replace(found=right, mistakes=[], rows=[]))).text
  )
  assert 'every test example is classified rightly' in text
  assert 'metrics.jsonl holds no rows' in text


@pytest.mark.skipif(not browser.CHROMIUM, reason='there is no Chromium')
def test_in_a_browser(found, tmp_path):
  path = tmp_path / 'report.html'
  path.write_text(report.render(found))
  with browser.page() as page:
    for width, height, scheme, ink in (
      (360, 800, 'dark', 'rgb(230, 232, 235)'),
      (1200, 900, 'light', 'rgb(27, 31, 36)'),
    ):
      page.show(path, width=width, height=height, scheme=scheme)
      assert page.evaluate('innerWidth') == width
      assert page.evaluate('document.documentElement.scrollWidth') <= width
      assert page.evaluate("getComputedStyle(document.querySelector('svg text')).fill") == ink
      assert page.evaluate('[...document.images].every(i => i.naturalWidth > 0)')
    assert page.complaints == []
    # What this test would see.
    path.write_text('<div style="width: 500px">.</div><script>console.error(1); f()</script>')
    page.show(path, width=360, height=800, scheme='light')
    assert page.evaluate('document.documentElement.scrollWidth') > 360
    assert len(page.complaints) == 2
