"""From encoded files to network input: decoding and resizing on the host, scaling on the device.

Host functions take and return uint8 `[H, W, C]` NumPy arrays and use Pillow. What is random is a
pure function of (seed, step, example id), so it doesn't matter which worker or process does it.
"""

import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnjax.errors import UserError, unknown

if TYPE_CHECKING:
  import jax
  from PIL import Image

HostTransform = Callable[..., np.ndarray]  # (image, *, step, id) -> image
RESIZES = ('resize', 'center_crop', 'random_resized_crop')

_FORMATS = ('JPEG', 'PNG', 'WEBP')
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
_EXIF_ORIENTATION = 0x0112
_TURNS = {  # EXIF orientation to the Pillow transposition that undoes it
  2: 'FLIP_LEFT_RIGHT',
  3: 'ROTATE_180',
  4: 'FLIP_TOP_BOTTOM',
  5: 'TRANSPOSE',
  6: 'ROTATE_270',
  7: 'TRANSVERSE',
  8: 'ROTATE_90',
}


class DecodeError(ValueError):
  """The bytes aren't an image that can be decoded; the message says why."""


def philox(domain: int, seed: int, *words: int) -> np.random.Philox:
  """A counter-based bit stream that is a pure function of its arguments.

  Args:
    domain: keeps streams for different purposes apart.
    seed: the run's seed.
    *words: at most two integers below 2**32, e.g. the step and the example's id.
  """
  mixed = 0
  for word in words:
    mixed = mixed << 32 | int(word) & 0xFFFFFFFF
  key = np.array([seed & 0xFFFFFFFFFFFFFFFF, mixed], np.uint64)
  # The lowest counter word counts the draws; the highest is out of their reach.
  return np.random.Philox(key=key, counter=np.array([0, 0, 0, domain], np.uint64))


def open_image(file: Any) -> 'Image.Image':
  """Opens a JPEG, PNG or WebP by its content, reads the header, and refuses a decompression bomb.

  Args:
    file: a path or a binary file object.

  Raises:
    DecodeError: another format, a damaged header, or more pixels than Pillow's limit.
  """
  from PIL import Image

  try:
    image = Image.open(file, formats=_FORMATS)
  except Image.DecompressionBombError as error:
    raise DecodeError(f'decompression bomb: {error}') from error
  except Image.UnidentifiedImageError as error:
    raise DecodeError('not a JPEG, PNG or WebP image') from error
  except (OSError, ValueError, SyntaxError, EOFError) as error:
    raise DecodeError(str(error) or type(error).__name__) from error
  limit = Image.MAX_IMAGE_PIXELS  # Pillow itself only warns up to twice its limit
  if limit is not None and image.width * image.height > limit:
    image.close()
    raise DecodeError(f'decompression bomb: {image.width}x{image.height}, limit {limit} pixels')
  return image


def _orientation(image: 'Image.Image') -> int:
  """EXIF orientation, 1 to 8, from what stands before the pixels; nothing is decoded."""
  # Pillow decodes a whole PNG in search of EXIF data after the pixels: too dear for a header.
  if image.format == 'PNG' and 'exif' not in image.info:
    return 1
  try:
    return image.getexif().get(_EXIF_ORIENTATION, 1)
  except Exception:  # damaged metadata, of which there are many kinds, doesn't spoil the pixels
    return 1


def oriented_size(image: 'Image.Image') -> tuple[int, int]:
  """(height, width) as displayed: EXIF orientations 5 to 8 turn by 90 degrees. Header only."""
  turned = _orientation(image) in (5, 6, 7, 8)
  return (image.width, image.height) if turned else (image.height, image.width)


def decode(file: Any, *, channels: int = 3, exif: bool = True) -> np.ndarray:
  """Decodes one image.

  Grey, palette, CMYK and 16-bit images become `channels`; transparent ones are composited on
  white (the page they were drawn for) unless 4 channels are asked for.

  Args:
    file: a path, a binary file object, or the encoded bytes.
    channels: 1, 3 or 4.
    exif: turn the image as its EXIF orientation says.

  Returns:
    uint8 `[H, W, channels]`.

  Raises:
    DecodeError: says why the image can't be decoded.
  """
  from PIL import Image

  image = open_image(io.BytesIO(file) if isinstance(file, bytes) else file)
  try:
    with image:
      turn = _TURNS.get(_orientation(image)) if exif else None
      if turn is not None:
        image = image.transpose(Image.Transpose[turn])
      if image.mode == 'I' or image.mode.startswith('I;16'):
        # convert() would clip at 255; the high byte is what an 8-bit decoder keeps.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
      if channels != 4 and (image.has_transparency_data or image.mode in ('La', 'RGBa')):
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image)
      if image.mode != _MODES[channels]:
        image = image.convert(_MODES[channels])
      pixels = np.asarray(image)
  except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
    raise DecodeError(str(error) or type(error).__name__) from error
  return pixels.reshape(*pixels.shape[:2], channels)


