"""RandAugment and TrivialAugment: random ones of fourteen operations.

Pure functions of a key and one float image [H, W, C] in [0, 1], written for `vmap`, under which a
branch that isn't taken is computed all the same. So there are none: the geometric operations are
one resampling whose matrix is chosen, the colour operations are a few cheap expressions of which
one is chosen. On 8-bit values they do what Pillow does, to 1.5 of 255: that rounds in between.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from cnnjax.data import geometry, recipe

OPERATIONS = (
  'identity',
  'auto_contrast',
  'equalize',
  'rotate',
  'solarize',
  'color',
  'posterize',
  'contrast',
  'brightness',
  'sharpness',
  'shear_x',
  'shear_y',
  'translate_x',
  'translate_y',
)

_GREY = 128 / 255
_BINS = 256


class Ranges(NamedTuple):
  """What an operation does at full strength, and the value of pixels from outside the image.

  Attributes:
    shear: pixels along one axis per pixel along the other.
    translate: in fractions of the side, and in pixels; these are added.
    rotate: in radians.
    enhance: how far the factor of color, contrast, brightness and sharpness is from 1.
    bits: that posterize drops, of 8.
    fill: of what comes in from outside.
  """

  shear: float
  translate: tuple[float, float]
  rotate: float
  enhance: float
  bits: int
  fill: float


RAND = Ranges(0.3, (150 / 331, 0.0), jnp.pi / 6, 0.9, 4, _GREY)
WIDE = Ranges(0.99, (0.0, 32.0), 0.75 * jnp.pi, 0.99, 6, 0.0)


def rand_augment(key: Array, image: Array, *, num_ops: int = 2, magnitude: float = 9) -> Array:
  """Applies `num_ops` of the fourteen operations, each drawn at random, all at one magnitude.

  Cubuk et al. 2019, https://arxiv.org/abs/1909.13719. Magnitude 10 means what it means in the
  authors' code (a rotation by 30 degrees; other programs count to 30). As in most programs since,
  every operation grows with the magnitude and has a random sign where it has one: at 0 all but
  auto_contrast and equalize, which have no magnitude, leave the image alone.

  Args:
    key: random key.
    image: `[H, W, C]`.
    num_ops: how many, in [1, 8].
    magnitude: in [0, 10].

  Returns:
    `[H, W, C]`.
  """
  recipe.check_integer('augment: rand_augment', 'num_ops', num_ops, 1, 8)
  recipe.check_number('augment: rand_augment', 'magnitude', magnitude, 0, 10)
  for draw in jax.random.split(key, num_ops):
    operation_key, sign_key = jax.random.split(draw)
    operation = jax.random.randint(operation_key, (), 0, len(OPERATIONS))
    sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
    image = apply(image, operation, sign * magnitude / 10, RAND)
  return image


def trivial_augment(key: Array, image: Array) -> Array:
  """Applies one of the fourteen operations at a random strength, both uniform.

  TrivialAugment (wide) of Müller and Hutter 2021, https://arxiv.org/abs/2103.10158: strengths are
  multiples of 1 / 30 of a wide range (rotations to 135 degrees, translations to 32 pixels).

  Args:
    key: random key.
    image: `[H, W, C]`.

  Returns:
    `[H, W, C]`.
  """
  operation_key, strength_key, sign_key = jax.random.split(key, 3)
  operation = jax.random.randint(operation_key, (), 0, len(OPERATIONS))
  sign = jnp.where(jax.random.bernoulli(sign_key), 1.0, -1.0)
  strength = jax.random.randint(strength_key, (), 0, 31) / 30
  return apply(image, operation, sign * strength, WIDE)


def apply(image: Array, operation: Array | int, strength: Array | float, ranges: Ranges) -> Array:
  """One operation.

  Args:
    image: `[H, W, C]`.
    operation: its place in OPERATIONS.
    strength: in [-1, 1]; the sign matters where there are two directions.
    ranges: what strength 1 means.

  Returns:
    `[H, W, C]`.
  """
  chosen = {name: jnp.equal(operation, i) for i, name in enumerate(OPERATIONS)}
  # Without the barriers, here and in _shade, XLA would compute what is before them again in each of
  # the many expressions that use it: four times as slow on the CPU.
  moved = lax.optimization_barrier(_move(image, chosen, strength, ranges))
  return _shade(moved, chosen, strength, ranges)


def _move(image: Array, chosen: dict[str, Array], strength: Array | float, r: Ranges) -> Array:
  """The geometric operations; the identity for all others."""
  height, width, _ = image.shape

  def amount(name: str, full: float) -> Array:
    return jnp.where(chosen[name], strength * full, 0.0)

  angle = amount('rotate', r.rotate)
  lean_x, lean_y = amount('shear_x', r.shear), amount('shear_y', r.shear)
  down = amount('translate_y', r.translate[0] * height + r.translate[1])
  right = amount('translate_x', r.translate[0] * width + r.translate[1])
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  # Shears leave the corner where it is, rotations the centre. Whole pixels are moved.
  shift = jnp.round(down) + lean_y * width / 2, jnp.round(right) + lean_x * height / 2
  matrix = (cos, sin + lean_y, lean_x - sin, cos)
  return geometry.warp(image, matrix, shift, nearest=True, fill=r.fill)


def _shade(image: Array, chosen: dict[str, Array], strength: Array | float, r: Ranges) -> Array:
  """The operations on values; the identity for all others."""
  level = jnp.round(image * 255).astype(jnp.int32)  # the 8-bit value
  stored = image, image.min((0, 1)), image.max((0, 1)), _equalize(level) / 255, _smooth(image)
  image, low, high, equalized, smooth = lax.optimization_barrier(stored)
  low, span = low[None, None, :], (high - low)[None, None, :]
  bits = jnp.round(jnp.abs(strength) * r.bits).astype(jnp.int32)
  threshold = 256 - jnp.floor(jnp.abs(strength) * 256)

  grey = _luma(image)
  mean = _luma(image.mean((0, 1), keepdims=True))
  faded = jnp.where(chosen['contrast'], mean, jnp.where(chosen['color'], grey, 0.0))
  faded = jnp.where(chosen['sharpness'], smooth, faded)
  factor = 1 + r.enhance * strength
  enhanced = jnp.clip(factor * image + (1 - factor) * faded, 0, 1)
  results = {
    'auto_contrast': jnp.where(span > 0, (image - low) / jnp.where(span > 0, span, 1.0), image),
    'equalize': equalized,
    'solarize': jnp.where(level >= threshold, 1 - image, image),
    'posterize': jnp.where(bits > 0, (level >> bits << bits) / 255, image),
    **dict.fromkeys(('color', 'contrast', 'brightness', 'sharpness'), enhanced),
  }
  for name, result in results.items():
    image = jnp.where(chosen[name], result, image)
  return image


def _luma(image: Array) -> Array:
  """[H, W, 1]: what Pillow calls L; the mean where there aren't three channels."""
  if image.shape[-1] != 3:
    return image.mean(axis=-1, keepdims=True)
  red, green, blue = jnp.split(image, 3, axis=-1)
  return 0.299 * red + 0.587 * green + 0.114 * blue


