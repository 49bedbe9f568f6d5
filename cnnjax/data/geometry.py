"""Augmentations that move pixels: crops, flips, and affine maps by one resampling.

Pure functions of a key and one float image [H, W, C], written for `vmap`; the result has the
image's shape. Coordinates are in pixels, (0, 0) the centre of the top left one.

dm-pix resamples affinely too, but interpolates along the channels as well (8 corners per value
instead of 4 per pixel: 40 to 60 times slower on the CPU), finds coordinates by a matrix product in
the device's default precision, and cuts off what lies less than a pixel outside. Tests compare.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from cnnjax import errors
from cnnjax.data import recipe

_TRIES = 10  # boxes drawn until one fits


def random_crop(
  key: Array, image: Array, *, padding: int, mode: Literal['constant', 'reflect'] = 'constant'
) -> Array:
  """Pads every side and cuts a window of the original size at a uniform place.

  Args:
    key: random key.
    image: `[H, W, C]`.
    padding: pixels added to each side; with mode 'reflect', fewer than H and W.
    mode: 'constant' pads with zeros (black), 'reflect' mirrors without repeating the edge.

  Returns:
    `[H, W, C]`.
  """
  recipe.check_integer('augment: random_crop', 'padding', padding, 0)
  if mode not in ('constant', 'reflect'):
    raise errors.unknown('augment: random_crop mode', mode, ('constant', 'reflect'))
  return _window(key, image, padding, mode, f'random_crop(padding={padding})')


def translate(
  key: Array,
  image: Array,
  *,
  pixels: int,
  mode: Literal['constant', 'edge', 'reflect', 'wrap'] = 'constant',
) -> Array:
  """Moves the image by whole pixels, uniform in [-pixels, pixels] along each axis.

  Args:
    key: random key.
    image: `[H, W, C]`.
    pixels: the furthest; with mode 'reflect', less than H and W.
    mode: what comes in at the sides: black, the edge's pixels, the mirror image (without the edge)
      or what went out on the other side.

  Returns:
    `[H, W, C]`.
  """
  recipe.check_integer('augment: translate', 'pixels', pixels, 0)
  if mode not in (modes := ('constant', 'edge', 'reflect', 'wrap')):
    raise errors.unknown('augment: translate mode', mode, modes)
  return _window(key, image, pixels, mode, f'translate(pixels={pixels})')


def _window(key: Array, image: Array, padding: int, mode: str, what: str) -> Array:
  height, width, _ = image.shape
  if mode == 'reflect' and padding >= min(height, width):
    raise errors.UserError(f'augment: {what} must be below the size {height}x{width} to reflect')
  top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
  padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
  # Under vmap this is a copy per image on the CPU: twice as fast as indexing, ten times as one-hot.
  return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def random_box(
  key: Array,
  height: int,
  width: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
) -> tuple[Array, Array, Array, Array, Array]:
  """A box of random area and shape inside an image.

  Of up to ten draws the first that fits: the area a uniform fraction of the image's, the aspect
  ratio (width / height) uniform in its logarithm, the place uniform.

  Args:
    key: random key.
    height: of the image.
    width: of the image.
    scale: least and most area, as fractions of the image's.
    ratio: least and most aspect ratio.

  Returns:
    int32 top, left, height and width, and whether any draw did fit; where none did, the box means
    nothing.
  """
  area_key, ratio_key, row_key, column_key = jax.random.split(key, 4)
  low, high = scale
  area = height * width * jax.random.uniform(area_key, (_TRIES,), minval=low, maxval=high)
  low, high = math.log(ratio[0]), math.log(ratio[1])
  aspect = jnp.exp(jax.random.uniform(ratio_key, (_TRIES,), minval=low, maxval=high))
  heights = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
  widths = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
  fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
  first = jnp.argmax(fits)
  box_height, box_width = heights[first], widths[first]
  top = jax.random.randint(row_key, (), 0, height - box_height + 1)
  left = jax.random.randint(column_key, (), 0, width - box_width + 1)
  return top, left, box_height, box_width, fits.any()


def random_resized_crop(
  key: Array,
  image: Array,
  *,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Array:
  """Stretches a box of random area and shape over the whole image, bilinear.

  Szegedy et al. 2015, https://arxiv.org/abs/1409.4842 section 6. Where none of ten boxes fits, the
  largest central one within the ratios, as `data.preprocess.random_resized_crop` does on the host;
  that one cuts from the image as it is stored, before anything is resized.

  Args:
    key: random key.
    image: `[H, W, C]`.
    scale: least and most area, as fractions of the image's.
    ratio: least and most aspect ratio (width / height).

  Returns:
    `[H, W, C]`.
  """
  recipe.check_interval('augment: random_resized_crop', 'scale', scale, 0, 1)
  recipe.check_interval('augment: random_resized_crop', 'ratio', ratio, 0, 100)
  height, width, _ = image.shape
  *box, fits = random_box(key, height, width, scale, ratio)
  h = min(height, max(1, round(width / ratio[0])))
  w = min(width, max(1, round(height * ratio[1])))
  central = ((height - h) // 2, (width - w) // 2, h, w)
  top, left, h, w = (jnp.where(fits, b, c) for b, c in zip(box, central, strict=True))
  return _stretch(_stretch(image, top, h, 0), left, w, 1)


def _stretch(image: Array, start: Array, length: Array, axis: int) -> Array:
  """Linear interpolation of the part from `start` on over a whole axis; clamped to that part."""
  size = image.shape[axis]
  place = start + (jnp.arange(size) + 0.5) * (length / size) - 0.5
  place = jnp.clip(place, start, start + length - 1)
  first = jnp.floor(place).astype(jnp.int32)
  weight = jnp.expand_dims(place - first, (1 - axis, 2))
  near = jnp.take(image, first, axis=axis, mode='clip')
  far = jnp.take(image, first + 1, axis=axis, mode='clip')  # of weight 0 where it is clipped
  return (1 - weight) * near + weight * far


def flip_horizontal(key: Array, image: Array, *, probability: float = 0.5) -> Array:
  """Mirrors left and right with the given probability.

  Args:
    key: random key.
    image: `[H, W, C]`.
    probability: in [0, 1].

  Returns:
    `[H, W, C]`.
  """
  recipe.check_number('augment: flip_horizontal', 'probability', probability, 0, 1)
  return jnp.where(jax.random.bernoulli(key, jnp.float32(probability)), image[:, ::-1], image)


def flip_alternating(key: Array, image: Array, *, visit: Array) -> Array:
  """Mirrors left and right at every second showing of an example, at the first by chance.

  Jordan 2024, https://arxiv.org/abs/2404.00498 section 3.6: in two epochs, every example is seen
  both ways.

  Args:
    key: not used; the chance is in `visit`.
    image: `[H, W, C]`.
    visit: int32 scalar: how often the example was shown before, plus a random 0 or 1 that stays
      the same for this example during the run.

  Returns:
    `[H, W, C]`.
  """
  del key
  return jnp.where(visit % 2 == 1, image[:, ::-1], image)


def _radians(degrees: float) -> float:
  return degrees * (math.pi / 180)  # of traced numbers as well


def rotate(key: Array, image: Array, *, degrees: float) -> Array:
  """Turns the image about its centre by an angle uniform in [-degrees, degrees]; black outside.

  Args:
    key: random key.
    image: `[H, W, C]`.
    degrees: the largest angle, in [0, 180].

  Returns:
    `[H, W, C]`, bilinear.
  """
  recipe.check_number('augment: rotate', 'degrees', degrees, 0, 180)
  angle = _radians(degrees) * jax.random.uniform(key, (), minval=-1, maxval=1)
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  return warp(image, (cos, sin, -sin, cos), (0.0, 0.0))


def affine(
  key: Array,
  image: Array,
  *,
  degrees: float = 0.0,
  translate: float = 0.0,
  scale: tuple[float, float] = (1.0, 1.0),
  shear: float = 0.0,
) -> Array:
  """Shears, scales, turns (about the centre) and moves the image; black outside.

  Args:
    key: random key.
    image: `[H, W, C]`.
    degrees: of the rotation, uniform in [-degrees, degrees].
    translate: of each side's length, uniform in [-translate, translate] along each axis.
    scale: least and most magnification, uniform in between.
    shear: degrees by which columns lean, uniform in [-shear, shear]; below 90.

  Returns:
    `[H, W, C]`, bilinear.
  """
  where = 'augment: affine'
  recipe.check_number(where, 'degrees', degrees, 0, 180)
  recipe.check_number(where, 'translate', translate, 0, 1)
  recipe.check_interval(where, 'scale', scale, 0, 100)
  recipe.check_number(where, 'shear', shear, 0, 89)
  height, width, _ = image.shape
  draws = jax.random.uniform(key, (5,), minval=-1, maxval=1)
  angle, slope = _radians(degrees) * draws[0], jnp.tan(_radians(shear) * draws[1])
  down, right = translate * height * draws[2], translate * width * draws[3]
  low, high = scale
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  # The inverse of: lean columns by the slope, magnify, turn counter-clockwise, move.
  shrink = 1 / ((low + high) / 2 + (high - low) / 2 * draws[4])
  rows = cos * shrink, sin * shrink
  columns = -sin * shrink - slope * rows[0], cos * shrink - slope * rows[1]
  moved = (
    -(rows[0] * down + rows[1] * right),
    -(columns[0] * down + columns[1] * right),
  )
  return warp(image, (*rows, *columns), moved)


def warp(
  image: Array,
  matrix: tuple[Array | float, ...],
  shift: tuple[Array | float, Array | float],
  *,
  nearest: bool = False,
  fill: float = 0.0,
  mode: Literal['constant', 'wrap'] = 'constant',
) -> Array:
  """Resamples at affinely mapped places: result[p] = image[matrix (p - centre) + centre + shift].

  Args:
    image: `[H, W, C]`.
    matrix: 2x2, row by row, from the result's (row, column) to the image's.
    shift: (rows, columns) in the image.
    nearest: take the nearest pixel instead of interpolating linearly between four.
    fill: the value of pixels outside the image.
    mode: 'constant' for that value, or 'wrap': the image repeats on all sides.

  Returns:
    `[H, W, C]`; exactly the image where the map is the identity.
  """
  height, width, channels = image.shape
  center = (height - 1) / 2, (width - 1) / 2
  row = jnp.arange(height, dtype=jnp.float32)[:, None] - center[0]
  column = jnp.arange(width, dtype=jnp.float32)[None, :] - center[1]
  rows = matrix[0] * row + matrix[1] * column + (shift[0] + center[0])  # [H, W]
  columns = matrix[2] * row + matrix[3] * column + (shift[1] + center[1])
  pixels = image.reshape(height * width, channels)

  def at(rows: Array, columns: Array) -> Array:
    if mode == 'wrap':
      rows, columns = rows % height, columns % width
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    place = (rows * width + columns).astype(jnp.int32)
    return jnp.where(inside[..., None], jnp.take(pixels, place, axis=0, mode='clip'), fill)

  if nearest:
    return at(jnp.round(rows), jnp.round(columns))
  top, left = jnp.floor(rows), jnp.floor(columns)
  down, right = (rows - top)[..., None], (columns - left)[..., None]
  upper = (1 - right) * at(top, left) + right * at(top, left + 1)
  lower = (1 - right) * at(top + 1, left) + right * at(top + 1, left + 1)
  return (1 - down) * upper + down * lower
