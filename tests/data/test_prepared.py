"""IDX files to ArrayRecord and back, without TensorFlow; sets of TFDS by name."""

import gzip
import pickle
import sys

import numpy as np
import pytest

from cnnjax.data import builders, prepared, sources
from cnnjax.errors import UserError
from tests.data.idx_files import NAMES, write_set
from tests.data.mock import mock_tfds

COUNTS = {'train': 30, 'test': 20}


@pytest.fixture(scope='module')
def fashion(tmp_path_factory):
  root = tmp_path_factory.mktemp('fashion')
  arrays = write_set(root / 'idx', COUNTS)
  path, made = builders.prepare(
    'fashion_mnist', root / 'idx', data_dir=str(root / 'tfds'), counts=COUNTS
  )
  assert made
  assert path == root / 'tfds/fashion_mnist/3.0.1'
  return root, arrays


def test_reads_back_what_was_prepared_in_order(fashion):
  root, arrays = fashion
  for split, (images, labels) in arrays.items():
    source = sources.load('fashion_mnist', split, data_dir=str(root / 'tfds'))
    assert source.image_shape == (28, 28, 1)
    assert source.class_names[9] == 'Ankle boot'
    several = source[np.array([4, 2])]
    np.testing.assert_array_equal(several['image'][..., 0], images[[4, 2]])
    np.testing.assert_array_equal(several['label'], labels[[4, 2]])
    assert several['label'].dtype == np.int32
    whole = sources.materialise(source)
    np.testing.assert_array_equal(whole.images[..., 0], images)
    np.testing.assert_array_equal(whole.labels, labels)
    assert whole.labels.dtype == np.int32
  assert 'tensorflow' not in sys.modules


def test_preparing_again_changes_nothing(fashion):
  root, _ = fashion
  before = {p: p.stat().st_mtime_ns for p in (root / 'tfds').rglob('*')}
  _, made = builders.prepare('fashion_mnist', root / 'gone', data_dir=str(root / 'tfds'))
  assert not made
  assert before == {p: p.stat().st_mtime_ns for p in (root / 'tfds').rglob('*')}


def test_leaves_only_the_set(fashion):
  root, _ = fashion
  assert [p.name for p in (root / 'tfds').iterdir()] == ['fashion_mnist']
  assert [p.name for p in (root / 'tfds/fashion_mnist').iterdir()] == ['3.0.1']


def test_source_pickles_and_sub_splits(fashion):
  root, arrays = fashion
  name = 'fashion_mnist:train[:20],train[20:]'
  train, test = (sources.load(name, s, data_dir=str(root / 'tfds')) for s in ('train', 'test'))
  assert (len(train), len(test)) == (20, 10)
  again = pickle.loads(pickle.dumps(test))
  np.testing.assert_array_equal(again[3]['image'][..., 0], arrays['train'][0][23])
  assert again.describe(3) == 'fashion_mnist:train[20:] example 3'


def test_resizes(fashion):
  root, _ = fashion
  source = sources.load('fashion_mnist', 'test', data_dir=str(root / 'tfds'), image_size=(32, 32))
  assert source.image_shape == source[0]['image'].shape == (32, 32, 1)


@pytest.mark.parametrize(
  ('suffix', 'match'),
  [
    (':train,nope', "split 'nope', its splits are train, test"),
    (':train', 'allowed is NAME or NAME:TRAIN_SPLIT,TEST_SPLIT'),
    (':train,test,test', 'allowed is NAME or'),
    (':,test', 'allowed is NAME or'),
  ],
)
def test_bad_splits(fashion, suffix, match):
  root, _ = fashion
  with pytest.raises(UserError, match=match):
    sources.load(f'fashion_mnist{suffix}', 'test', data_dir=str(root / 'tfds'))


@pytest.mark.parametrize('kind', ['missing', 'short', 'corrupt', 'labels'])
def test_damage_leaves_nothing(tmp_path, kind):
  write_set(tmp_path / 'idx', COUNTS)
  file = tmp_path / 'idx' / f'{NAMES["test"][kind == "labels"]}.gz'
  if kind == 'missing':
    file.unlink()
  elif kind == 'short':
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-5]))
  elif kind == 'corrupt':
    file.write_bytes(file.read_bytes()[:-50])
  else:
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1] + b'\x0a'))
  with pytest.raises(UserError, match='t10k-'):
    builders.prepare('mnist', tmp_path / 'idx', data_dir=str(tmp_path / 'tfds'), counts=COUNTS)
  assert not list(tmp_path.glob('tfds/**/*'))


def test_crash_while_writing_leaves_no_set(tmp_path, monkeypatch):
  write_set(tmp_path / 'idx', COUNTS)

  def fails(self, images, labels):
    yield 0, {'image': b'', 'label': 0}
    raise OSError('disk full')

  monkeypatch.setattr(builders.Mnist, '_generate_examples', fails)
  with pytest.raises(UserError, match='disk full'):
    builders.prepare('mnist', tmp_path / 'idx', data_dir=str(tmp_path / 'tfds'), counts=COUNTS)
  assert not list(tmp_path.glob('tfds/mnist/*'))
  with pytest.raises(UserError, match='not prepared'):
    sources.load('mnist', 'train', data_dir=str(tmp_path / 'tfds'))


