"""Claim 2: an edge filter finds edges anywhere; first layers learn oriented edges.

Command: python -m experiments.claims.edges --workdir=DIR
Needs: pip install 'cnnjax[test]'; python -m cnnjax.datasets prepare fashion_mnist
Result: shifting a photo shifts the response exactly; 147 at standing edges, 32 at lying ones. As
selective as the hand-set filter are 3 of 28 of Lite0's filters (random: none), and of a small
network's 9 %, or 30 % with strong weight decay (random: 4 %). docs/claims.md.
"""

import os

import jax
import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from scipy import ndimage
from skimage import color, data

from cnnjax import cli, pretrained
from cnnjax import config as config_lib
from cnnjax.analysis import filters
from cnnjax.layers import init
from cnnjax.training import loop
from experiments.claims import claim

VERTICAL = np.float32([[1, 0, -1]] * 3)[:, :, None, None]
PHOTOS = ('camera', 'coffee', 'astronaut', 'chelsea', 'rocket')
DECAY = {'usual': 0.05, 'strong': 1.0}  # weight decay, the only difference of two recipes


def grey(name: str) -> np.ndarray:
  """A photo of scikit-image's, float32 [H, W] from 0 to 255."""
  photo = getattr(data, name)()
  return np.float32(photo if photo.ndim == 2 else 255 * color.rgb2gray(photo))


def respond(photo: np.ndarray) -> np.ndarray:
  """The hand-set filter slid over a photo [H, W], where it fits."""
  images = photo[None, :, :, None]
  numbers = ('NHWC', 'HWIO', 'NHWC')
  slid = jax.lax.conv_general_dilated(images, VERTICAL, (1, 1), 'VALID', dimension_numbers=numbers)
  return np.asarray(slid)[0, :, :, 0]


def shift_error(photo: np.ndarray, seed: int) -> float:
  """The largest |response of the moved photo - moved response|, over what stays in the picture."""
  down, right = np.random.default_rng(seed).integers(1, 65, 2)
  height, width = photo.shape
  moved = np.pad(photo, ((down, 0), (right, 0)))[:height, :width]
  here, there = respond(photo), respond(moved)[down:, right:]
  return float(np.abs(there - here[: there.shape[0], : there.shape[1]]).max())


def by_direction(photo: np.ndarray) -> np.ndarray:
  """How strongly the filter answers to edges of each direction.

  An edge is where the gradient (of a Gaussian of 1.5 pixels) is among a photo's strongest tenth.

  Returns:
    Mean |response| at edges that stand (within 22.5 degrees), and that lie; the share that stands
    of the strongest 1 % of responses, and of all edges.
  """
  right, down = (
    ndimage.gaussian_filter(photo, 1.5, order)[1:-1, 1:-1] for order in ((0, 1), (1, 0))
  )
  response, strength = np.abs(respond(photo)), np.hypot(right, down)
  edge = strength >= np.quantile(strength, 0.9)
  lean = np.rad2deg(np.arctan2(np.abs(down), np.abs(right)))  # 0 where the edge stands, 90 lies
  stands, lies = lean <= 22.5, lean >= 67.5
  strongest = response >= np.quantile(response, 0.99)
  means = response[edge & stands].mean(), response[edge & lies].mean()
  return np.array([*means, stands[strongest].mean(), stands[edge].mean()])


def recipe(seed: int, decay: float) -> config_lib.Config:
  """A network with one layer of 32 filters of 7 x 7, on 10,000 pictures of clothes."""
  c = config_lib.default()
  c.seed = seed
  c.data.name = 'tfds:fashion_mnist:train[:10000],test[:2000]'
  c.model = {'name': 'cnn', 'features': (32,), 'kernel_size': 7, 'norm': 'batch', 'dense': (64,)}
  c.epochs = 6
  c.optimizer.learning_rate, c.optimizer.weight_decay = 1e-2, decay
  c.schedule.name = 'cosine'
  c.eval_every = c.log_every = 10_000  # the last step is evaluated always
  return c


