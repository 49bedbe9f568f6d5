"""Claim 7: a network's features go from low to high level with depth.

Command: python -m experiments.claims.depth --workdir=DIR
Needs: pip install 'cnnjax[test]'; python -m cnnjax.datasets prepare fashion_mnist
Result: edge directions are read best at stage 2 (0.436; 0.138 at the stem, 0.218 at the end),
which photo at stage 6 (0.893), kinds of clothes at stage 5 (0.855). docs/claims.md.
"""

import os
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from PIL import Image, ImageOps
from scipy import ndimage
from skimage import data

from cnnjax import analysis, cli, models, pretrained
from cnnjax.analysis import filters, similarity, synthesis
from cnnjax.data import sources
from experiments.claims import claim

LAYERS = ('stem', *(f'stage{i}' for i in range(1, 8)), 'head/last')
PHOTOS = (
  'astronaut', 'brick', 'camera', 'cat', 'coffee', 'coins', 'grass', 'gravel',
  'hubble_deep_field', 'immunohistochemistry', 'moon', 'page', 'rocket', 'text',
)  # fmt: skip
SIDE = 96  # pixels of an image
TRAIN, TEST = 600, 400  # examples for each seed, drawn from half as many more
NUMBERS = 400  # that a probe sees of each layer
CLOTHES = f'tfds:fashion_mnist:train[:{TRAIN * 3 // 2}],test[:{TEST * 3 // 2}]'


def photo(name: str) -> Image.Image:
  """A photo of scikit-image's, in colour."""
  return Image.fromarray(getattr(data, name)()).convert('RGB')


def edge_angle(image: np.ndarray) -> tuple[float, float]:
  """The angle of a grey image's edges, in [0, pi), and how far they agree on it, in [0, 1].

  From the mean of the squared gradient (of a Gaussian of 2 pixels) as a complex number.
  """
  down, right = (
    ndimage.gaussian_filter(np.float64(image), 2, order=order) for order in ((1, 0), (0, 1))
  )
  squares = (right - 1j * down) ** 2
  mean = squares.mean()
  agreement = abs(mean) / (abs(squares).mean() + 1e-9)
  return float((np.angle(mean) / 2 + np.pi / 2) % np.pi), float(agreement)


