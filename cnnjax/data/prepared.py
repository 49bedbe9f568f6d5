"""Prepared TFDS sets, read without TensorFlow through `tfds.data_source` (ArrayRecord)."""

import dataclasses
import difflib
import os
import re
from typing import Any

import numpy as np

from cnnjax.data import preprocess
from cnnjax.data.sources import IDX_SETS, UnreadableImage, stack
from cnnjax.errors import UserError

# NAME[/CONFIG][:VERSION][:TRAIN,TEST]
_SPEC = re.compile(r'(?P<name>[\w./-]+(:\d+\.[\d*]+\.[\d*]+)?)(:(?P<splits>.+))?')


def parse(spec: str) -> tuple[str, tuple[str, str] | None]:
  """'cifar10:train[:90%],train[90%:]' to its name and its (train, test) splits, if given.

  Raises:
    UserError: not of that form.
  """
  match = _SPEC.fullmatch(spec)
  splits = tuple(match['splits'].split(',')) if match and match['splits'] else None
  if match is None or (splits is not None and (len(splits) != 2 or not all(splits))):
    raise UserError(f'data.name={spec!r}: allowed is NAME or NAME:TRAIN_SPLIT,TEST_SPLIT')
  return match['name'], None if splits is None else (splits[0], splits[1])


def prepare_command(name: str, data_dir: str = '') -> str:
  """The command line that prepares a set."""
  where = f' --data_dir={data_dir}' if data_dir else ''
  return f'python -m cnnjax.datasets prepare {name if name in IDX_SETS else f"tfds:{name}"}{where}'


def needs_package(name: str, error: ImportError) -> str:
  """What to say where a builder of TFDS needs a package that isn't installed."""
  if 'tensorflow' in str(error):
    return (
      f"TFDS's builder needs TensorFlow to prepare {name} (not to read it): "
      "pip install 'cnnjax[tensorflow]'"
    )
  return f"TFDS's builder of {name} needs a package: {error}"


def make_builder(name: str, data_dir: str = '') -> Any:
  """TFDS's builder of a set, prepared or not.

  Raises:
    UserError: TFDS knows no such set (the closest names are given), or not as ArrayRecord.
  """
  import tensorflow_datasets as tfds

  try:
    return tfds.builder(name, data_dir=data_dir or None, file_format='array_record')
  except tfds.core.DatasetNotFoundError:
    known = tfds.list_builders(with_community_datasets=False)
    close = difflib.get_close_matches(re.split('[/:]', name)[0], known, n=3)
    hint = f'did you mean {" or ".join(close)}?' if close else 'none is called anything like it.'
    raise UserError(
      f"data.name='tfds:{name}': TFDS has no such set, {hint} Its {len(known)} sets are listed at "
      'https://www.tensorflow.org/datasets/catalog'
    ) from None
  except ImportError as error:
    # Some builders can't even be constructed without TensorFlow; what is prepared needs no builder.
    from tensorflow_datasets.core import read_only_builder

    try:
      return read_only_builder.builder_from_files(
        name, data_dir=data_dir or None, file_format='array_record'
      )
    except tfds.core.DatasetNotFoundError:
      raise UserError(f'data.name: {name} is not prepared; {needs_package(name, error)}') from error
  except (ValueError, AssertionError, NotImplementedError) as error:  # config, version or format
    raise UserError(f"data.name='tfds:{name}': {error}") from error


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
  """Examples of one split; images stay encoded until they are read.

  Attributes:
    name: TFDS's name and split, for messages.
    data: the data source; its images are encoded bytes (arrays under TFDS's mock data).
    keys: the names of the image and of the label feature.
    class_names: by label.
    channels: of every image.
    image_shape: (H, W, C), or None where sizes vary.
    transform: applied to each decoded image.
  """

  name: str
  data: Any
  keys: tuple[str, str]
  class_names: tuple[str, ...]
  channels: int
  image_shape: tuple[int, int, int] | None
  transform: preprocess.HostTransform | None

  def __len__(self) -> int:
    return len(self.data)

  def __getitem__(self, index: Any) -> dict[str, Any]:
    if np.ndim(index) == 0:
      return self.read(int(index), self.transform)
    # One call for many records: ArrayRecord reads them in parallel, 5 times as fast.
    indices = np.asarray(index).tolist()
    records = self.data.__getitems__(indices)
    return stack(
      [self._decode(i, record, self.transform) for i, record in zip(indices, records, strict=True)]
    )

  def read(
    self, index: int, transform: preprocess.HostTransform | None, *, step: int = 0
  ) -> dict[str, Any]:
    """One example, with this transform instead of the source's own."""
    return self._decode(index, self.data[index], transform, step)

  def _decode(
    self,
    index: int,
    record: dict[str, Any],
    transform: preprocess.HostTransform | None,
    step: int = 0,
  ) -> dict[str, Any]:
    image, label = (record[key] for key in self.keys)
    if isinstance(image, bytes):
      try:
        # The pixels as TFDS defines them: it doesn't turn images by their EXIF orientation.
        image = preprocess.decode(
          image, channels=self.channels, exif=False, transform=transform, step=step, id=index
        )
      except preprocess.DecodeError as error:
        raise UnreadableImage(self.describe(index), str(error)) from error
    elif transform is not None:
      image = transform(image, step=step, id=index)
    return {'image': image, 'label': int(label)}

  def describe(self, index: int) -> str:
    """The split and place of an example."""
    return f'{self.name} example {index}'


