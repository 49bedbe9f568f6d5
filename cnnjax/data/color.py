"""Augmentation of colours: a pure function of a key and one float image [H, W, C] in [0, 1]."""

from typing import cast

import jax
import jax.numpy as jnp
from jax import Array

from cnnjax.data import recipe


def color_jitter(
  key: Array,
  image: Array,
  *,
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
) -> Array:
  """Changes brightness, contrast, saturation and hue, in this order; the result is in [0, 1].

  Howard 2013, https://arxiv.org/abs/1312.5402. The four are dm-pix's, which are TensorFlow's:
  brightness is added, contrast is about each channel's mean, saturation and hue are those of HSV.
  (torchvision multiplies brightness, and blends with the grey image for contrast and saturation.)
  Saturation and hue leave images alone that don't have three channels.

  Args:
    key: random key.
    image: `[H, W, C]`.
    brightness: a number uniform in [-brightness, brightness] is added; in [0, 1].
    contrast: a factor uniform in [1 - contrast, 1 + contrast]; in [0, 1].
    saturation: a factor uniform in [1 - saturation, 1 + saturation]; in [0, 1].
    hue: part of the colour circle, uniform in [-hue, hue]; in [0, 0.5].

  Returns:
    `[H, W, C]`.
  """
  import dm_pix  # heavier than what it does

  widths = {'brightness': brightness, 'contrast': contrast, 'saturation': saturation, 'hue': hue}
  for option, width in widths.items():
    recipe.check_number('augment: color_jitter', option, width, 0, 0.5 if option == 'hue' else 1)
  light, spread, strength, turn = jax.random.uniform(key, (4,), minval=-1, maxval=1)
  wanted = {option: recipe.is_traced(width) or width for option, width in widths.items()}
  if wanted['brightness']:
    image = jnp.clip(dm_pix.adjust_brightness(image, brightness * light), 0, 1)
  if wanted['contrast']:
    image = jnp.clip(dm_pix.adjust_contrast(image, 1 + contrast * spread), 0, 1)
  if image.shape[-1] == 3:
    if wanted['saturation']:
      image = cast(Array, dm_pix.adjust_saturation(image, 1 + saturation * strength))
    if wanted['hue']:
      image = cast(Array, dm_pix.adjust_hue(image, hue * turn))
  return image