def crops(split: str, number: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Turned crops of the photos' left halves to train on and of their right halves to test.

  Grey; only those whose edges agree on a direction.

  Returns:
    uint8 `[number, SIDE, SIDE, 3]`, and two labels: in which of eight sectors the edges' angle
    lies, and which photo it is.
  """
  rng = np.random.default_rng(split == 'test')
  photos = [photo(name).convert('L') for name in PHOTOS]
  images, angles, whose = [], [], []
  while len(images) < number:
    which = len(images) % len(PHOTOS)
    middle, height = photos[which].width // 2, photos[which].height
    left = rng.integers(middle - 136) + (middle if split == 'test' else 0)
    top = rng.integers(height - 136)
    window = photos[which].crop((left, top, left + 136, top + 136))
    turned = window.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC)
    crop = np.asarray(turned.crop((20, 20, 20 + SIDE, 20 + SIDE)))
    angle, agreement = edge_angle(crop)
    if agreement >= 0.1:
      images.append(np.repeat(crop[..., None], 3, axis=-1))
      angles.append(int(angle / np.pi * 8 + 0.5) % 8)
      whose.append(which)
  return np.stack(images), {'edge direction': np.array(angles), 'which photo': np.array(whose)}


def clothes(split: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Fashion-MNIST, enlarged."""
  source = sources.materialise(sources.load(CLOTHES, split))
  large = [
    Image.fromarray(x[..., 0]).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for x in source.images
  ]
  return np.repeat(np.stack(large)[..., None], 3, axis=-1), {'kind of clothes': source.labels}


def make_look(model: nn.Module) -> Callable[[Any, np.ndarray], dict[str, np.ndarray]]:
  """`(variables, images) -> features` of all layers, averaged over 3 x 3 places, `[N, 9 C]`."""

  @jax.jit
  def run(variables, part):
    found = models.features(model, variables, (part.astype('float32') - 127) / 128, LAYERS)
    return {name: similarity.pooled(x, 3) for name, x in found.items()}

  def look(variables, images):
    parts = [run(variables, images[i : i + 100]) for i in range(0, len(images), 100)]
    return {name: np.concatenate([part[name] for part in parts]) for name in LAYERS}

  return look


def project(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """NUMBERS random combinations of each layer's features: probes have equally many weights."""
  rng = np.random.default_rng(0)
  return {
    n: x @ rng.standard_normal((x.shape[1], NUMBERS), np.float32) for n, x in features.items()
  }


def probe(train, labels, test, truth) -> dict[str, list[float]]:
  """Each layer's accuracy for each seed, which draws the examples to train and to test with."""
  accuracy = {name: [] for name in train}
  for seed in claim.seeds():
    rng = np.random.default_rng(seed)
    i, j = rng.permutation(len(labels))[:TRAIN], rng.permutation(len(truth))[:TEST]
    some, others = {n: x[i] for n, x in train.items()}, {n: x[j] for n, x in test.items()}
    found = similarity.probe(some, labels[i], others, truth[j], num_classes=labels.max() + 1)
    for name, value in found.items():
      accuracy[name].append(value)
  return accuracy


def strongest(model, variables) -> plt.Figure:
  """What the first channels of four layers answer to most, in colour photos."""
  layers = ('stage1', 'stage3', 'stage5', 'head/last')
  photos = np.stack([ImageOps.fit(photo(name), (384, 384)) for name in PHOTOS])
  run = jax.jit(lambda x: models.features(model, variables, x, layers))
  maps = run((photos.astype('float32') - 127) / 128)
  fields = {field.name: field for field in analysis.fields(model, (384, 384, 3))}
  figure, axes = plt.subplots(1, 4, figsize=(10, 3.6))
  for axis, name in zip(axes, layers, strict=True):
    found = synthesis.strongest(maps[name][..., :6], 4)
    side = tuple(min(int(n), 128) for n in fields[name].size)  # the middle of a larger field
    shown = synthesis.patches(photos, found, fields[name]._replace(size=side))  # [6, 4, h, w, 3]
    rows = shown.reshape(24, *shown.shape[2:]) / 255
    axis.imshow(filters.sheet(rows, columns=4, gap=max(1, side[0] // 12)), interpolation='nearest')
    axis.set_title(f'{name}: field {int(fields[name].size[0])}, shown {side[0]} px', fontsize=8)
    axis.axis('off')
  return figure


def main() -> None:
  model, trained, _ = pretrained.get('tf_efficientnet_lite0')
  quick = {'xla_backend_optimization_level': 1}  # it runs once
  init = jax.jit(model.init, compiler_options=quick)
  start = init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3), np.float32))
  look = make_look(model)
  networks = {'ImageNet': trained, 'random': start}
  size = {'train': TRAIN * 3 // 2, 'test': TEST * 3 // 2}
  sets = [
    {split: crops(split, number) for split, number in size.items()},
    {split: clothes(split) for split in size},
  ]
  accuracy, seen = {}, {}
  for images in sets:
    (train, labels), (test, truth) = images['train'], images['test']
    for network, variables in networks.items():
      seen[network] = look(variables, test)
      parts = project(look(variables, train)), project(seen[network])
      for task in labels:
        accuracy[task, network] = probe(parts[0], labels[task], parts[1], truth[task])
  rows = [
    {'layer': layer}
    | {f'{task}, {network}': claim.spread(a[layer], 3) for (task, network), a in accuracy.items()}
    for layer in LAYERS
  ]
  alike = similarity.compare(seen['ImageNet'], debiased=True)  # on the clothes
  own = np.diag(similarity.compare(*seen.values(), debiased=True))
  rows = [
    row | {'CKA with the stem': f'{a:.2f}', 'with the random layer': f'{b:.2f}'}
    for row, a, b in zip(rows, np.asarray(alike[0]), own, strict=True)
  ]
  claim.save('depth', rows, draw(accuracy, alike))
  strongest(model, trained).savefig(os.path.join(flags.FLAGS.workdir, 'depth.jpg'), dpi=110)


def draw(accuracy, alike) -> plt.Figure:
  """Accuracy by depth, and how alike layers are."""
  figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.2), width_ratios=(3, 2))
  tasks = list(dict.fromkeys(task for task, _ in accuracy))
  for (task, network), found in accuracy.items():
    values = np.array([found[layer] for layer in LAYERS])
    color, style = f'C{tasks.index(task)}', '-' if network == 'ImageNet' else ':'
    left.plot(LAYERS, values.mean(1), style, color=color, label=f'{task}, {network} weights')
    left.fill_between(LAYERS, values.min(1), values.max(1), color=color, alpha=0.2)
  left.set(ylabel='test accuracy of a linear probe', ylim=(0, 1))
  left.tick_params(axis='x', rotation=45)
  figure.legend(fontsize=7, ncols=3, loc='outside lower left')
  picture = right.imshow(alike, vmin=0, vmax=1, cmap='magma')
  right.set_xticks(range(len(LAYERS)), LAYERS, rotation=90)
  right.set_yticks(range(len(LAYERS)), LAYERS)
  right.set_title('CKA of layers, clothes', fontsize=9)
  figure.colorbar(picture, ax=right, shrink=0.8)
  return figure


if __name__ == '__main__':
  cli.run(main)
