"""Claim 6: a convolutional network recognises what has moved. It holds only in part.

Eight networks learn the first 4,000 images of Fashion-MNIST, each at the centre of a black canvas
of 44 x 44 pixels, and are asked for 1,000 test images elsewhere on it. Moves by up to 8 pixels take
nothing out of view.

Command: python -m experiments.claims.shifts --workdir=DIR
Result: accuracy at 0 and at 8 pixels 0.846 and 0.188 fully connected, 0.849 and 0.209 with strides,
0.870 and 0.229 with max pooling, 0.896 and 0.285 anti-aliased, 0.855 and 0.707 with global pooling
besides; max pooling trained on moved images 0.802 and 0.773 (means of 3 seeds; docs/claims.md).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np

from cnnjax import cli, models
from cnnjax.analysis import equivariance
from cnnjax.data import augment, pipeline, preprocess, sources
from cnnjax.layers.pool import blur_pool, max_pool
from cnnjax.tasks.classification import classification
from cnnjax.training import optimizers, schedules, state, steps
from experiments.claims import claim

TRAIN, TEST, EPOCHS, BATCH, MARGIN = 4000, 1000, 6, 64, 8


def subsample(x: jax.Array) -> jax.Array:
  """Every second pixel: the convolution before it has a stride of 2."""
  return x[:, ::2, ::2]


def max_blur(x: jax.Array) -> jax.Array:
  """2 x 2 maxima at every pixel, blurred before every second one is taken (Zhang 2019)."""
  return blur_pool(max_pool(x, 2, strides=1), mode='edge')


cnn = partial(models.create, 'cnn', num_classes=10, features=(8, 16, 32), dense=(64,), norm='batch')
mlp = partial(models.create, 'mlp', num_classes=10, hidden=(64, 64), norm='batch')
MOVED = f'translate(pixels={MARGIN})'  # in training, drawn anew for every image and epoch
NETWORKS = {
  'fully connected': (mlp(), ''),
  'convolution with stride': (cnn(pool=subsample), ''),
  'max pooling': (cnn(pool='max'), ''),
  'anti-aliased pooling': (cnn(pool=max_blur), ''),
  'max, then global pooling': (cnn(pool='max', global_pool=True), ''),
  'anti-aliased, then global pooling': (cnn(pool=max_blur, global_pool=True), ''),
  'fully connected, trained on moved images': (mlp(), MOVED),
  'max pooling, trained on moved images': (cnn(pool='max'), MOVED),
}
LAYERS = tuple(NETWORKS)[1:4]  # whose third stage is looked at: they differ in pooling alone


def load(split: str, count: int) -> sources.ArraySource:
  """The first images, on their canvas."""
  source = sources.load('fashion_mnist', split)
  data = source[np.arange(count)]
  border = (0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)
  return sources.ArraySource(np.pad(data['image'], border), data['label'], source.class_names)


def train(
  model: nn.Module, recipe: str, data: sources.ArraySource
) -> Iterator[tuple[dict[str, Any], Callable[[Any], jax.Array]]]:
  """For each seed the variables after training, and what brings images into the model's range."""
  total = EPOCHS * len(data) // BATCH
  rate = schedules.create('one_cycle', learning_rate=5e-3, total_steps=total)
  task, optimizer = classification(model), optimizers.create('adamw', rate, weight_decay=0.05)
  prepare = preprocess.make_preprocess(augment.parse(recipe), *sources.statistics(data))
  make = partial(steps.make_train_step, task, optimizer, preprocess=prepare)
  step = jax.jit(lambda key, current, batch: make(key=key)(current, batch))
  normalise = lambda images: prepare(None, images, None, train=False)
  for seed in claim.seeds():
    key, batches = jax.random.key(seed), pipeline.train_batches(data, seed=seed, batch_size=BATCH)
    current = state.init(key, task, optimizer, {'image': normalise(data.images[:1])})
    for _, batch in zip(range(total), batches, strict=False):
      current, _ = step(key, current, batch)
    yield current.variables, normalise


def main() -> None:
  data, test = load('train', TRAIN), load('test', TEST)
  distances = range(MARGIN + 1)
  right, down = ([equivariance.shift(y * d, x * d) for d in distances] for y, x in ((0, 1), (1, 0)))
  drawn = np.random.default_rng(0).integers(-MARGIN, MARGIN + 1, (20, 2)).tolist()
  anywhere = [equivariance.shift(*place) for place in drawn]
  figure, (left_axes, right_axes) = plt.subplots(1, 2, figsize=(9, 4.2), width_ratios=(3, 2))
  rows = []
  for color, (name, (model, recipe)) in enumerate(NETWORKS.items()):
    answer = jax.jit(lambda v, x, model=model: model.apply(v, x, train=False))
    curves, agreement, errors = [], [], []
    for variables, normalise in train(model, recipe, data):
      fn = lambda images, v=variables, n=normalise, answer=answer: answer(v, n(images))
      logits = equivariance.responses(fn, test.images, right + down)
      curves.append(equivariance.accuracy(logits, test.labels).reshape(2, -1).mean(0))
      logits = equivariance.responses(fn, test.images[:500], anywhere)
      agreement.append(equivariance.consistency(logits))
      if name in LAYERS:
        found = equivariance.errors(
          model, variables, test.images[:100], right, names=['stage3'], preprocess=normalise
        )
        errors.append(found['stage3'])
    size = sum(x.size for x in jax.tree.leaves(variables['params']))
    at = {f'{d} px': claim.spread([curve[d] for curve in curves], 3) for d in (0, 2, 4, 8)}
    rows.append({'network': name, 'parameters': f'{size:,}', **at})
    rows[-1]['consistency'] = claim.spread(agreement, 3)
    print(rows[-1], flush=True)
    draw(left_axes, curves, name, color)
    if errors:
      draw(right_axes, errors, name, color)
  left_axes.set(xlabel='shift (pixels)', ylabel='test accuracy', ylim=(0, 1))
  right_axes.set(
    xlabel='shift to the right (pixels)', ylabel="relative error of the third stage's map"
  )
  left_axes.set_title('Recognised after a shift to the right or down')
  right_axes.set_title('Equivariance: does the map move along?')
  figure.legend(*left_axes.get_legend_handles_labels(), loc='outside lower center', ncols=2)
  claim.save('shifts', rows, figure)


def draw(axes: Any, curves: list[np.ndarray], name: str, color: int) -> None:
  """The mean over seeds, within the least and the largest."""
  style = '--' if 'trained' in name else '-'
  axes.plot(np.mean(curves, 0), style, color=f'C{color}', label=name, marker='.')
  band = np.min(curves, 0), np.max(curves, 0)
  axes.fill_between(range(len(band[0])), *band, color=f'C{color}', alpha=0.2, linewidth=0)


if __name__ == '__main__':
  cli.run(main)
