"""The cat detector: its photos are kept apart, and it learns from a folder of anybody's."""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from cnnjax import config
from cnnjax.data import sources
from cnnjax.errors import UserError
from cnnjax.training import loop
from experiments.cat_detector import photos, scratch, transfer

DOCS = pathlib.Path(__file__).parent.parent / 'docs' / 'claims.md'
CHELSEA = (451, 300)  # width and height of chelsea.png


def test_photos_are_prepared(tmp_path):
  to = str(tmp_path / 'photos')
  photos.prepare(to, per_split={'train': 14, 'test': 10})
  found = {}
  for split, count in (('train', 14), ('test', 10)):
    source = sources.load(f'folder:{to}', split)
    assert source.class_names == ('cat', 'not_cat')
    examples = source[np.arange(len(source))]
    assert examples['image'].shape == (2 * count, photos.SIDE, photos.SIDE, 3)
    assert examples['label'].tolist() == [0] * count + [1] * count
    found[split] = {pathlib.Path(sources.describe(source, i)).name for i in range(len(source))}
  stems = {split: {name.split('-')[0] for name in names} for split, names in found.items()}
  assert stems['train'] & stems['test'] == {'chelsea'}
  with pytest.raises(UserError, match='exists already'):
    photos.prepare(to)


def test_crops_of_training_and_testing_share_no_pixel():
  seen = {}
  for photo in photos.PHOTOS:
    if photo.label == 'cat':
      seen[photo.split] = np.zeros(CHELSEA, bool)
      for left, top, right, bottom in photos.boxes(photo, CHELSEA, 200):
        assert right - left == bottom - top
        assert 0 <= left < right <= CHELSEA[0]
        assert 0 <= top < bottom <= CHELSEA[1]
        seen[photo.split][left:right, top:bottom] = True
  assert not np.any(seen['train'] & seen['test'])
  assert min(seen['train'].mean(), seen['test'].mean()) > 0.3
  grown = np.flatnonzero(seen['test'].any(1))[0] - np.flatnonzero(seen['train'].any(1))[-1]
  assert grown > 5  # resampling looks a few pixels around, within the box alone

  whole = np.zeros((*CHELSEA[::-1], 3), np.uint8)
  box = next(photos.boxes(photos.PHOTOS[0], CHELSEA, 1))
  dark = photos.crop(Image.fromarray(whole), box)
  left, top, right, bottom = box
  whole[:] = 255
  whole[top:bottom, left:right] = 0
  np.testing.assert_array_equal(dark, photos.crop(Image.fromarray(whole), box))


def test_detects_in_a_folder_of_ones_own(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  rng = np.random.default_rng(0)
  for name in ('bird', 'cat', 'dog'):
    folder = tmp_path / 'pets' / name
    folder.mkdir(parents=True)
    for i in range(12):
      pixels = rng.integers(0, 256, (70 + i, 90, 3), np.uint8)
      Image.fromarray(pixels).save(folder / f'{i}.jpg')
  Image.fromarray(pixels).save('photo.jpg')
  for module in (scratch, transfer):  # the second without its steps: test_experiments.py has them
    c = module.get_config()
    c.data.name = 'folder:pets'
    source = sources.load(c.data.name, 'train', image_size=c.data.image_size, resize=c.data.resize)
    assert (source.class_names[1], source.image_shape) == ('cat', (*c.data.image_size, 3))
  c = scratch.get_config()
  c.data.name, c.batch_size, c.steps, c.parallel.devices = 'folder:pets', 4, 2, 1
  c.schedule.warmup_epochs = 0
  c.model.features, c.model.dense, c.model.norm = (4,), (), 'none'  # compiles faster
  loop.train(config.validate(c), 'runs/cats')

  (code,) = re.findall(r'```python\n(.*?)```', DOCS.read_text().split('## 8.')[1], re.DOTALL)
  names = {}
  exec(compile(code, 'claims.md', 'exec'), names)
  assert list(names['probabilities']) == ['bird', 'cat', 'dog']
  assert sum(names['probabilities'].values()) == pytest.approx(1)