def test_no_network_names_the_ways_out(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise builders.urllib.error.URLError('no route')

  monkeypatch.setattr(builders.urllib.request, 'urlopen', refuse)
  with pytest.raises(UserError, match=r'no route.*--from=DIR.*dataset-fashion-mnist'):
    builders.download('fashion_mnist', tmp_path)
  with pytest.raises(UserError, match=r'no route.*--from=DIR$'):
    builders.prepare('mnist', data_dir=str(tmp_path / 'tfds'))


def test_downloads(tmp_path, monkeypatch):
  arrays = write_set(tmp_path / 'site', COUNTS)
  monkeypatch.setitem(
    builders.SETS, 'mnist', builders.SETS['mnist']._replace(urls=(f'file://{tmp_path}/site/',))
  )
  builders.prepare('mnist', data_dir=str(tmp_path / 'tfds'), counts=COUNTS)
  whole = sources.materialise(sources.load('mnist', 'test', data_dir=str(tmp_path / 'tfds')))
  np.testing.assert_array_equal(whole.images[..., 0], arrays['test'][0])
  assert whole.class_names == tuple('0123456789')


def test_not_prepared_says_the_command(tmp_path):
  for name, command in [
    ('fashion_mnist', 'prepare fashion_mnist'),
    ('tfds:fashion_mnist', 'prepare fashion_mnist'),
    ('tfds:cifar10:train[:90%],train[90%:]', 'prepare tfds:cifar10'),
  ]:
    with pytest.raises(UserError, match='not prepared') as error:
      sources.load(name, 'train', data_dir=str(tmp_path))
    assert f'python -m cnnjax.datasets {command} --data_dir={tmp_path}' in str(error.value)


def test_unknown_set_names_the_closest(tmp_path):
  with pytest.raises(UserError, match=r'did you mean .*cifar10'):
    sources.load('tfds:cifar11', 'train', data_dir=str(tmp_path))


@pytest.mark.parametrize(
  ('spec', 'expected'),
  [
    ('cifar10', ('cifar10', None)),
    ('imagenet2012:5.1.0', ('imagenet2012:5.1.0', None)),
    ('imagenet2012:5.*.*:train,validation', ('imagenet2012:5.*.*', ('train', 'validation'))),
    ('a/b:train[:90%],train[90%:]', ('a/b', ('train[:90%]', 'train[90%:]'))),
    ('a:train+test[:5],test[5:]', ('a', ('train+test[:5]', 'test[5:]'))),
  ],
)
def test_parse(spec, expected):
  assert prepared.parse(spec) == expected


def test_mock_cifar10():
  with mock_tfds(12):
    source = sources.load('tfds:cifar10', 'train')
    assert len(source) == 12
    assert source.image_shape == (32, 32, 3)
    assert len(source.class_names) == 10
    batch = source[np.arange(5)]
    assert batch['image'].shape == (5, 32, 32, 3)
    assert batch['image'].dtype == np.uint8
    assert sources.materialise(source).images.shape == (12, 32, 32, 3)


def test_mock_imagenet():
  name = 'tfds:imagenet2012:train,validation'
  with mock_tfds(8):
    with pytest.raises(UserError, match=r'data\.image_size'):
      sources.load(name, 'train')
    train = sources.load(name, 'train', image_size=(24, 16), resize='random_resized_crop')
    test = sources.load(name, 'test', image_size=(24, 16), resize='random_resized_crop')
    assert len(train.class_names) == 1000
    assert train.image_shape is None
    assert len({train[i]['image'].shape for i in range(8)}) > 1
    assert isinstance(train[np.arange(8)]['image'], list)
    assert test.image_shape == test[5]['image'].shape == (24, 16, 3)


def test_sets_of_another_kind_are_refused():
  with mock_tfds(2), pytest.raises(UserError, match='not a set of 8-bit images with one class'):
    sources.load('tfds:imdb_reviews', 'train', image_size=(8, 8))


def test_builder_that_needs_tensorflow(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  def builder(*_, **__):
    raise ModuleNotFoundError("No module named 'tensorflow'")

  monkeypatch.setattr(tfds, 'builder', builder)
  with pytest.raises(UserError, match=r"needs TensorFlow.*pip install 'cnnjax\[tensorflow\]'"):
    sources.load('tfds:coco', 'train', data_dir=str(tmp_path))


def test_unlabelled_split_is_refused(monkeypatch):
  with mock_tfds(2):
    from tests.data import mock

    monkeypatch.setattr(mock._Examples, '__getitem__', lambda self, i: {'label': -1})
    with pytest.raises(UserError, match=r"split 'test' of imagenet2012 has no labels"):
      sources.load('tfds:imagenet2012', 'test', image_size=(8, 8))
