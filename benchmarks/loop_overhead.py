"""What cnnjax's training loop costs over a jitted loop written by hand, on the same LeNet-5 step.

  python benchmarks/loop_overhead.py [--steps=600] [--rounds=7] [--json]

Both train LeNet-5 on the shipped digits at 32x32 with batch 64, AdamW and random crops, in one
process, in turn, and look at their metrics every 100 steps. The hand-written loop is what a
researcher writes in an afternoon: no resume, no files, no signals, nothing checked. Compilation
and evaluation are left out of both. Reported: the median over rounds of each one's milliseconds
per step, and of the ratio round by round.
"""

import argparse
import functools
import importlib.util
import json
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnjax import config as config_lib
from cnnjax import models
from cnnjax.data import augment, sources
from cnnjax.training import loop, writers

ROOT = pathlib.Path(__file__).parent.parent


def cnnjax_loop(steps: int) -> float:
  """Seconds per step of `cnnjax.main`'s loop, from its own metrics."""
  path = ROOT / 'experiments' / 'digits' / 'lenet5.py'
  spec = importlib.util.spec_from_file_location('lenet5', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config()
  c.steps, c.eval_every, c.log_every = steps, steps, 100
  with tempfile.TemporaryDirectory() as workdir:
    loop.train(config_lib.validate(c), workdir)
    rows = [row for row in writers.read(workdir) if row['split'] == 'train']
  return rows[-1]['seconds'] / (steps - 1)  # the first step compiles and isn't counted


def handwritten_loop(steps: int) -> float:
  """Seconds per step of the same training, written out."""
  source = sources.load('digits', 'train', image_size=(32, 32))
  mean, std = sources.statistics(source)
  images, labels = jax.device_put(source.images), jax.device_put(source.labels)
  model = models.create('lenet5', num_classes=10)
  params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))['params']
  schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 45, steps)
  optimizer = optax.adamw(schedule, weight_decay=1e-2)
  crop = augment.parse('random_crop(padding=3)')
  key = jax.random.key(1)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt_state, i, ids):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, i), ids)
    x = jax.vmap(crop)(keys, images[ids].astype(jnp.float32) / 255)
    x = (x - jnp.reshape(jnp.asarray(mean), (1, 1, 1, -1))) / jnp.reshape(
      jnp.asarray(std), (1, 1, 1, -1)
    )
    y = labels[ids]

    def cost(params):
      logits = model.apply({'params': params}, x, train=True)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
      return losses.mean(), (logits.argmax(-1) == y).mean()

    (loss, accuracy), gradients = jax.value_and_grad(cost, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    norm = optax.tree.norm(gradients)
    return optax.apply_updates(params, updates), opt_state, (loss, accuracy, norm)

  order = np.random.default_rng(0).permutation(len(source)).astype(np.int32)
  order = np.concatenate([order] * (steps * 64 // len(order) + 2))
  opt_state = optimizer.init(params)
  params, opt_state, metrics = step(params, opt_state, 0, order[:64])
  jax.block_until_ready(metrics)
  start, window = time.perf_counter(), []
  for i in range(1, steps):
    params, opt_state, metrics = step(params, opt_state, i, order[i * 64 : (i + 1) * 64])
    window.append(metrics)
    if i % 100 == 0:
      np.mean(jax.device_get(window), axis=0)
      window = []
  jax.block_until_ready(params)
  return (time.perf_counter() - start) / (steps - 1)


def main() -> None:
  """Runs both in turn and prints the medians."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--steps', type=int, default=600)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--json', action='store_true')
  arguments = parser.parse_args()
  pairs = []
  for i in range(arguments.rounds):
    runs = [cnnjax_loop, handwritten_loop] if i % 2 else [handwritten_loop, cnnjax_loop]
    times = {run: run(arguments.steps) for run in runs}
    pairs.append((times[cnnjax_loop], times[handwritten_loop]))
  ours, theirs = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
  ratio = statistics.median(a / b for a, b in pairs)
  if arguments.json:
    rounds = [{'cnnjax_ms': a * 1e3, 'handwritten_ms': b * 1e3} for a, b in pairs]
    print(json.dumps({'cnnjax_ms': ours, 'handwritten_ms': theirs, 'ratio': ratio,
                      'rounds': rounds}))  # fmt: skip
  else:
    print(f'cnnjax       {ours:7.3f} ms per step')
    print(f'by hand      {theirs:7.3f} ms per step')
    print(f'ratio        {ratio:7.3f} (median of {arguments.rounds} rounds, in turn)')


if __name__ == '__main__':
  main()
