"""Where examples come from: random access by index, whatever the storage.

A source has `class_names`, `image_shape` ((H, W, C), or None where sizes vary), a length, and
items: `source[i]` is one example, `source[indices]` several. What is small enough becomes an
`ArraySource`, whose uint8 array the training keeps on the device.
"""

import concurrent.futures
import dataclasses
import functools
import logging
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from cnnjax.data import preprocess
from cnnjax.errors import UserError, unknown

_LOGGER = logging.getLogger(__name__)

IDX_SETS = ('fashion_mnist', 'mnist')
_NAMES = ('digits', *IDX_SETS, 'tfds:NAME[:TRAIN,TEST]', 'folder:PATH')
_SMALL_IMAGE = 64 * 64  # pixels; below it threads only wait for each other
_CHUNK = 256  # examples read at once
_SAMPLE = 4096  # examples whose statistics stand for a streamed source


class UnreadableImage(Exception):
  """An image that can't be decoded when it is read."""

  def __init__(self, path: str, reason: str = ''):
    super().__init__(path, reason)
    self.path, self.reason = path, reason

  def __str__(self) -> str:
    return f'{self.path}: {self.reason}' if self.reason else self.path


class Source(Protocol):
  """Random access to uint8 images and their labels."""

  @property
  def class_names(self) -> tuple[str, ...]: ...

  @property
  def image_shape(self) -> tuple[int, int, int] | None: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: Any) -> dict[str, Any]:
    """One example (`image` uint8 `[H, W, C]`, `label` int) for an int; for an array of indices
    `image` `[n, H, W, C]` (a list where sizes vary) and `label` int32 `[n]`."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
  """Everything in memory.

  Attributes:
    images: uint8 `[N, H, W, C]`.
    labels: int32 `[N]`.
    class_names: by label.
  """

  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]

  @property
  def image_shape(self) -> tuple[int, int, int]:
    height, width, channels = self.images.shape[1:]
    return height, width, channels

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, index: Any) -> dict[str, Any]:
    if np.ndim(index) == 0:
      return {'image': self.images[index], 'label': int(self.labels[index])}
    return {'image': self.images[index], 'label': self.labels[index]}


def stack(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Examples to one dict: images stacked, or a list where their sizes vary."""
  images = [example['image'] for example in examples]
  labels = np.array([example['label'] for example in examples], np.int32)
  uniform = len({image.shape for image in images}) == 1
  return {'image': np.stack(images) if uniform else images, 'label': labels}


def read(
  source: Source, index: int, transform: preprocess.HostTransform | None = None, *, step: int = 0
) -> dict[str, Any]:
  """One example, transformed; a source that decodes is told the transform before it does."""
  if transform is None:
    return source[index]
  own = getattr(source, 'read', None)
  if own is not None and getattr(source, 'transform', None) is None:
    return own(index, transform, step=step)
  example = source[index]
  return {**example, 'image': transform(example['image'], step=step, id=index)}


def describe(source: Source, index: int) -> str:
  """What to call an example in a message: its file, where it has one."""
  named = getattr(source, 'describe', None)
  return named(index) if named else f'example {index}'


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
  with np.load(pathlib.Path(__file__).with_name('digits.npz')) as file:
    return file['images'], file['labels']


def digits(split: str) -> ArraySource:
  """1,797 real handwritten digits of 8x8 pixels; 1,438 to train, 359 to test.

  Of each class, in the order of the file, every fifth is for testing: stratified, and fixed.

  Credit: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
  Learning Repository (1998), https://doi.org/10.24432/C50P49, CC BY 4.0; its test part, as in
  scikit-learn's `load_digits`. Changed: intensities 0 to 16 scaled to 0 to 255 and rounded.
  """
  images, labels = _digits()
  rank = np.zeros(len(labels), np.int64)  # place among the examples of the same class
  for label in range(10):
    same = labels == label
    rank[same] = np.arange(same.sum())
  chosen = (rank % 5 == 2) == (split == 'test')
  return ArraySource(images[chosen], labels[chosen].astype(np.int32), tuple('0123456789'))


def load(
  name: str,
  split: str,
  *,
  data_dir: str = '',
  image_size: Sequence[int] = (),
  resize: str = 'resize',
  max_unreadable: int = 10,
) -> Source:
  """Opens one split of a dataset.

  Args:
    name: `digits`, `fashion_mnist`, `mnist`, `tfds:NAME` (these three with `:TRAIN,TEST` splits,
      e.g. `tfds:cifar10:train[:90%],train[90%:]`), or `folder:PATH`.
    split: 'train' or 'test'.
    data_dir: where TFDS keeps its sets; empty for TFDS's default.
    image_size: (height, width) to bring every image to; empty to leave them.
    resize: how, one of `preprocess.RESIZES`. With 'random_resized_crop' the training images stay
      as they are, for `preprocess.train_transform` to crop at each step, and the test images are
      centre-cropped.
    max_unreadable: more damaged images than this in a folder are refused.

  Raises:
    UserError: an unknown name, data that isn't there or is damaged, or images of mixed sizes
      without `image_size`.
  """
  if split not in ('train', 'test'):
    raise unknown('split', split, ('train', 'test'))
  if resize not in preprocess.RESIZES:
    raise unknown('data.resize', resize, preprocess.RESIZES)
  if image_size and (len(image_size) != 2 or any(int(side) < 1 for side in image_size)):
    raise UserError(f'data.image_size={tuple(image_size)}: allowed (height, width), or ()')
  transform, varies = None, False
  if resize == 'random_resized_crop' and not image_size:
    raise UserError("data.resize='random_resized_crop' needs data.image_size=(height, width)")
  if image_size:
    varies = resize == 'random_resized_crop' and split == 'train'
    method = 'center_crop' if resize == 'random_resized_crop' else resize
    size = (int(image_size[0]), int(image_size[1]))
    transform = None if varies else preprocess.Resize(method, size)

  kind, _, rest = name.partition(':')
  if name == 'digits':
    source = digits(split)
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    if image_size and len(source) * math.prod(image_size) > memory / 4:
      raise UserError(
        f'data.image_size={tuple(image_size)}: {len(source)} images of this size take more than a'
        " quarter of this machine's memory"
      )
    return source if transform is None else materialise(source, transform=transform)
  if kind == 'folder' and rest:
    from cnnjax.data import folder

    return folder.load(
      rest, split, transform=transform, varies=varies, max_unreadable=max_unreadable
    )
  if kind in IDX_SETS or (kind == 'tfds' and rest):
    from cnnjax.data import prepared

    return prepared.load(
      rest if kind == 'tfds' else name,
      split,
      data_dir=data_dir,
      transform=transform,
      varies=varies,
    )
  raise unknown('data.name', name, _NAMES)