def resize(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
  """Stretches to `size` = (height, width): bilinear, antialiased when it shrinks."""
  from PIL import Image

  height, width = size
  if image.shape[:2] == (height, width):
    return image
  if image.shape[2] not in _MODES:
    raise UserError(f'data.image_size: images of {image.shape[2]} channels, allowed 1, 3 or 4')
  squeezed = image[..., 0] if image.shape[2] == 1 else image
  resized = Image.fromarray(squeezed).resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(resized).reshape(height, width, image.shape[2])


def center_crop(image: np.ndarray, size: Sequence[int], *, fraction: float = 0.875) -> np.ndarray:
  """The evaluation crop of ImageNet: keep the aspect ratio, cut `size` from the centre.

  The image is scaled until it just covers `size / fraction` (224: the short side becomes 256).
  """
  height, width = size
  scale = max(height / fraction / image.shape[0], width / fraction / image.shape[1])
  scaled = [max(crop, round(scale * side)) for crop, side in zip(size, image.shape, strict=False)]
  image = resize(image, scaled)
  top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
  return image[top : top + height, left : left + width]


def random_resized_crop(
  rng: np.random.Generator,
  image: np.ndarray,
  size: Sequence[int],
  *,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
  """The training crop of ImageNet (Szegedy et al., 2015, arXiv:1409.4842), resized to `size`.

  Up to ten draws of an area (a uniform fraction of the image's) and an aspect ratio (uniform in
  its logarithm); if no crop fits, the largest central one within the ratios.
  """
  height, width = image.shape[:2]
  for _ in range(10):
    area = height * width * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
    if 0 < h <= height and 0 < w <= width:
      top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
      break
  else:
    h = min(height, max(1, round(width / ratio[0])))
    w = min(width, max(1, round(height * ratio[1])))
    top, left = (height - h) // 2, (width - w) // 2
  return resize(image[top : top + h, left : left + w], size)


@dataclasses.dataclass(frozen=True)
class Resize:
  """A host transform by name, picklable for worker processes.

  Attributes:
    method: one of `RESIZES`.
    size: (height, width) of the result.
    seed: the run's seed, for `random_resized_crop`.
  """

  method: str
  size: tuple[int, int]
  seed: int = 0

  def __post_init__(self):
    if self.method not in RESIZES:
      raise unknown('data.resize', self.method, RESIZES)

  def __call__(self, image: np.ndarray, *, step: int = 0, id: int = 0) -> np.ndarray:
    if self.method == 'random_resized_crop':
      rng = np.random.Generator(philox(1, self.seed, step, id))
      return random_resized_crop(rng, image, self.size)
    return (resize if self.method == 'resize' else center_crop)(image, self.size)


def train_transform(method: str, size: Sequence[int], *, seed: int) -> Resize | None:
  """What `pipeline.train_batches` must do per example: the random crop, or nothing.

  The deterministic methods are part of the source (`sources.load(image_size=...)`), the random
  one depends on the step.
  """
  if not size or method != 'random_resized_crop':
    return None
  return Resize(method, (size[0], size[1]), seed)


def make_preprocess(
  augment: 'Callable[[jax.Array, jax.Array], jax.Array] | None' = None,
  mean: Sequence[float] = (0.0,),
  std: Sequence[float] = (1.0,),
  dtype: Any = 'float32',
) -> 'Callable[..., jax.Array]':
  """The device side: uint8 to normalised floating point, augmented when training.

  Args:
    augment: `augment(key, image)` for one float image `[H, W, C]` in [0, 1]; None for nothing.
    mean: per channel, in [0, 1] units.
    std: per channel, in [0, 1] units.
    dtype: of the result; the arithmetic is float32.

  Returns:
    `preprocess(key, images, ids, train)`: images `[N, H, W, C]` uint8 and ids `[N]` to floats
    `[N, H, W, C]`. Each image's key is `fold_in(key, id)`: place and device don't matter. `key`
    may be None where nothing is augmented.
  """
  import jax
  import jax.numpy as jnp

  shift = np.asarray(mean, np.float32).reshape(1, 1, 1, -1)
  scale = np.asarray(std, np.float32).reshape(1, 1, 1, -1)

  def preprocess(key: Any, images: jax.Array, ids: jax.Array, train: bool) -> jax.Array:
    x = jnp.asarray(images, jnp.float32) / 255.0
    if train and augment is not None:
      x = jax.vmap(augment)(jax.vmap(jax.random.fold_in, (None, 0))(key, ids), x)
    return ((x - shift) / scale).astype(dtype)

  return preprocess
