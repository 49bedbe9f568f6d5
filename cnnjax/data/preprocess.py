"""From encoded files to network input: decoding and resizing on the host, scaling on the device.

Host functions take and return uint8 `[H, W, C]` NumPy arrays. What is random is a pure function of
(seed, step, example id), so it doesn't matter which worker or process does it.
"""

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cnnjax.data import recipe, resample
from cnnjax.data.files import open_regular
from cnnjax.errors import unknown

if TYPE_CHECKING:
  import jax
  from PIL import Image

HostTransform = Callable[..., np.ndarray]  # (image, *, step, id) -> image
RESIZES = ('resize', 'center_crop', 'random_resized_crop')

_FORMATS = ('JPEG', 'PNG', 'WEBP')
_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}
_EXIF_ORIENTATION = 0x0112
_JPEG = ('JPEG', 'MPO')  # MPO: several JPEGs in one file, of which the first counts
_TURBO = {('L', 1): 'GRAY', ('L', 3): 'RGB', ('RGB', 3): 'RGB'}  # mode, channels: what to decode to
_FRACTION = 0.875
_SCALE = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)


class Turn(NamedTuple):
  """How an image is shown: flipped as it is stored, then perhaps rows and columns swapped."""

  rows: bool
  columns: bool
  swap: bool

  def shown(self, pixels: np.ndarray) -> np.ndarray:
    """Stored pixels `[H, W, C]` as they are shown."""
    pixels = pixels[:: -1 if self.rows else 1, :: -1 if self.columns else 1]
    return np.ascontiguousarray(pixels.swapaxes(0, 1) if self.swap else pixels)

  def stored_box(self, box: resample.Box, height: int, width: int) -> resample.Box:
    """A box of the shown image as one of the stored image of `height` times `width` pixels."""
    top, left, box_height, box_width, closed = box
    if self.swap:
      top, left, box_height, box_width = left, top, box_width, box_height
    top = height - top - box_height if self.rows else top
    left = width - left - box_width if self.columns else left
    return resample.Box(top, left, box_height, box_width, closed)


