"""A training step inside `lax.scan` against the same step, jitted and called from Python.

  python benchmarks/scan_steps.py [--models=resnet18_cifar:64,cnn:128] [--steps=4] [--rounds=10]
      [--ops=auto] [--json]

Float32, cross entropy, SGD with momentum; one batch that lies ready in memory. In turn in one
process. Reported: medians of milliseconds per step, and the median of the ratio round by round
(above 1: the scan is slower).
"""

import argparse
import functools
import json
import statistics
import time

import jax
import numpy as np
import optax

from cnnjax import models, ops
from cnnjax.tasks.classification import classification
from cnnjax.training import state as state_lib
from cnnjax.training import steps as steps_lib

SHAPES = {'resnet18_cifar': (32, 32, 3), 'cnn': (28, 28, 1), 'lenet5': (28, 28, 1)}


def contestants(name: str, batch_size: int, steps: int):
  """Two functions that take `steps` steps each, one call after the other or in one scan."""
  rng = np.random.RandomState(0)
  task, optimizer = (
    classification(models.create(name, num_classes=10)),
    optax.sgd(1e-3, momentum=0.9),
  )
  batch = jax.device_put(
    {
      'image': rng.standard_normal((batch_size, *SHAPES[name])).astype(np.float32),
      'label': rng.randint(10, size=batch_size).astype(np.int32),
      'id': np.arange(batch_size, dtype=np.int32),
      'mask': np.ones(batch_size, np.float32),
    }
  )
  step = steps_lib.make_train_step(
    task, optimizer, key=jax.random.key(1), preprocess=lambda key, images, ids, train: images
  )
  init = jax.jit(lambda key: state_lib.init(key, task, optimizer, batch))
  jitted = jax.jit(step, donate_argnums=0)

  @functools.partial(jax.jit, donate_argnums=0)
  def scanned(state, batch):
    return jax.lax.scan(lambda state, _: step(state, batch), state, None, steps)

  def calls(state):
    for _ in range(steps):
      state, _ = jitted(state, batch)
    return state

  return {
    'jitted': (calls, init(jax.random.key(0))),
    'scan': (lambda state: scanned(state, batch)[0], init(jax.random.key(0))),
  }


def measure(name: str, batch_size: int, steps: int, rounds: int) -> dict[str, float]:
  """Milliseconds per step of both, and their ratio."""
  runs = contestants(name, batch_size, steps)
  times: dict[str, list[float]] = {kind: [] for kind in runs}
  states = {kind: state for kind, (_, state) in runs.items()}
  for i in range(-2, rounds):
    for kind in sorted(runs, reverse=i % 2 == 1):
      start = time.perf_counter()
      states[kind] = jax.block_until_ready(runs[kind][0](states[kind]))
      if i >= 0:
        times[kind].append((time.perf_counter() - start) / steps * 1e3)
  for a, b in zip(*map(jax.tree.leaves, states.values()), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)
  ratios = [b / a for a, b in zip(times['jitted'], times['scan'], strict=True)]
  return {**{k: statistics.median(v) for k, v in times.items()}, 'ratio': statistics.median(ratios)}


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--models', default='resnet18_cifar:64,cnn:128')
  parser.add_argument('--steps', type=int, default=4)
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--ops', default='auto')
  parser.add_argument('--json', action='store_true')
  arguments = parser.parse_args()
  results = {}
  with ops.using(arguments.ops):
    for spec in arguments.models.split(','):
      name, _, size = spec.partition(':')
      results[spec] = measure(name, int(size), arguments.steps, arguments.rounds)
      if not arguments.json:
        shown = '  '.join(f'{k} {v:.3f}' for k, v in results[spec].items())
        print(f'{spec:20}{shown}', flush=True)
  if arguments.json:
    print(json.dumps(results))


if __name__ == '__main__':
  main()
