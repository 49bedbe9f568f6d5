"""Fashion-MNIST to 94 %: `experiments/fashion_mnist/fast.py` against the same recipe in PyTorch.

  python benchmarks/fashion_mnist_fast.py [--seeds=0,1,2] [--epochs=N] [--mode=auto]
      [--torch_python=PATH] [--json=FILE]

Network, initialisation, augmentation, batch size, optimizer, schedule, epochs and mirrored
evaluation are those of the config, for both. PyTorch has its images normalised in memory,
channels-last, one thread for each physical core, and the faster of eager and compiled with the
faster of foreach and fused AdamW (`rivals/fashion_mnist_pytorch.py`), chosen by trials that don't
count. Both train in processes of their own, in turn, for every seed.

Reported: `seconds` of training after the first step, so without compilation, trials, reading of
the data and evaluation; for cnnjax also those of the whole process. The ratio is of the medians of
`seconds`; above 1: cnnjax is faster. The machine must be quiet: see `vs_pytorch.py`.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import vs_pytorch

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = ROOT / 'experiments/fashion_mnist/fast.py'
ENVIRONMENT = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}


def read_config(epochs: float | None) -> Any:
  """The config, whose augmentation, optimizer and schedule the PyTorch side must know.

  Args:
    epochs: instead of the config's own, for a trial; None: those.
  """
  from cnnjax import config

  module_spec = importlib.util.spec_from_file_location('fast', CONFIG)
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  c = module.get_config()
  c.epochs = c.epochs if epochs is None else epochs
  c = config.validate(c)
  found = (c.model.name, c.augment, c.optimizer.name, c.schedule.name, c.eval_mirror)
  if found != ('cnn', 'flip_horizontal', 'adamw', 'one_cycle', True):
    raise ValueError(f'{CONFIG} has changed: the PyTorch side knows nothing of {found}')
  return c


def recipe(c: Any) -> dict[str, Any]:
  """The numbers of the config, for PyTorch."""
  from cnnjax import models

  model = models.create(**{**c.model, 'num_classes': 10})
  fields = ('features', 'convs', 'dense', 'dropout')
  return {
    'model': {field: getattr(model, field) for field in fields},
    'batch_size': c.batch_size,
    'epochs': c.epochs,
    'label_smoothing': c.loss.label_smoothing,
    'learning_rate': c.optimizer.learning_rate,
    'weight_decay': c.optimizer.weight_decay,
    **{k: c.schedule.options[k] for k in ('peak', 'start_factor', 'end_factor')},
  }


def write_data(c: Any, path: str) -> dict[str, list[float]]:
  """Writes the images for PyTorch; the statistics of the training set."""
  from cnnjax.data import sources

  train, test = (
    sources.materialise(sources.load(c.data.name, split, data_dir=c.data.data_dir))
    for split in ('train', 'test')
  )
  arrays = {'train_images': train.images, 'train_labels': train.labels}
  np.savez(path, test_images=test.images, test_labels=test.labels, **arrays)
  mean, std = sources.statistics(train)
  return {'mean': [float(x) for x in mean], 'std': [float(x) for x in std]}


def run_cnnjax(seed: int, epochs: float, directory: str) -> dict[str, Any]:
  """Trains in a process of its own by the command of the config's docstring."""
  workdir = pathlib.Path(directory, f'seed{seed}')
  command = [sys.executable, '-m', 'cnnjax.main', f'--config={CONFIG}', f'--workdir={workdir}']
  start = time.perf_counter()
  run([*command, f'--config.seed={seed}', f'--config.epochs={epochs}'])
  process = time.perf_counter() - start
  rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  last = {row['split']: row for row in rows}
  return {
    'seconds': last['train']['seconds'],
    'process_seconds': process,
    'accuracy': last['test']['accuracy'],
  }


def run(command: list[str]) -> str:
  """Runs a command; its standard output."""
  done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
  if done.returncode:
    raise SystemExit(f'{command[:3]} ended with status {done.returncode}:\n{done.stderr}')
  return done.stdout


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
  """Runs over the seeds as one entry of the report."""
  first = runs[0]
  return {
    'median_seconds': statistics.median(r['seconds'] for r in runs),
    'mean_accuracy': statistics.fmean(r['accuracy'] for r in runs),
    **{k: [r[k] for r in runs] for k in ('seconds', 'process_seconds', 'accuracy') if k in first},
    'settings': [r['settings'] for r in runs if 'settings' in r],
  }


def parse() -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  seeds = lambda text: [int(seed) for seed in text.split(',')]
  parser.add_argument('--seeds', type=seeds, default=[0, 1, 2])
  parser.add_argument('--epochs', type=float, help="instead of the config's: for a trial")
  parser.add_argument('--mode', choices=('auto', 'eager', 'compile'), default='auto')
  parser.add_argument('--torch_python', default=sys.executable, help="PyTorch's interpreter")
  parser.add_argument('--json', type=pathlib.Path)
  return parser.parse_args()


def main() -> None:
  """Trains with both, prints, writes."""
  arguments = parse()
  c = read_config(arguments.epochs)
  found, versions = {'cnnjax': [], 'pytorch': []}, {'python': platform.python_version()}
  for package in ('jax', 'flax', 'cnnjax', 'cnnjax-onednn'):
    versions[package] = importlib.metadata.version(package)
  worker = str(vs_pytorch.RIVALS / 'fashion_mnist_pytorch.py')
  with tempfile.TemporaryDirectory() as directory:
    spec = {'data': f'{directory}/data.npz', 'recipe': recipe(c), 'mode': arguments.mode}
    spec |= {'threads': vs_pytorch.physical_cores(), **write_data(c, spec['data'])}
    for seed in arguments.seeds:
      rival = [arguments.torch_python, worker, json.dumps({**spec, 'seed': seed})]
      for name in found:
        result = (
          json.loads(run(rival)) if name == 'pytorch' else run_cnnjax(seed, c.epochs, directory)
        )
        found[name].append(result)
        versions |= result.get('versions', {})
        line = f'{name:8} seed {seed}  {result["seconds"]:7.1f} s  {result["accuracy"]:.4f}'
        print(line, result.get('settings', {}).get('chosen', ''), flush=True)
  report = {name: summary(runs) for name, runs in found.items()}
  report['ratio'] = report['pytorch']['median_seconds'] / report['cnnjax']['median_seconds']
  report['machine'] = {**vs_pytorch.machine(), 'versions': versions}
  report['date'] = datetime.date.today().isoformat()
  for name in found:
    entry = report[name]
    print(f'{name:8} {entry["median_seconds"]:.1f} s, accuracy {entry["mean_accuracy"]:.4f}')
  print(f'ratio {report["ratio"]:.3f}')
  if arguments.json:
    arguments.json.write_text(json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
  main()
