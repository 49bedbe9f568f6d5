"""A folder of real photos for the cat detector: crops of those that ship inside scikit-image.

  python -m experiments.cat_detector.photos --to=runs/cat_photos

writes `train/` and `test/`, each with `cat/` and `not_cat/`. scikit-image ships one photo of a cat,
Chelsea. So the training crops of a cat come from the left part of that photo, one eye and a cheek,
and the test crops from the right part, the nose and the other eye: no pixel is in both, yet it is
the same cat in the same light. What isn't a cat is seven whole photos for training and five others
for testing. A detector that does well on these test crops knows this cat; about cats in general
that says little (docs/claims.md, 8).
"""

import importlib.util
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from cnnjax import cli
from cnnjax.errors import UserError


class Photo(NamedTuple):
  """A part of a photo that crops are taken from.

  Attributes:
    file: in scikit-image's `data` folder.
    split: 'train' or 'test'.
    label: 'cat' or 'not_cat'.
    part: left, top, right and bottom in pixels; None is the whole photo.
  """

  file: str
  split: str
  label: str
  part: tuple[int, int, int, int] | None = None


PHOTOS = (
  Photo('chelsea.png', 'train', 'cat', (0, 0, 215, 300)),
  Photo('chelsea.png', 'test', 'cat', (225, 0, 395, 300)),  # right of 395 there is no cat
  *(
    Photo(file, 'train', 'not_cat')
    for file in (
      'astronaut.png',
      'brick.png',
      'gravel.png',
      'ihc.png',
      'motorcycle_left.png',
      'retina.jpg',
      'rocket.jpg',
    )
  ),
  *(
    Photo(file, 'test', 'not_cat')
    for file in ('camera.png', 'coffee.png', 'coins.png', 'grass.png', 'hubble_deep_field.jpg')
  ),
)
PER_SPLIT = {'train': 140, 'test': 60}  # crops of each class
SIDE = 128  # height and width of a stored crop

_TO = flags.DEFINE_string('to', 'runs/cat_photos', 'The folder to write; it must not exist.')


def boxes(photo: Photo, size: tuple[int, int], count: int) -> Iterator[tuple[int, int, int, int]]:
  """Squares inside a photo's part, 60 to 90 % of its shorter side; always the same ones.

  Args:
    photo: of PHOTOS.
    size: width and height of the whole photo.
    count: how many.

  Yields:
    left, top, right, bottom in the whole photo's pixels.
  """
  left, top, right, bottom = photo.part or (0, 0, *size)
  rng = np.random.default_rng([PHOTOS.index(photo), 2026])
  for _ in range(count):
    side = int(rng.uniform(0.6, 0.9) * min(right - left, bottom - top))
    x, y = rng.integers(left, right - side + 1), rng.integers(top, bottom - side + 1)
    yield int(x), int(y), int(x) + side, int(y) + side


def crop(photo: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
  """The square at its stored size, made of its own pixels alone."""
  return photo.crop(box).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def prepare(to: str, *, per_split: dict[str, int] = PER_SPLIT) -> None:
  """Writes the folder, whole or not at all.

  Args:
    to: where; it must not exist.
    per_split: crops of each class, shared among its photos.

  Raises:
    UserError: it exists, or scikit-image isn't installed.
  """
  found = importlib.util.find_spec('skimage')
  if found is None or found.origin is None:
    raise UserError('the photos are those of scikit-image, not installed: pip install cnnjax[test]')
  if os.path.exists(to):
    raise UserError(f'--to={to!r} exists already')
  unfinished = pathlib.Path(f'{to}.unfinished')
  shutil.rmtree(unfinished, ignore_errors=True)
  for photo in PHOTOS:
    alike = [p for p in PHOTOS if (p.split, p.label) == (photo.split, photo.label)]
    count = -(-per_split[photo.split] // len(alike))
    folder = unfinished / photo.split / photo.label
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(pathlib.Path(found.origin).parent / 'data' / photo.file) as image:
      whole = image.convert('RGB')
    for i, box in enumerate(boxes(photo, whole.size, count)):
      crop(whole, box).save(folder / f'{pathlib.Path(photo.file).stem}-{i:03}.png')
  unfinished.rename(to)


def main() -> None:
  prepare(_TO.value)
  print(f'--config.data.name=folder:{_TO.value}')


if __name__ == '__main__':
  cli.run(main)
