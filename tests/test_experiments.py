"""Every config under experiments/ runs one real step of the real loop."""

import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from cnnjax import config
from cnnjax.training import loop, schedules, writers
from experiments.cat_detector import photos
from tests.data.mock import mock_tfds

ROOT = pathlib.Path(__file__).parent.parent / 'experiments'
CONFIGS = sorted(
  str(path.relative_to(ROOT))
  for path in ROOT.rglob('*.py')
  if 'def get_config(' in path.read_text()  # the others are scripts
)


def load(name):
  spec = importlib.util.spec_from_file_location('experiment', ROOT / name)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module, module.get_config()


def test_there_are_configs():
  assert 'digits/lenet5.py' in CONFIGS


@pytest.mark.parametrize('name', CONFIGS)
def test_config_is_valid_and_says_what_it_is(name):
  module, c = load(name)
  config.validate(c)
  options = dict(c.schedule.options)
  schedules.create(c.schedule.name, learning_rate=1.0, total_steps=100_000, **options)
  for words in (f'--config=experiments/{name}', 'Paper:', 'Result:'):
    assert words in module.__doc__


@pytest.mark.parametrize('name', CONFIGS)
def test_config_runs_one_step(name, tmp_path):
  _, c = load(name)
  c.steps, c.batch_size, c.data.workers = 1, 4, 0
  c.schedule = {'name': 'constant', 'warmup_epochs': 0.0}  # others need more steps than one
  c.data.image_size = tuple(min(side, 64) for side in c.data.image_size)  # compiles faster
  if c.model.name == 'resnet50':
    c.model.stage_sizes = (1, 1, 1, 1)
  c.parallel.devices = 1
  if c.data.name.startswith('folder:'):
    photos.prepare(str(tmp_path / 'photos'), per_split={'train': 7, 'test': 5})
    c.data.name = f'folder:{tmp_path}/photos'
  with mock_tfds(num_examples=8):
    row = loop.train(config.validate(c), str(tmp_path))
  train, test = writers.read(str(tmp_path))
  assert (train['step'], train['split'], test) == (1, 'train', row)
  assert np.isfinite([train['loss'], train['gradient_norm'], test['loss']]).all()
  assert train['gradient_norm'] > 0


def test_every_claim_is_measured_and_told():
  folder = ROOT / 'claims'
  names = sorted(path.stem for path in folder.glob('*.py') if path.stem != 'claim')
  told = ''.join(
    (ROOT.parent / 'docs' / f'{page}.md').read_text() for page in ('claims', 'analysis')
  )
  makefile = (ROOT.parent / 'Makefile').read_text()
  (measured,) = [line.split()[2:] for line in makefile.splitlines() if line.startswith('CLAIMS :=')]
  assert sorted([*measured, 'attribution']) == names
  for name in names:
    command = f'python -m experiments.claims.{name}'
    assert command in told
    assert command in (folder / f'{name}.py').read_text()
  modules = ', '.join(f'experiments.claims.{name}' for name in names)
  subprocess.run([sys.executable, '-c', f'import {modules}'], cwd=ROOT.parent, check=True)
