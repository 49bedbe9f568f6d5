"""TFDS builders that need no TensorFlow: MNIST and Fashion-MNIST from their four IDX files.

TFDS's own builders read through `tf.io.gfile` and verify the checksums of one particular
compression of the files. These read with the standard library and check the contents instead.
Names, versions and features are TFDS's, so what they write, `tfds.data_source` reads.
"""

import http.client
import io
import pathlib
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from cnnjax.data import idx
from cnnjax.errors import UserError, unknown


class IdxSet(NamedTuple):
  """What is published about a set of four IDX files."""

  description: str
  homepage: str
  urls: tuple[str, ...]
  class_names: tuple[str, ...]
  debian_package: str | None = None
  debian_dir: str | None = None


SETS = {
  'fashion_mnist': IdxSet(
    description='Fashion-MNIST (Xiao et al., 2017, arXiv:1708.07747): articles of clothing.',
    homepage='https://github.com/zalandoresearch/fashion-mnist',
    urls=('http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/',),
    class_names=(
      'T-shirt/top',
      'Trouser',
      'Pullover',
      'Dress',
      'Coat',
      'Sandal',
      'Shirt',
      'Sneaker',
      'Bag',
      'Ankle boot',
    ),
    debian_package='dataset-fashion-mnist',
    debian_dir='/usr/share/datasets/fashion-mnist',
  ),
  'mnist': IdxSet(
    description='MNIST (LeCun et al., 1998): handwritten digits.',
    homepage='https://yann.lecun.com/exdb/mnist/',
    urls=('https://ossci-datasets.s3.amazonaws.com/mnist/',),
    class_names=tuple('0123456789'),
  ),
}

COUNTS = {'train': 60_000, 'test': 10_000}
_FILES = {
  'train': ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),
  'test': ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte'),
}
_TIMEOUT = 20.0  # seconds without an answer or a byte

Arrays = Mapping[str, tuple[np.ndarray, np.ndarray]]  # split -> images [N, H, W, 1], labels [N]


class _IdxBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Writes arrays that are already read and checked; subclassed once per set."""

  VERSION = tfds.core.Version('3.0.1')  # of TFDS's own builders, whose features these are
  arrays: Arrays

  def _info(self) -> tfds.core.DatasetInfo:
    published = SETS[self.name]
    return tfds.core.DatasetInfo(
      builder=self,
      description=published.description,
      homepage=published.homepage,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(28, 28, 1)),
          'label': tfds.features.ClassLabel(names=list(published.class_names)),
        }
      ),
      supervised_keys=('image', 'label'),
      disable_shuffling=True,  # an example's id is its place in the IDX file
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # the arrays are read already
    return {split: self._generate_examples(*pair) for split, pair in self.arrays.items()}

  def _generate_examples(
    self, images: np.ndarray, labels: np.ndarray
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      png = io.BytesIO()
      Image.fromarray(image[..., 0]).save(png, 'png')
      yield i, {'image': png.getvalue(), 'label': int(label)}


class FashionMnist(_IdxBuilder, skip_registration=True):
  name = 'fashion_mnist'


class Mnist(_IdxBuilder, skip_registration=True):
  name = 'mnist'


_BUILDERS = {builder.name: builder for builder in (FashionMnist, Mnist)}


def find(directory: str | pathlib.Path) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
  """The four IDX files in a folder, plain or `.gz`, by split: (images, labels).

  Raises:
    UserError: the folder or one of the files is missing.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise UserError(f'--from={directory}: no such folder')

  def one(name: str) -> pathlib.Path:
    for path in (directory / name, directory / f'{name}.gz'):
      if path.is_file():
        return path
    raise UserError(f'--from={directory}: {name} (plain or .gz) is missing')

  return {split: (one(images), one(labels)) for split, (images, labels) in _FILES.items()}


def download(name: str, directory: str | pathlib.Path) -> None:
  """Fetches a set's four files into `directory`.

  Raises:
    UserError: none of the set's addresses answers; says what to do instead.
  """
  published, reason = SETS[name], ''
  for url in published.urls:
    try:
      for file in sum(_FILES.values(), ()):
        with (
          urllib.request.urlopen(f'{url}{file}.gz', timeout=_TIMEOUT) as response,
          open(pathlib.Path(directory) / f'{file}.gz', 'wb') as out,
        ):
          shutil.copyfileobj(response, out)
      return
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
      reason = f'{url}: {getattr(error, "reason", None) or error}'
  package = f', or install the Debian package {published.debian_package}'
  raise UserError(
    f'{name} could not be downloaded ({reason}): give the folder of its IDX files with --from=DIR'
    f'{package if published.debian_package else ""}'
  )


def prepare(
  name: str,
  source_dir: str = '',
  *,
  data_dir: str = '',
  counts: Mapping[str, int] = COUNTS,
) -> tuple[pathlib.Path, bool]:
  """Builds `name` as ArrayRecord under `data_dir`; all or nothing.

  Everything is read and checked before anything is written, and TFDS writes into a folder of
  another name that it renames at the end.

  Args:
    name: a key of `SETS`.
    source_dir: the folder of the IDX files; empty: where Debian's package puts them, else a
      download.
    data_dir: TFDS's data folder; empty for TFDS's default.
    counts: the examples that each split must have.

  Returns:
    The folder of the prepared set, and whether this call made it (False: it was there).

  Raises:
    UserError: a file is missing or damaged, or can't be downloaded, or the folder not written.
  """
  if name not in SETS:
    raise unknown('dataset', name, SETS)
  try:
    builder = _BUILDERS[name](data_dir=data_dir or None, file_format='array_record')
    path = pathlib.Path(builder.data_dir)
    if builder.is_prepared():
      return path, False
    debian_dir = SETS[name].debian_dir
    with tempfile.TemporaryDirectory() as scratch:
      if not source_dir and debian_dir and pathlib.Path(debian_dir).is_dir():
        source_dir = debian_dir
      elif not source_dir:
        download(name, scratch)
        source_dir = scratch
      builder.arrays = {
        split: idx.read_pair(*paths, count=counts[split])
        for split, paths in find(source_dir).items()
      }
      builder.download_and_prepare(download_dir=scratch)
  except OSError as error:
    raise UserError(
      f'{name} could not be prepared in {data_dir or "TFDS_DATA_DIR"}: {error}'
    ) from error
  return path, True