def fits(source: Source, limit_bytes: int) -> bool:
  """Whether all images have one size and take at most `limit_bytes` as uint8."""
  shape = source.image_shape
  return shape is not None and len(source) * math.prod(shape) <= limit_bytes


def materialise(
  source: Source, *, transform: preprocess.HostTransform | None = None
) -> ArraySource:
  """Decodes everything once into memory.

  An image that turns out to be unreadable is left out, named in the log, and counts toward the
  source's `max_unreadable`.

  Args:
    source: any source; all images must have one size after `transform`.
    transform: e.g. `preprocess.Resize('center_crop', (224, 224))`.

  Raises:
    UserError: too many unreadable images, none left, or mixed sizes.
  """
  if isinstance(source, ArraySource) and transform is None:
    return source
  unreadable: list[str] = []

  def read(start: int) -> list[dict[str, Any]]:
    indices = np.arange(start, min(start + _CHUNK, len(source)))
    try:
      chunk = source[indices]
      examples = [
        {'image': image, 'label': label}
        for image, label in zip(chunk['image'], chunk['label'], strict=True)
      ]
    except UnreadableImage:
      examples = []
      for i in indices.tolist():
        try:
          examples.append(source[i])
        except UnreadableImage as error:
          _LOGGER.warning('unreadable image, left out: %s', error)
          unreadable.append(error.path)
    if transform is not None:
      for example in examples:
        example['image'] = transform(example['image'])
    return examples

  small = source.image_shape is not None and math.prod(source.image_shape[:2]) <= _SMALL_IMAGE
  threads = 1 if small else os.cpu_count() or 1
  images, labels, n = np.zeros((0, 0, 0, 0), np.uint8), np.zeros(len(source), np.int32), 0
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for examples in pool.map(read, range(0, len(source), _CHUNK)):
      for example in examples:
        if n == 0:
          images = np.empty((len(source), *example['image'].shape), np.uint8)
        if example['image'].shape != images.shape[1:]:
          raise UserError(
            f'data.image_size is not set, and the images have different sizes, e.g. '
            f'{images.shape[1:]} and {example["image"].shape}: set it, e.g. '
            'data.image_size=(224, 224)'
          )
        images[n], labels[n] = example['image'], example['label']
        n += 1
  allowed = getattr(source, 'max_unreadable', 0) - getattr(source, 'num_unreadable', 0)
  if len(unreadable) > allowed:
    raise UserError(
      f'data.max_unreadable: {len(unreadable)} more images are unreadable on decoding, '
      f'allowed {allowed}: {", ".join(unreadable[:3])}'
    )
  if n == 0:
    raise UserError('data.name: the source has no readable examples')
  return ArraySource(images[:n], labels[:n], source.class_names)


def statistics(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation per channel over all pixels, in [0, 1] units.

  Exact for an `ArraySource` (integer sums). Of a streamed source, 4,096 examples at even
  distances are read (all, where there are fewer), the same ones every time; unreadable ones are
  passed over. A channel that never varies has the deviation 1, so that dividing by it is safe.

  Returns:
    (mean, std), each one float per channel.
  """
  count, total, squares = 0, 0, 0
  n = len(source)
  if isinstance(source, ArraySource):
    for start in range(0, n, _CHUNK):
      pixels = source.images[start : start + _CHUNK].reshape(-1, source.images.shape[-1])
      count += len(pixels)
      total = total + pixels.sum(0, dtype=np.int64)
      squares = squares + np.square(pixels, dtype=np.int32).sum(0, dtype=np.int64)
  else:
    for i in np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).round().astype(int)).tolist():
      try:
        image = source[i]['image']
      except UnreadableImage:
        continue
      pixels = image.reshape(-1, image.shape[-1])
      count += len(pixels)
      total = total + pixels.sum(0, dtype=np.int64)
      squares = squares + np.square(pixels, dtype=np.int32).sum(0, dtype=np.int64)
  if count == 0:
    raise UserError('data.name: the source has no readable examples')
  # Python integers: n * sum(x^2) - sum(x)^2 without rounding or overflow.
  sums = [(int(s), int(q)) for s, q in zip(np.ravel(total), np.ravel(squares), strict=True)]
  mean = tuple(s / count / 255 for s, _ in sums)
  variance = [(count * q - s * s) / count**2 / 255**2 for s, q in sums]
  return mean, tuple(math.sqrt(v) if v > 0 else 1.0 for v in variance)