def _smooth(image: Array) -> Array:
  """Pillow's SMOOTH: 3x3, all weights 1 but 5 in the centre; the border stays as it is."""
  height, width, _ = image.shape
  if min(height, width) < 3:
    return image
  rows = image[:-2] + image[1:-1] + image[2:]
  box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
  inner = jnp.pad((box + 4 * image[1:-1, 1:-1]) / 13, ((1, 1), (1, 1), (0, 0)))
  row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]
  border = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
  return jnp.where(border, image, inner)


def _equalize(level: Array) -> Array:
  """Histogram equalisation of each channel, as Pillow does it; 8-bit values in and out."""
  channels = level.shape[-1]
  place = level + _BINS * jnp.arange(channels)[None, None, :]
  counts = jnp.zeros(_BINS * channels, jnp.int32).at[place].add(1).reshape(channels, _BINS)
  brightest = jnp.take_along_axis(
    counts, _BINS - 1 - jnp.argmax(counts[:, ::-1] > 0, axis=1, keepdims=True), axis=1
  )
  step = (counts.sum(axis=1, keepdims=True) - brightest) // (_BINS - 1)
  table = (step // 2 + jnp.cumsum(counts, axis=1) - counts) // jnp.maximum(step, 1)
  table = jnp.where(step > 0, jnp.minimum(table, _BINS - 1), jnp.arange(_BINS)[None, :])
  return jnp.take(table.reshape(-1), place, mode='clip')