def _features(builder: Any) -> tuple[str, str]:
  """The names of the one image and of the one label of a classification set."""
  import tensorflow_datasets as tfds

  features = dict(builder.info.features or {})
  of = lambda kind: [key for key, feature in features.items() if isinstance(feature, kind)]
  images, labels = of(tfds.features.Image), of(tfds.features.ClassLabel)
  supervised = builder.info.supervised_keys or ('', '')
  image = supervised[0] if supervised[0] in images else images[0] if len(images) == 1 else None
  label = supervised[1] if supervised[1] in labels else labels[0] if len(labels) == 1 else None
  if image is None or label is None or features[image].np_dtype != np.uint8:
    raise UserError(
      f"data.name='tfds:{builder.name}': not a set of 8-bit images with one class each; it has "
      f'{", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())}'
    )
  return image, label


def load(
  spec: str,
  split: str,
  *,
  data_dir: str = '',
  transform: preprocess.HostTransform | None = None,
  varies: bool = False,
) -> TfdsSource:
  """Opens one split of a prepared set.

  Args:
    spec: `NAME[/CONFIG][:VERSION][:TRAIN,TEST]`. Without splits, 'train' and 'test', or
      'validation' where there is no 'test'.
    split: 'train' or 'test'.
    data_dir: TFDS's data folder; empty for TFDS's default.
    transform: brings the images to one size; None to leave them.
    varies: sizes may differ (they are cropped later), although there is no transform.

  Raises:
    UserError: an unknown set or split, one that isn't prepared (says the command), one that
      isn't for image classification, or images of mixed sizes without a transform.
  """
  import tensorflow_datasets as tfds

  name, splits = parse(spec)
  builder = make_builder(name, os.path.expanduser(data_dir))
  if not builder.is_prepared():
    raise UserError(
      f'data.name: {name} is not prepared in {builder.data_dir}: run '
      f'{prepare_command(name, data_dir)}'
    )
  image_key, label_key = _features(builder)
  feature = builder.info.features[image_key]
  known = tuple(builder.info.splits)
  if splits is None:
    splits = ('train', 'validation' if 'test' not in known and 'validation' in known else 'test')
  chosen = splits[split == 'test']
  try:
    data = builder.as_data_source(split=chosen, decoders={image_key: tfds.decode.SkipDecoding()})
    size = len(data)
  except (KeyError, ValueError, AssertionError, NotImplementedError) as error:
    reason = str(error.args[0] if error.args else error).splitlines()[0]
    raise UserError(
      f'data.name: {name} can not be read as split {chosen!r}, its splits are '
      f'{", ".join(known)}: {reason}'
    ) from error
  if not size:
    raise UserError(f'data.name: split {chosen!r} of {name} has no examples')
  height, width, channels = feature.shape
  shape = None if None in (height, width) else (height, width, channels)
  if transform is not None:
    shape = (*transform(np.zeros((8, 8, channels), np.uint8)).shape[:2], channels)
  elif shape is None and not varies:
    raise UserError(
      f'data.image_size is not set, and the images of {name} have different sizes: set it, e.g. '
      'data.image_size=(224, 224)'
    )
  source = TfdsSource(
    name=f'{name}:{chosen}',
    data=data,
    keys=(image_key, label_key),
    class_names=tuple(builder.info.features[label_key].names),
    channels=channels,
    image_shape=shape,
    transform=transform,
  )
  if int(data[0][label_key]) < 0:  # e.g. ImageNet's test split
    raise UserError(
      f'data.name: split {chosen!r} of {name} has no labels, its splits are {", ".join(known)}: '
      f'name both, e.g. {name}:train,validation'
    )
  return source
