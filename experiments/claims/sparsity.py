"""Claim 3: connections are sparse, each output depends on only its receptive field.

Command: python -m experiments.claims.sparsity --workdir=DIR [--seeds=3]
Result: of the derivatives outside the theoretical fields of LeNet-5 and of a rectifier network, not
one differs from zero; within, all of LeNet-5's do (docs/claims.md).
"""

import jax
import numpy as np
from matplotlib import pyplot as plt

from cnnjax import analysis, cli, models
from cnnjax.analysis import ledger
from cnnjax.data import preprocess, sources
from cnnjax.layers.conv import conv
from experiments.claims import claim

NETWORKS = {
  'lenet5': ('stage1/conv', 'stage1', 'stage2/conv', 'stage2', 'head'),
  'cnn': ('stage1/conv1', 'stage1', 'stage2/conv1', 'stage2', 'head'),
}
OPTIONS = {'lenet5': {}, 'cnn': {'features': (6, 16), 'dense': (32,)}}
IMAGES = 3


def digits(size):
  """The first test digits, normalised by the training set."""
  load = lambda split: sources.load('digits', split, image_size=(size, size))
  normalise = preprocess.make_preprocess(None, *sources.statistics(load('train')))
  return normalise(None, load('test')[np.arange(IMAGES)]['image'], None, train=False)


def inside(field, size):
  """Which pixels lie in the theoretical field of which position: [H', W', H, W], or [H, W]."""
  sides = []
  for axis, positions in enumerate(field.output[1:-1] or (1, 1)):
    centre = field.offset[axis] + field.stride[axis] * np.arange(positions)[:, None]
    sides.append(np.abs(np.arange(size) - centre) <= (field.size[axis] - 1) / 2)
  found = np.einsum('iy,jx->ijyx', *sides)
  return found if len(field.output) == 4 else found[0, 0]


def measure(model, layers, images):
  """Derivatives of every layer's outputs by the pixels, with random weights.

  Returns:
    layer to integers [seed, 4]: pairs of output and pixel, those with the pixel in the output's
    theoretical field, and derivatives that aren't 0 within and outside of them; over all images.
  """
  fields = {f.name: f for f in analysis.fields(model, images.shape[1:])}
  units = lambda image, variables: models.features(model, variables, image[None], layers)
  init, jacobian = jax.jit(model.init), jax.jit(jax.jacfwd(units))
  found = {layer: np.zeros((len(claim.seeds()), 4), int) for layer in layers}
  for seed in claim.seeds():
    variables = init(jax.random.key(seed), images)
    for image in images:
      for layer, derivatives in jacobian(image, variables).items():
        hit = np.asarray(derivatives[0, ..., 0] != 0)  # [H', W', F, H, W], or [F, H, W]
        field = np.broadcast_to(inside(fields[layer], len(image))[..., None, :, :], hit.shape)
        counts = hit.size, field.sum(), (hit & field).sum(), (hit & ~field).sum()
        found[layer][seed] += counts
  return found


def pattern(fn, image):
  """The Jacobian as a matrix of truth values, outputs by pixels."""
  return np.asarray(jax.jacobian(fn)(image[None]) != 0).reshape(-1, image.size)


def picture(image):
  """The matrices of one, two and three 3 x 3 convolutions of a digit, and of a dense layer."""
  layer = conv(1, 3, padding='SAME')
  kernels = [layer.init(key, image[None]) for key in jax.random.split(jax.random.key(0), 3)]

  def stack(x, depth):
    for kernel in kernels[:depth]:
      x = jax.nn.tanh(layer.apply(kernel, x))
    return x

  figure, axes = plt.subplots(1, 4, figsize=(8, 2.7), sharey=True, layout='compressed')
  dense = jax.random.normal(jax.random.key(1), (64, 64))
  shown = {f'{n} convolution{"s" * (n > 1)} of 3 x 3': n for n in (1, 2, 3)}
  matrices = {k: pattern(lambda x, n=n: stack(x, n), image) for k, n in shown.items()}
  matrices['fully connected'] = pattern(lambda x: x.reshape(1, -1) @ dense, image)
  for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
    ax.imshow(~matrix, cmap='gray', interpolation='nearest')
    ax.set_title(f'{title}\n{matrix.mean():.1%} of {matrix.size:,}', fontsize=9)
    ax.set_xlabel('pixel of the 8 x 8 digit')
  axes[0].set_ylabel('output')
  return figure


def main():
  rows, images = [], digits(32)
  for name, layers in NETWORKS.items():
    model = models.create(name, num_classes=10, **OPTIONS[name])
    counted = {e.name: e.connections for e in ledger.entries(model, (32, 32, 1))}
    for layer, counts in measure(model, layers, images).items():
      pairs, allowed, _, _ = counts[0] // IMAGES
      direct = layer == layers[0]  # of the image itself: these are the ledger's connections
      rows.append(
        {
          'network': name,
          'layer': layer,
          'pairs of output and pixel': f'{pairs:,}',
          'pixel in the field': f'{allowed:,} ({allowed / pairs:.2%})',
          'by the ledger': f'{counted[layer]:,}' if direct else '',
          'derivative not 0, within': claim.spread(counts[:, 2] / counts[:, 1]),
          'outside': f'{counts[:, 3].sum():,}',
        }
      )
  claim.save('sparsity', rows, picture(digits(8)[0]))


if __name__ == '__main__':
  cli.run(main)