_UPRIGHT = Turn(False, False, False)
_TURNS = {  # by EXIF orientation
  2: Turn(False, True, False),
  3: Turn(True, True, False),
  4: Turn(True, False, False),
  5: Turn(False, False, True),
  6: Turn(True, False, True),
  7: Turn(True, True, True),
  8: Turn(False, True, True),
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
  except MemoryError:  # isn't the image's fault
    raise
  except Exception as error:  # a damaged file meets many kinds, assertions too
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


def decode(
  file: Any,
  *,
  channels: int = 3,
  exif: bool = True,
  transform: HostTransform | None = None,
  step: int = 0,
  id: int = 0,
) -> np.ndarray:
  """Decodes one image.

  Grey, palette, CMYK and 16-bit images become `channels`; transparent ones are composited on
  white (the page they were drawn for) unless 4 channels are asked for.

  Args:
    file: a path, a binary file object, or the encoded bytes.
    channels: 1, 3 or 4.
    exif: turn the image as its EXIF orientation says.
    transform: applied to the image. Where a `Resize` shrinks a JPEG to half or less, the inverse
      cosine transform does the first factor of 2, 4 or 8, never below the size asked for.
    step: for the transform.
    id: for the transform.

  Returns:
    uint8 `[H, W, channels]`.

  Raises:
    DecodeError: says why the image can't be decoded.
  """
  stream = io.BytesIO(file) if isinstance(file, bytes) else file
  if not hasattr(stream, 'read'):
    try:
      stream = open_regular(file)
    except (OSError, ValueError) as error:
      raise DecodeError(str(error)) from error
  try:
    with open_image(stream) as image:
      return _decode(image, stream, channels, exif, transform, step=step, id=id)
  finally:
    if stream is not file:
      stream.close()


def _decode(
  image: 'Image.Image',
  stream: Any,
  channels: int,
  exif: bool,
  transform: HostTransform | None,
  **where: int,
) -> np.ndarray:
  turn = _TURNS.get(_orientation(image), _UPRIGHT) if exif else _UPRIGHT
  if not isinstance(transform, Resize):
    pixels = turn.shown(_pixels(image, stream, channels, 1))
    return pixels if transform is None else transform(pixels, **where)
  height, width = image.height, image.width
  shown = (width, height) if turn.swap else (height, width)
  box = turn.stored_box(transform.box(*shown, **where), height, width)
  size = transform.size[::-1] if turn.swap else transform.size
  factor = resample.reduction(box, size) if image.format in _JPEG else 1
  pixels = _pixels(image, stream, channels, factor)
  return turn.shown(resample.cut(pixels, box.reduced(factor), size))


def _pixels(image: 'Image.Image', stream: Any, channels: int, factor: int) -> np.ndarray:
  """The stored pixels, uint8 [H / factor, W / factor, channels] with the sides rounded up.

  A plain JPEG goes to libjpeg-turbo directly, where the extra is installed; Pillow, with the same
  library inside, does the rest, and judges what is damaged.
  """
  from PIL import Image

  turbo = None
  if image.format in _JPEG and (image.mode, channels) in _TURBO:
    turbo = resample.optional('simplejpeg')
  try:
    # It takes the smallest eighths that give at least this size: unique from 16 pixels on.
    if turbo is not None and (factor == 1 or min(image.size) >= 16):
      least = (0, 0) if factor == 1 else (-(-image.height // factor), -(-image.width // factor))
      kind = _TURBO[image.mode, channels]
      stream.seek(0)
      return turbo.decode_jpeg(stream.read(), kind, min_height=least[0], min_width=least[1])
  except (OSError, ValueError):  # damaged, perhaps not beyond use, or no file to go back in
    pass
  try:
    if factor > 1:
      image.draft(image.mode, (image.width // factor, image.height // factor))
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
  except MemoryError:  # isn't the image's fault
    raise
  except Exception as error:
    raise DecodeError(str(error) or type(error).__name__) from error
  return pixels.reshape(*pixels.shape[:2], channels)


def resize(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
  """Stretches to `size` = (height, width): bilinear, antialiased when it shrinks."""
  height, width, _ = image.shape
  return resample.cut(image, resample.whole(height, width), size)


def center_crop(
  image: np.ndarray, size: Sequence[int], *, fraction: float = _FRACTION
) -> np.ndarray:
  """The evaluation crop of ImageNet: keep the aspect ratio, cut `size` from the centre.

  The image is scaled until it just covers `size / fraction` (224: the short side becomes 256).
  """
  height, width, _ = image.shape
  return resample.cut(image, resample.center(height, width, size, fraction), size)


def random_resized_crop(
  rng: np.random.Generator,
  image: np.ndarray,
  size: Sequence[int],
  *,
  scale: tuple[float, float] = _SCALE,
  ratio: tuple[float, float] = _RATIO,
) -> np.ndarray:
  """The training crop of ImageNet (Szegedy et al., 2015, arXiv:1409.4842), resized to `size`.

  Up to ten draws of an area (a uniform fraction of the image's) and an aspect ratio (uniform in
  its logarithm); if no crop fits, the largest central one within the ratios.
  """
  height, width, _ = image.shape
  return resample.cut(image, resample.random(rng, height, width, scale, ratio), size)


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

  def box(self, height: int, width: int, *, step: int = 0, id: int = 0) -> resample.Box:
    """What to cut out of an image of this size."""
    if self.method == 'random_resized_crop':
      rng = np.random.Generator(philox(1, self.seed, step, id))
      return resample.random(rng, height, width, _SCALE, _RATIO)
    if self.method == 'center_crop':
      return resample.center(height, width, self.size, _FRACTION)
    return resample.whole(height, width)

  def __call__(self, image: np.ndarray, *, step: int = 0, id: int = 0) -> np.ndarray:
    height, width, _ = image.shape
    return resample.cut(image, self.box(height, width, step=step, id=id), self.size)


def train_transform(method: str, size: Sequence[int], *, seed: int) -> Resize | None:
  """What `pipeline.train_batches` must do per example: the random crop, or nothing.

  The deterministic methods are part of the source (`sources.load(image_size=...)`), the random
  one depends on the step.
  """
  if not size or method != 'random_resized_crop':
    return None
  return Resize(method, (size[0], size[1]), seed)


def make_preprocess(
  augment: 'Callable[..., jax.Array] | None' = None,
  mean: Sequence[float] = (0.0,),
  std: Sequence[float] = (1.0,),
  dtype: Any = 'float32',
) -> 'Callable[..., jax.Array]':
  """The device side: uint8 to normalised floating point, augmented when training.

  Args:
    augment: `augment(key, image)` for one float image `[H, W, C]` in [0, 1], or one that takes
      `visit` as well (see `augment.parse`); None for nothing.
    mean: per channel, in [0, 1] units.
    std: per channel, in [0, 1] units.
    dtype: of the result; the arithmetic is float32.

  Returns:
    `preprocess(key, images, ids, train, visits=None)`: images `[N, H, W, C]` uint8 and ids `[N]`
    to floats `[N, H, W, C]`. Each image's key is `fold_in(key, id)`: place and device don't matter.
    `key` may be None where nothing is augmented; `visits`, int32 `[N]`, where nothing asks for it.
  """
  import jax
  import jax.numpy as jnp

  shift = np.asarray(mean, np.float32).reshape(1, 1, 1, -1)
  scale = np.asarray(std, np.float32).reshape(1, 1, 1, -1)

  def preprocess(
    key: Any, images: jax.Array, ids: jax.Array, train: bool, visits: jax.Array | None = None
  ) -> jax.Array:
    x = jnp.asarray(images, jnp.float32) / 255.0
    if train and augment is not None:
      shown = {'visit': visits} if visits is not None and recipe.takes_visit(augment) else {}
      keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
      x = jax.vmap(augment)(keys, x, **shown)
    return ((x - shift) / scale).astype(dtype)

  return preprocess
