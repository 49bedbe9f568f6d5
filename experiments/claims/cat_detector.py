"""Claim: convolution, pooling, fully connected layers and softmax learn to tell cats from the rest.

  python -m experiments.claims.cat_detector --workdir=DIR [--seeds=3] [--more_cats=FOLDER]

Two detectors, experiments/cat_detector/scratch.py and transfer.py, on crops of scikit-image's
photos (experiments/cat_detector/photos.py), beside ImageNet's own five classes of cats as
EfficientNet-Lite0 knows them, without any training here. FOLDER holds photos of cats that neither
detector has seen.

With every seed both find all 60 test crops of the cat that they were trained on and raise no false
alarm. Of four other cats, transfer finds two, the detector from scratch one with one seed and none
with the others, ImageNet's classes all four (docs/claims.md, 8).
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from matplotlib import pyplot

from cnnjax import cli, pretrained
from cnnjax.data import folder, preprocess, sources
from experiments.cat_detector import photos
from experiments.claims import claim

_MORE = flags.DEFINE_string('more_cats', '', 'A folder of photos of other cats, all different.')
_CATS = slice(281, 286)  # of ImageNet: tabby, tiger cat, Persian, Siamese, Egyptian
_BATCH = 32

Detector = Callable[[np.ndarray], np.ndarray]  # uint8 [N, H, W, 3] to the probability of a cat


def detector(logits: Callable[[Any], Any], cats: slice) -> Detector:
  """The summed probability of some classes, a batch at a time."""
  program = jax.jit(lambda images: jax.nn.softmax(logits(images))[:, cats].sum(-1))

  def detect(images: np.ndarray) -> np.ndarray:
    padded = np.resize(images, (-(-len(images) // _BATCH) * _BATCH, *images.shape[1:]))
    parts = [program(part) for part in np.split(padded, len(padded) // _BATCH)]
    return np.concatenate(parts)[: len(images)]

  return detect


def imagenet(size: int) -> tuple[Detector, int]:
  model, variables, info = pretrained.get('tf_efficientnet_lite0')
  normalise = preprocess.make_preprocess(None, info.mean, info.std)
  logits = lambda images: model.apply(variables, normalise(None, images, None, train=False))
  return detector(logits, _CATS), size


def trained(name: str, data: str, seed: int) -> tuple[Detector, int]:
  config = importlib.import_module(f'experiments.cat_detector.{name}').get_config()
  config.data.name, config.seed = data, seed
  run = claim.fit(config, f'cat_detector/{name}-{seed}')
  logits = lambda images: run.task.predict(run.variables, {'image': run.preprocess(images)})
  cat = run.description['class_names'].index('cat')
  return detector(logits, slice(cat, cat + 1)), config.data.image_size[0]


def images(data: str, size: int) -> dict[str, np.ndarray]:
  """The test crops of each photo, and the middle of each photo of another cat."""
  test = sources.load(data, 'test', image_size=(size, size))
  paths = [sources.describe(test, i).split(os.sep)[-2:] for i in range(len(test))]
  names = np.array([f'{kind}/{file.split("-")[0]}' for kind, file in paths])
  crops = test[np.arange(len(test))]['image']
  found = {name: crops[names == name] for name in dict.fromkeys(names.tolist())}
  resize = preprocess.Resize('center_crop', (size, size))
  for name in sorted(os.listdir(_MORE.value)) if _MORE.value else ():
    if name.lower().endswith(folder.EXTENSIONS):
      found[f'another/{name}'] = preprocess.decode(
        os.path.join(_MORE.value, name), transform=resize
      )[None]
  return found


def row(name: str, runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, str]:
  """A line of the table: what each seed called a cat, at a probability of more than one half."""
  called = [{photo: p > 0.5 for photo, p in run.items()} for run in runs]
  part = lambda run, wanted: np.concatenate([v for k, v in run.items() if wanted(k)] or [[]])
  cats = [part(run, lambda k: k.startswith('cat/')) for run in called]
  rest = [part(run, lambda k: k.startswith('not_cat/')) for run in called]
  others = [part(run, lambda k: k.startswith('another/')) for run in called]
  counts = lambda values, of: f'{", ".join(str(int(v.sum())) for v in values)} of {len(of[0])}'
  return {
    'detector': name,
    'cat crops found': counts(cats, cats),
    'false alarms': counts(rest, rest),
    'balanced accuracy': claim.spread(
      [(c.mean() + 1 - r.mean()) / 2 for c, r in zip(cats, rest, strict=True)]
    ),
    'other cats found': counts(others, others) if len(others[0]) else '-',
  }


def main() -> None:
  directory = os.path.join(flags.FLAGS.workdir, 'cat_detector', 'photos')
  if not os.path.exists(directory):
    photos.prepare(directory)
  data = f'folder:{directory}'
  groups = {
    'ImageNet, 96 px': [imagenet(96)],
    'ImageNet, 224 px': [imagenet(224)],
    'from scratch, 64 px': [trained('scratch', data, seed) for seed in claim.seeds()],
    'transfer, 96 px': [trained('transfer', data, seed) for seed in claim.seeds()],
  }
  found = {
    name: [
      {photo: detect(crops) for photo, crops in images(data, size).items()}
      for detect, size in detectors
    ]
    for name, detectors in groups.items()
  }

  shown = images(data, 48)
  figure, axes = pyplot.subplots(2, len(shown), figsize=(1.1 * len(shown), 3.2), squeeze=False)
  for photo, (above, below) in zip(shown, axes.T, strict=True):
    above.imshow(shown[photo][0], interpolation='none')  # as it is: a small file
    above.set_axis_off()
    kind, name = photo.split('/')
    above.set_title('another cat' if kind == 'another' else name.split('_')[0], fontsize=8)
    for i, (label, runs) in enumerate(found.items()):
      means = [float(run[photo].mean()) for run in runs]
      below.bar(i, np.mean(means), color=f'C{i}', label=label)
      below.vlines(i, min(means), max(means), color='black', linewidth=1)
    below.set(ylim=(0, 1), xticks=[], yticks=[0, 0.5, 1])
    below.tick_params(labelleft=below is axes[1, 0])
  axes[1, 0].set_ylabel('probability of a cat')
  handles, labels = axes[1, 0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside lower center', ncols=len(found), frameon=False)
  claim.save('cat_detector', [row(name, runs) for name, runs in found.items()], figure)


if __name__ == '__main__':
  cli.run(main)
