"""Augmentations that hide a part of the image.

Pure functions of a key and one float image [H, W, C] in [0, 1], written for `vmap`.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from cnnjax.data import geometry, recipe


def cutout(key: Array, image: Array, *, size: int) -> Array:
  """Blackens a square whose centre is uniform over the image; what lies outside is cut off.

  DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552.

  Args:
    key: random key.
    image: `[H, W, C]`.
    size: side of the square, in pixels.

  Returns:
    `[H, W, C]`.
  """
  recipe.check_integer('augment: cutout', 'size', size, 1)
  height, width, _ = image.shape
  row_key, column_key = jax.random.split(key)
  top = jax.random.randint(row_key, (), 0, height) - size // 2
  left = jax.random.randint(column_key, (), 0, width) - size // 2
  return jnp.where(_inside(height, width, top, left, size, size), 0.0, image)


def random_erasing(
  key: Array,
  image: Array,
  *,
  probability: float = 0.5,
  scale: tuple[float, float] = (0.02, 0.4),
  ratio: tuple[float, float] = (0.3, 10 / 3),
) -> Array:
  """Replaces a box of random area and shape by noise: each value a uniform multiple of 1 / 255.

  Zhong et al. 2017, https://arxiv.org/abs/1708.04896 (RE-R). As in today's implementations, and
  unlike there, the aspect ratio is uniform in its logarithm, and where none of ten boxes fits the
  image stays as it is.

  Args:
    key: random key.
    image: `[H, W, C]`.
    probability: that anything is erased, in [0, 1].
    scale: least and most area, as fractions of the image's.
    ratio: least and most aspect ratio (width / height).

  Returns:
    `[H, W, C]`.
  """
  recipe.check_number('augment: random_erasing', 'probability', probability, 0, 1)
  recipe.check_interval('augment: random_erasing', 'scale', scale, 0, 1)
  recipe.check_interval('augment: random_erasing', 'ratio', ratio, 0, 100)
  height, width, _ = image.shape
  chance_key, box_key, noise_key = jax.random.split(key, 3)
  *box, fits = geometry.random_box(box_key, height, width, scale, ratio)
  erased = fits & jax.random.bernoulli(chance_key, jnp.float32(probability))
  # Bytes, like the pixels: a word of random bits gives four.
  words = jax.random.bits(noise_key, (-(-image.size // 4),))
  noise = lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: image.size]
  noise = noise.reshape(image.shape).astype(image.dtype) / 255
  return jnp.where(_inside(height, width, *box) & erased, noise, image)


def _inside(
  height: int,
  width: int,
  top: Array,
  left: Array,
  box_height: Array | int,
  box_width: Array | int,
) -> Array:
  """Where a box lies in an image: boolean [H, W, 1]."""
  row, column = jnp.arange(height), jnp.arange(width)
  rows = (row >= top) & (row < top + box_height)
  columns = (column >= left) & (column < left + box_width)
  return (rows[:, None] & columns[None, :])[..., None]