def first_layers(decay: str) -> tuple[list[np.ndarray], list[np.ndarray], list[float]]:
  """For each seed the first layer after training, before it, and the accuracy."""
  after, before, accuracy = [], [], []
  for seed in claim.seeds():
    name = f'edges-{decay}-{seed}'
    run = claim.fit(recipe(seed, DECAY[decay]), name)
    key, _ = jax.random.split(jax.random.key(seed))  # as training starts
    start = run.task.init(key, {'image': np.zeros((1, 28, 28, 1), np.float32)})
    for kernels, variables in ((after, run.variables), (before, start)):
      kernels.append(np.asarray(variables['params']['stage1']['conv1']['kernel']))
    accuracy.append(loop.last_evaluation(os.path.join(flags.FLAGS.workdir, name))['accuracy'])
  return after, before, accuracy


def main() -> None:
  photos = {name: grey(name) for name in PHOTOS}
  errors = [
    shift_error(p, seed) for p in photos.values() for seed in range(10 * len(claim.seeds()))
  ]
  stand, lie, found, all_edges = np.mean([by_direction(p) for p in photos.values()], axis=0)
  _, variables, _ = pretrained.get('tf_efficientnet_lite0')
  stem = np.asarray(variables['params']['stem']['conv']['kernel'])
  norms = np.sqrt((stem**2).sum((0, 1, 2)))
  stem = stem[..., norms > 0.01 * norms.max()]  # without those that are all but 0
  draws = [init.he_fan_out(jax.random.key(seed), stem.shape) for seed in claim.seeds()]
  groups, accuracy = {'Lite0': [stem], 'Lite0, random': draws}, {}
  for decay in DECAY:
    groups[f'clothes, {decay} decay'], before, accuracy[decay] = first_layers(decay)
    groups['clothes, random'] = before

  hand = float(filters.orientation(VERTICAL).selectivity[0])
  tuned = {n: [filters.orientation(k).selectivity for k in group] for n, group in groups.items()}
  mean = {n: claim.spread([s.mean() for s in group], 3) for n, group in tuned.items()}
  above = {n: claim.spread([(s >= hand).mean() for s in group], 3) for n, group in tuned.items()}
  rows = [
    ('largest change of a response when a photo is shifted', f'{max(errors):g}', ''),
    ('mean response at edges that stand; that lie', f'{stand:.0f}', f'{lie:.0f}'),
    ('standing, of the strongest responses; of all edges', f'{found:.2f}', f'{all_edges:.2f}'),
    ('selectivity of the hand-set filter', f'{hand:.3f}', ''),
    *((f'{d} decay: test accuracy', claim.spread(a), '') for d, a in accuracy.items()),
  ]
  for name in groups:
    if (chance := f'{name.partition(",")[0]}, random') != name:
      rows.append((f'{name}: mean selectivity; random', mean[name], mean[chance]))
      rows.append((f'{name}: at least as selective; random', above[name], above[chance]))
  rows = [dict(zip(('measured', 'value', 'beside it'), row, strict=True)) for row in rows]
  figure = draw(photos['camera'], groups, tuned, hand)
  claim.save('edges', rows, figure)
  figure.savefig(os.path.join(flags.FLAGS.workdir, 'edges.jpg'), dpi=110)


def draw(photo, groups, tuned, hand) -> plt.Figure:
  """A photo and what the filter finds; filters; how selective they are."""
  figure, axes = plt.subplots(2, 3, figsize=(9, 6))
  pictures = {
    'a photo (skimage.data.camera)': photo / 255,
    '|response| of the hand-set filter': 1 - np.abs(respond(photo)) / 400,
    "Lite0's first layer": groups['Lite0'][0],
    'clothes, strong decay, seed 0': groups['clothes, strong decay'][0],
    'the same before training': groups['clothes, random'][0],
  }
  for axis, (title, picture) in zip(axes.flat, pictures.items(), strict=False):
    if picture.ndim == 4:  # filters, the most selective first
      order = np.argsort(-filters.orientation(picture).selectivity, kind='stable')
      picture = filters.sheet(filters.pictures(picture[..., order]), columns=7)
    axis.imshow(picture, cmap='gray', vmin=0, vmax=1)
    axis.set_title(title, fontsize=8)
    axis.axis('off')
  axis = axes[1, 2]
  for name, values in tuned.items():
    values = np.sort(np.concatenate(values))
    axis.step(values, 1 - np.arange(len(values)) / len(values), label=name)
  axis.axvline(hand, color='black', linestyle=':', label='hand-set filter')
  axis.set(xlabel='orientation selectivity', ylabel='share of filters at least so selective')
  axis.legend(fontsize=7)
  return figure


if __name__ == '__main__':
  cli.run(main)
