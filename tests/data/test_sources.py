"""Digits, arrays in memory, statistics, and the errors of names."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cnnjax.data import preprocess, sources
from cnnjax.errors import UserError


class Listed:
  """A source of images of any sizes; None is unreadable."""

  class_names = ('a', 'b')
  max_unreadable = 2

  def __init__(self, images):
    self.images = images
    shapes = {image.shape for image in images if image is not None}
    self.image_shape = shapes.pop() if len(shapes) == 1 else None

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    if np.ndim(index):
      return sources.stack([self[int(i)] for i in index])
    if self.images[index] is None:
      raise sources.UnreadableImage(f'file{index}')
    return {'image': self.images[index], 'label': index % 2}


def test_digits_are_scikit_learns():
  reference = load_digits()
  train, test = sources.digits('train'), sources.digits('test')
  images = np.concatenate([train.images, test.images]).reshape(-1, 64)
  labels = np.concatenate([train.labels, test.labels])
  expected = np.rint(reference.data / 16 * 255)
  order, expected_order = (np.lexsort(x.T) for x in (images, expected))
  np.testing.assert_array_equal(images[order], expected[expected_order])
  # As multisets of (image, label) they are the same, so nothing is in both splits or in neither.
  pairs = sorted(map(tuple, np.column_stack([images, labels]).astype(int).tolist()))
  wanted = np.column_stack([expected, reference.target]).astype(int)
  assert pairs == sorted(map(tuple, wanted.tolist()))


def test_digits_split_is_stratified():
  train, test = sources.load('digits', 'train'), sources.load('digits', 'test')
  assert (len(train), len(test)) == (1438, 359)
  assert train.image_shape == (8, 8, 1)
  assert train.class_names == tuple('0123456789')
  every = np.bincount(
    np.concatenate([train[np.arange(1438)]['label'], test[np.arange(359)]['label']])
  )
  counts = np.bincount(test[np.arange(359)]['label'])
  assert (np.abs(counts - every / 5) < 1).all()


def test_array_source():
  images = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)
  source = sources.ArraySource(images, np.arange(6, dtype=np.int32), ('a',))
  assert source.image_shape == (2, 2, 1)
  np.testing.assert_array_equal(source[4]['image'], images[4])
  assert source[4]['label'] == 4
  assert isinstance(source[4]['label'], int)
  batch = source[np.array([5, 5, 0])]
  np.testing.assert_array_equal(batch['image'], images[[5, 5, 0]])
  np.testing.assert_array_equal(batch['label'], [5, 5, 0])
  assert sources.materialise(source) is source
  assert sources.fits(source, 24)
  assert not sources.fits(source, 23)


def test_digits_resized():
  source = sources.load('digits', 'test', image_size=(32, 32))
  assert isinstance(source, sources.ArraySource)
  assert source.images.shape == (359, 32, 32, 1)
  original = sources.digits('test')
  np.testing.assert_array_equal(source.images[7], preprocess.resize(original.images[7], (32, 32)))
  np.testing.assert_array_equal(source.labels, original.labels)


@pytest.mark.parametrize('size', [16, 80])  # decoded by one thread, and by several
def test_materialise(size):
  images = list(np.random.default_rng(0).integers(0, 256, (600, size, 5, 3), np.uint8))
  whole = sources.materialise(Listed(images))
  np.testing.assert_array_equal(whole.images, images)
  np.testing.assert_array_equal(whole.labels, np.arange(600) % 2)
  assert whole.class_names == ('a', 'b')


def test_materialise_mixed_sizes():
  source = Listed([np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)])
  with pytest.raises(UserError, match=r'data\.image_size is not set'):
    sources.materialise(source)
  assert not sources.fits(source, 10**9)
  whole = sources.materialise(source, transform=preprocess.Resize('resize', (4, 4)))
  assert whole.image_shape == (4, 4, 3)


def test_materialise_leaves_out_what_is_unreadable(caplog):
  images = [np.full((2, 2, 1), i, np.uint8) for i in range(5)]
  source = Listed([images[0], None, images[2], images[3], None])
  with caplog.at_level('WARNING', 'absl'):
    whole = sources.materialise(source)
  np.testing.assert_array_equal(whole.images[:, 0, 0, 0], [0, 2, 3])
  np.testing.assert_array_equal(whole.labels, [0, 0, 1])
  assert [record.getMessage() for record in caplog.records] == [
    'unreadable image, left out: file1',
    'unreadable image, left out: file4',
  ]
  with pytest.raises(
    UserError, match=r'data\.max_unreadable: 3 more .*allowed 2: file0, file1, file4'
  ):
    sources.materialise(Listed([None, None, images[2], images[3], None]))


def test_statistics_are_exact():
  images = np.random.default_rng(0).integers(0, 256, (700, 5, 7, 3), np.uint8)
  images[..., 2] = 9
  mean, std = sources.statistics(sources.ArraySource(images, np.zeros(700, np.int32), ('a',)))
  scaled = images.reshape(-1, 3) / 255
  np.testing.assert_allclose(mean, scaled.mean(0), rtol=1e-12)
  np.testing.assert_allclose(std[:2], scaled.std(0)[:2], rtol=1e-12)
  assert std[2] == 1.0  # never varies
  # A streamed source below the sample's size gives the same numbers.
  assert sources.statistics(Listed(list(images))) == (mean, std)


def test_statistics_of_a_sample(monkeypatch):
  monkeypatch.setattr(sources, '_SAMPLE', 3)
  images = [np.full((1, 1, 1), 10 * i, np.uint8) for i in range(9)]
  mean, _ = sources.statistics(Listed(images))
  assert mean == (40 / 255,)  # examples 0, 4 and 8
  assert sources.statistics(Listed([*images[:4], None, *images[5:]]))[0] == (40 / 255,)
  with pytest.raises(UserError, match='no readable examples'):
    sources.statistics(Listed([None, None]))


@pytest.mark.parametrize(
  ('name', 'options', 'match'),
  [
    ('digit', {}, "data.name='digit' is unknown: did you mean 'digits'"),
    ('folder:', {}, 'data.name'),
    ('tfds:', {}, 'data.name'),
    ('digits:train,test', {}, 'data.name'),
    ('digits', {'image_size': (3,)}, r'data\.image_size=\(3,\)'),
    ('digits', {'image_size': (0, 4)}, r'data\.image_size=\(0, 4\)'),
    ('digits', {'resize': 'crop'}, r"data\.resize='crop' is unknown"),
    ('digits', {'resize': 'random_resized_crop'}, r'needs data\.image_size'),
  ],
)
def test_mistakes(name, options, match):
  with pytest.raises(UserError, match=match) as error:
    sources.load(name, 'train', **options)
  assert '\n' not in str(error.value)


def test_unknown_split():
  with pytest.raises(UserError, match="split='validation' is unknown"):
    sources.load('digits', 'validation')


def test_import_is_light():
  heavy = ('jax', 'grain', 'tensorflow_datasets', 'PIL')
  code = f'import sys, cnnjax.data.sources; print([m for m in {heavy} if m in sys.modules])'
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout == '[]\n'
