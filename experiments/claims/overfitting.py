"""Claim 5: fewer parameters, less overfitting.

Fully connected, locally connected and convolutional networks of the same widths, each a special
case of the one before, learn growing parts of Fashion-MNIST until they make no mistake on them:
once as it is, centred, and once with every image moved. A fourth network is convolutional with the
usual pooling.

Command: python -m cnnjax.datasets prepare fashion_mnist
         python -m experiments.claims.overfitting --workdir=DIR [--seeds=3]
Result: with the same widths the gap grows as parameters are taken away (0.191, 0.204, 0.215 at
1,000 centred examples): the claim doesn't hold so. With pooling and more features, 20,490
parameters have a smaller gap (0.160) than 1,202,058 fully connected (docs/claims.md).
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from matplotlib import pyplot as plt

from cnnjax import analysis, cli, models
from cnnjax.data import pipeline, preprocess, sources
from cnnjax.layers.conv import conv, untied
from cnnjax.tasks.classification import classification
from cnnjax.training import metrics, optimizers, state, steps
from experiments.claims import claim

EXAMPLES = {'centred': (100, 300, 1000, 3000), 'moved': (100, 300, 1000)}
MOST_EXAMPLES, FARTHEST = 3000, 5  # pixels that an image is moved, along each side
BATCH, CHECK_EVERY, MOST_STEPS = 50, 100, 2000


class Net(nn.Module):
  """Two layers of 12 x 12 x 8 and 4 x 4 x 16 units from 5 x 5 windows of stride 2; logits."""

  conv: Callable[..., Any]

  @nn.compact
  def __call__(self, x, train=False):
    for features in (8, 16):
      x = nn.relu(self.conv(features, 5, strides=2, padding='VALID', use_bias=True)(x))
    return nn.Dense(10)(x.reshape(len(x), -1))


NETWORKS = {
  'fully connected': models.create('mlp', num_classes=10, hidden=(12 * 12 * 8, 4 * 4 * 16)),
  'locally connected': Net(functools.partial(conv, layer=untied)),
  'convolutional': Net(conv),
  'convolutional, pooled': models.create('cnn', num_classes=10, features=(16, 32), dense=()),
}


def fit(train_step, evaluate, start, train, test, seed):
  """Trains until no training example is wrong.

  Returns:
    (training accuracy, test accuracy, best test accuracy on the way, steps).
  """

  def accuracy(source):
    sums = [evaluate(s, batch) for batch in pipeline.eval_batches(source, batch_size=500)]
    total = functools.reduce(metrics.accumulate, sums, None)
    return float(metrics.summarize(total)['accuracy'])

  s, best, step = start, 0.0, 0
  batches = pipeline.train_batches(train, seed=seed, batch_size=BATCH)
  while True:
    for batch in itertools.islice(batches, CHECK_EVERY):
      s, _ = train_step(s, batch)
    step += CHECK_EVERY
    now = accuracy(train), accuracy(test)
    best = max(best, now[1])
    if now[0] == 1 or step == MOST_STEPS:
      return *now, best, step


def moved(source):
  """Every image moved by whole pixels, drawn for it; black comes in, what leaves is lost."""
  draws = np.random.default_rng(0).integers(0, 2 * FARTHEST + 1, (len(source), 2))
  padded = np.pad(source.images, ((0, 0), *[(FARTHEST, FARTHEST)] * 2, (0, 0)))
  height, width, _ = source.image_shape
  images = [x[i : i + height, j : j + width] for x, (i, j) in zip(padded, draws, strict=True)]
  return sources.ArraySource(np.stack(images), source.labels, source.class_names)


def measure(model, sizes, train, test, normalise):
  """Number of examples to the figures of `fit`, one row for each seed."""
  task, optimizer = classification(model), optimizers.create('adam', learning_rate=2e-3)
  key = jax.random.key(0)  # of augmentation and dropout, of which there is none
  train_step = jax.jit(steps.make_train_step(task, optimizer, key=key, preprocess=normalise))
  evaluate = jax.jit(steps.make_eval_step(task, preprocess=normalise))
  batch = {'image': normalise(None, train.images[:1], None, train=False)}
  init = jax.jit(lambda key: state.init(key, task, optimizer, batch))
  found = {n: [] for n in sizes}
  for n, seed in itertools.product(sizes, claim.seeds()):
    own = slice(seed * MOST_EXAMPLES, seed * MOST_EXAMPLES + n)  # other seeds, other examples
    part = sources.ArraySource(train.images[own], train.labels[own], train.class_names)
    found[n].append(fit(train_step, evaluate, init(jax.random.key(seed)), part, test, seed))
  return {n: np.array(runs) for n, runs in found.items()}


def main():
  data = f'tfds:fashion_mnist:train[:{len(claim.seeds()) * MOST_EXAMPLES}],test[:2000]'
  train, test = (sources.materialise(sources.load(data, split)) for split in ('train', 'test'))
  normalise = preprocess.make_preprocess(None, *sources.statistics(train))
  figure, both = plt.subplots(1, 2, figsize=(7, 3), sharey=True)
  rows = []
  for axes, (images, sizes) in zip(both, EXAMPLES.items(), strict=True):
    shown = [moved(train), moved(test)] if images == 'moved' else [train, test]
    for name, model in NETWORKS.items():
      parameters = analysis.count(model, (28, 28, 1)).parameters
      found = measure(model, sizes, *shown, normalise)
      for n, runs in found.items():
        fitted, tested, best, taken = runs.T
        rows.append(
          {
            'images': images,
            'network': name,
            'parameters': f'{parameters:,}',
            'examples': f'{n:,}',
            'training accuracy': claim.spread(fitted),
            'test accuracy': claim.spread(tested),
            'gap': claim.spread(fitted - tested),
            'best on the way': claim.spread(best),
            'steps': claim.spread(taken, 0),
          }
        )
      gaps = np.stack([runs[:, 0] - runs[:, 1] for runs in found.values()])
      label = f'{name}, {parameters:,} parameters'
      axes.plot(sizes, gaps.mean(1), marker='o', markersize=3, label=label)
      axes.fill_between(sizes, gaps.min(1), gaps.max(1), alpha=0.25)
    axes.set_xscale('log')
    axes.set_xticks(sizes, [f'{n:,}' for n in sizes])
    axes.minorticks_off()
    axes.set_xlabel('training examples')
    axes.set_title(f'{images} images')
  both[0].set_ylabel('training minus test accuracy')
  both[0].legend(frameon=False, fontsize=6)
  claim.save('overfitting', rows, figure)


if __name__ == '__main__':
  cli.run(main)
