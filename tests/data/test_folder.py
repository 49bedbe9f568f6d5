"""Image folders: splits, what is read, and every mistake."""

import pathlib
import pickle

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import folder, preprocess, sources
from cnnjax.errors import UserError


def write(path: pathlib.Path, size: tuple[int, int] = (6, 5), colour=(200, 10, 10), **options):
  """Writes a plain image; size is (height, width)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', size[::-1], colour).save(path, **options)


def fill(root: pathlib.Path, per_class: int = 40) -> None:
  for i in range(per_class):
    write(root / 'dog' / f'{i}.png', colour=(i, 0, 0))
    write(root / 'cat' / f'{i}.png', colour=(0, i, 0))


def load(root: pathlib.Path, split: str = 'train', **options) -> sources.Source:
  return sources.load(f'folder:{root}', split, **options)


def files(source) -> set[str]:
  return set(source.files)


def test_split_is_a_stable_partition(tmp_path):
  fill(tmp_path)
  train, test = load(tmp_path), load(tmp_path, 'test')
  assert train.class_names == ('cat', 'dog')
  assert train.image_shape == (6, 5, 3)
  assert len(train) + len(test) == 80
  assert not files(train) & files(test)
  assert 6 <= len(test) <= 26
  for i in range(40, 60):
    write(tmp_path / 'cat' / f'{i}.png')
  assert files(train) <= files(load(tmp_path))
  assert files(test) <= files(load(tmp_path, 'test'))


def test_the_hash_itself():
  # SHA-256 of the name, its first eight bytes as a fraction of 2**64, below one fifth.
  import hashlib

  for name in ('cat/0.png', 'dog/ä.jpg', 'x/y/z.webp'):
    fraction = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64
    assert folder.in_test(name) == (fraction < 0.2)
  assert abs(np.mean([folder.in_test(f'a/{i}') for i in range(4000)]) - 0.2) < 0.02


def test_examples_and_labels(tmp_path):
  fill(tmp_path, 8)
  source = load(tmp_path)
  for i in range(len(source)):
    path = pathlib.Path(source.describe(i))
    channel = 1 if path.parent.name == 'cat' else 0
    assert source[i]['image'][0, 0, channel] == int(path.stem)
    assert source.class_names[source[i]['label']] == path.parent.name
  batch = pickle.loads(pickle.dumps(source))[np.arange(4)]
  assert batch['image'].shape == (4, 6, 5, 3)
  assert batch['label'].dtype == np.int32


@pytest.mark.parametrize('name', ['test', 'val', 'validation'])
def test_split_folders(tmp_path, name):
  fill(tmp_path / 'train', 3)
  write(tmp_path / name / 'dog' / 'x.jpg')
  train, test = load(tmp_path), load(tmp_path, 'test')
  assert (len(train), len(test)) == (6, 1)
  assert test.class_names == ('cat', 'dog')
  assert test[0]['label'] == 1
  write(tmp_path / name / 'fox' / 'x.jpg')
  with pytest.raises(UserError, match=r"classes without training images: \['fox'\]"):
    load(tmp_path, 'test')


def test_train_alone_is_split_and_train_may_be_a_class(tmp_path):
  fill(tmp_path / 'a/train', 30)
  assert len(load(tmp_path / 'a')) + len(load(tmp_path / 'a', 'test')) == 60
  assert len(load(tmp_path / 'a', 'test')) > 0
  for name in ('bus', 'train'):
    write(tmp_path / 'b' / name / '1.png')
    write(tmp_path / 'b' / name / '2.png')
  assert load(tmp_path / 'b').class_names == ('bus', 'train')


def test_formats_nesting_hidden_and_other_files(tmp_path):
  for i, name in enumerate(['A.JPG', 'b.Jpeg', 'c.PNG', 'deep/d.webp']):
    write(tmp_path / 'train/x' / name, colour=(50 * i, 0, 0))
  write(tmp_path / 'train/y/a.png')
  write(tmp_path / 'train/.hidden/a.png')
  write(tmp_path / 'train/x/._a.png')
  (tmp_path / 'train/x/notes.txt').write_text('not an image')
  write(tmp_path / 'test/x/a.png')
  source = load(tmp_path)
  assert source.class_names == ('x', 'y')
  assert source.files == ('x/A.JPG', 'x/b.Jpeg', 'x/c.PNG', 'x/deep/d.webp', 'y/a.png')


def test_exif_orientation_counts_for_the_size(tmp_path):
  fill(tmp_path / 'train', 1)
  exif = Image.Exif()
  exif[0x0112] = 6
  write(tmp_path / 'train/cat/turned.jpg', (5, 6), exif=exif)
  write(tmp_path / 'test/cat/x.png')
  source = load(tmp_path)
  assert source.image_shape == (6, 5, 3)
  assert all(source[i]['image'].shape == (6, 5, 3) for i in range(len(source)))


def test_mixed_sizes(tmp_path):
  fill(tmp_path / 'train', 2)
  write(tmp_path / 'train/dog/big.png', (60, 50))
  write(tmp_path / 'test/dog/big.png', (60, 50))
  with pytest.raises(UserError, match=r'cat/0.png is 6x5, dog/big.png is 60x50.*data\.image_size'):
    load(tmp_path)
  for resize in ('resize', 'center_crop'):
    source = load(tmp_path, image_size=(8, 12), resize=resize)
    assert source.image_shape == (8, 12, 3)
    assert {source[i]['image'].shape for i in range(5)} == {(8, 12, 3)}
  whole = sources.materialise(source)
  np.testing.assert_array_equal(whole.images[4], source[4]['image'])
  loose = load(tmp_path, image_size=(8, 12), resize='random_resized_crop')
  assert loose.image_shape is None
  assert {image.shape for image in loose[np.arange(5)]['image']} == {(6, 5, 3), (60, 50, 3)}
  test = load(tmp_path, 'test', image_size=(8, 12), resize='random_resized_crop')
  expected = preprocess.center_crop(np.full((60, 50, 3), (200, 10, 10), np.uint8), (8, 12))
  np.testing.assert_array_equal(test[0]['image'], expected)


def test_missing_and_empty(tmp_path):
  with pytest.raises(UserError, match='no such folder'):
    load(tmp_path / 'nowhere')
  write(tmp_path / 'file.png')
  with pytest.raises(UserError, match='no such folder'):
    load(tmp_path / 'file.png')
  with pytest.raises(UserError, match='is empty'):
    load(tmp_path)


def test_one_class_and_class_without_images(tmp_path):
  write(tmp_path / 'cat/1.png')
  with pytest.raises(UserError, match=r'only one class \(cat\)'):
    load(tmp_path)
  (tmp_path / 'dog').mkdir()
  (tmp_path / 'dog/readme.txt').write_text('')
  with pytest.raises(UserError, match=r"class 'dog' has no images, allowed are \.jpg"):
    load(tmp_path)


def test_damaged_headers_are_named_counted_and_limited(tmp_path, caplog):
  fill(tmp_path / 'train', 4)
  write(tmp_path / 'test/cat/a.png')
  for i in range(3):
    (tmp_path / f'train/cat/bad{i}.png').write_bytes(b'broken')
  with caplog.at_level('WARNING', 'absl'):
    source = load(tmp_path, max_unreadable=3)
  assert len(source) == 8
  assert source.num_unreadable == 3
  assert [str(tmp_path / 'train/cat/bad1.png') in r.getMessage() for r in caplog.records] == [
    False,
    True,
    False,
  ]
  with pytest.raises(UserError, match=r'3 unreadable images, data\.max_unreadable=2: .*bad0.*bad2'):
    load(tmp_path, max_unreadable=2)


def test_damage_found_on_decoding(tmp_path):
  fill(tmp_path / 'train', 2)
  write(tmp_path / 'test/cat/a.png')
  rng = np.random.default_rng(0)
  path = tmp_path / 'train/cat/cut.png'
  Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).save(path)
  path.write_bytes(path.read_bytes()[:60])
  source = load(tmp_path)
  index = source.files.index('cat/cut.png')
  with pytest.raises(sources.UnreadableImage, match=r'cut\.png'):
    source[index]
  (tmp_path / 'train/dog/0.png').unlink()
  with pytest.raises(sources.UnreadableImage, match='No such file'):
    source[source.files.index('dog/0.png')]
  assert len(sources.materialise(source)) == 3


def test_bomb_is_refused_by_its_header(tmp_path, monkeypatch, caplog):
  fill(tmp_path / 'train', 2)
  write(tmp_path / 'test/cat/a.png')
  write(tmp_path / 'train/cat/bomb.png', (100, 100))
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
  with caplog.at_level('WARNING', 'absl'):
    assert len(load(tmp_path)) == 4
  assert 'decompression bomb' in caplog.text


def test_links_out_of_the_folder_are_refused(tmp_path):
  write(tmp_path / 'secret/a.png')
  fill(tmp_path / 'data', 2)
  (tmp_path / 'data/cat/inside.png').symlink_to(tmp_path / 'data/cat/0.png')
  total = len(load(tmp_path / 'data', 'train')) + len(
    folder.load(str(tmp_path / 'data'), 'train').files
  )
  assert total > 0
  link = tmp_path / 'data/cat/link.png'
  link.symlink_to(tmp_path / 'secret/a.png')
  with pytest.raises(UserError, match=r'link\.png is a link out of the folder'):
    load(tmp_path / 'data')
  link.unlink()
  (tmp_path / 'data/secret').symlink_to(tmp_path / 'secret')
  with pytest.raises(UserError, match='secret is a link out of the folder'):
    load(tmp_path / 'data')
  (tmp_path / 'data/secret').unlink()
  (tmp_path / 'data/cat/loop').symlink_to(tmp_path / 'data')
  with pytest.raises(UserError, match='is a link to a folder'):
    load(tmp_path / 'data')
  # The folder itself may be reached through a link.
  (tmp_path / 'data/cat/loop').unlink()
  (tmp_path / 'alias').symlink_to(tmp_path / 'data')
  assert load(tmp_path / 'alias').class_names == ('cat', 'dog')
