"""`python -m cnnjax.datasets`, as a user runs it."""

import gzip

import numpy as np
import pytest

from cnnjax import datasets
from cnnjax.data import sources
from cnnjax.errors import UserError
from tests import commands
from tests.data.idx_files import NAMES, encode, write_set


def test_prepare_from_a_folder_twice_and_list(tmp_path):
  (tmp_path / 'idx').mkdir()
  for split, count in (('train', 60_000), ('test', 10_000)):
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = np.broadcast_to(labels[:, None, None], (count, 28, 28))
    for name, array in zip(NAMES[split], (images, labels), strict=True):
      (tmp_path / 'idx' / name).write_bytes(encode(array))
  arguments = ('prepare', 'fashion_mnist', f'--from={tmp_path}/idx', f'--data_dir={tmp_path}/data')
  status, out, err = commands.run('datasets', *arguments)
  path = f'{tmp_path}/data/fashion_mnist/3.0.1'
  assert (status, out, err) == (0, f'fashion_mnist: prepared in {path}\n', '')
  status, out, err = commands.run('datasets', *arguments)
  assert (status, out, err) == (0, f'fashion_mnist: already prepared in {path}\n', '')
  status, out, _ = commands.run('datasets', 'list', f'--data_dir={tmp_path}/data')
  assert status == 0
  lines = out.splitlines()
  assert any(line.split() == ['fashion_mnist', 'prepared:', path] for line in lines)
  assert any(line.startswith('mnist') and 'not prepared: python -m' in line for line in lines)
  source = sources.load('fashion_mnist', 'test', data_dir=f'{tmp_path}/data')
  assert len(source) == 10_000
  np.testing.assert_array_equal(source[17]['image'], np.full((28, 28, 1), 7))


def test_wrong_counts_and_damage(tmp_path):
  write_set(tmp_path / 'idx', {'train': 30, 'test': 20})
  arguments = ('prepare', 'mnist', f'--from={tmp_path}/idx', f'--data_dir={tmp_path}/data')
  line = commands.refused('datasets', *arguments)
  assert 'train-images-idx3-ubyte.gz: 30 images, allowed 60000' in line
  file = tmp_path / 'idx/train-images-idx3-ubyte.gz'
  file.write_bytes(file.read_bytes()[:1000])
  line = commands.refused('datasets', *arguments)
  assert f'{file}: the gzip stream is corrupt or cut short' in line
  assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ([], ['list', 'prepare NAME']),
    (['list', 'x'], ["'list x'", 'prepare NAME']),
    (['prepare'], ["'prepare'", 'prepare NAME']),
    (['prepare', 'fashion_mnits'], ['fashion_mnits', "did you mean 'fashion_mnist'"]),
    (['prepare', 'digits'], ['ships with cnnjax']),
    (['prepare', 'mnist', '--from=/nowhere/at/all'], ['--from=/nowhere/at/all: no such folder']),
    (['prepare', 'tfds:cifar10', '--from=/x'], ['--from=/x', 'fashion_mnist and mnist only']),
    (['prepare', 'tfds:cifar11'], ['cifar11', 'did you mean', 'cifar10']),
    (['list', '--date_dir=x'], ['date_dir', 'data_dir']),
  ],
)
def test_mistakes(arguments, words, capsys, tmp_path):
  assert datasets.main(['datasets', *arguments, f'--data_dir={tmp_path}']) == 2
  out, err = capsys.readouterr()
  assert out == ''
  assert len(err.splitlines()) == 1
  for word in words:
    assert word in err


def test_mistake_from_the_shell():
  line = commands.refused('datasets', 'prepare', 'nmist')
  assert line.startswith("dataset='nmist' is unknown: did you mean 'mnist'?")


def test_help(capsys):
  assert datasets.main(['datasets', '--help']) == 0
  assert '--data_dir' in capsys.readouterr().out


def test_list_knows_only_what_is_whole(tmp_path):
  for path, text in [
    ('cifar10/3.0.2', '{"fileFormat": "array_record"}'),
    ('x/conf/1.0.0', '{"fileFormat": "array_record"}'),
    ('old/1.0.0', '{"fileFormat": "tfrecord"}'),
    ('broken/1.0.0', '{'),
    ('y/incomplete.AB_1.0.0', '{"fileFormat": "array_record"}'),
  ]:
    (tmp_path / path).mkdir(parents=True)
    (tmp_path / path / 'dataset_info.json').write_text(text)
  assert set(datasets.prepared(str(tmp_path))) == {'cifar10', 'x/conf'}
  assert 'tfds:x/conf' in datasets.list_datasets(str(tmp_path))


def test_preparing_with_tensorflow_missing(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  def fails(self, **_):
    raise ModuleNotFoundError("No module named 'tensorflow'")

  monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', fails)
  with pytest.raises(UserError, match=r"needs TensorFlow.*pip install 'cnnjax\[tensorflow\]'"):
    datasets.prepare('tfds:cifar10', data_dir=str(tmp_path))


def test_gzip_with_a_wrong_file_inside(tmp_path):
  write_set(tmp_path / 'idx', {'train': 30, 'test': 20})
  (tmp_path / 'idx/t10k-images-idx3-ubyte.gz').write_bytes(gzip.compress(b'<html>'))
  with pytest.raises(UserError, match='allowed 60000'):
    datasets.prepare('fashion_mnist', str(tmp_path / 'idx'), str(tmp_path))
