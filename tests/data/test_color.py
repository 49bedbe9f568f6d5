"""Colour jitter: what was drawn is read from the result, in scikit-image's HSV."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import color as skimage_color

from cnnjax.data import color

IMAGE = jnp.asarray(np.random.default_rng(3).uniform(0.3, 0.7, (6, 5, 3)), jnp.float32)
KEYS = jax.random.split(jax.random.key(0), 300)


def jitter(image=IMAGE, **options):
  f = jax.jit(jax.vmap(lambda key: color.color_jitter(key, image, **options)))
  return np.asarray(f(KEYS), np.float64)


def assert_uniform(values, low, high):
  counts, _ = np.histogram(values, bins=5, range=(low - 1e-4, high + 1e-4))
  assert counts.sum() == len(values) == 300
  assert counts.min() >= 32  # 60 expected, standard deviation 6.9
  assert counts.max() <= 88


def test_brightness_is_added():
  delta = jitter(brightness=0.3) - np.asarray(IMAGE)
  assert np.ptp(delta, axis=(1, 2, 3)).max() < 1e-6
  assert_uniform(delta[:, 0, 0, 0], -0.3, 0.3)


def test_contrast_is_about_the_mean_of_each_channel():
  mean = np.asarray(IMAGE).mean(axis=(0, 1))
  factor = (jitter(contrast=0.4) - mean) / (np.asarray(IMAGE) - mean)
  factor = np.where(abs(np.asarray(IMAGE) - mean) > 0.02, factor, factor[:, :1, :1, :1])
  assert np.ptp(factor, axis=(1, 2, 3)).max() < 1e-4
  assert_uniform(factor[:, 0, 0, 0], 0.6, 1.4)


def test_saturation_and_hue_are_those_of_hsv():
  hsv = skimage_color.rgb2hsv(np.asarray(IMAGE, np.float64))
  out = skimage_color.rgb2hsv(jitter(saturation=0.5))
  np.testing.assert_allclose(out[..., [0, 2]], np.tile(hsv[..., [0, 2]], (300, 1, 1, 1)), atol=1e-4)
  factor = out[..., 1] / hsv[..., 1]
  assert np.ptp(factor, axis=(1, 2)).max() < 1e-4
  assert_uniform(factor[:, 0, 0], 0.5, 1.5)

  out = skimage_color.rgb2hsv(jitter(hue=0.2))
  np.testing.assert_allclose(out[..., 1:], np.tile(hsv[..., 1:], (300, 1, 1, 1)), atol=1e-4)
  turn = (out[..., 0] - hsv[..., 0] + 0.5) % 1 - 0.5
  assert np.ptp(turn, axis=(1, 2)).max() < 1e-4
  assert_uniform(turn[:, 0, 0], -0.2, 0.2)


def test_nothing_happens_at_zero():
  assert color.color_jitter(KEYS[0], IMAGE) is IMAGE


@pytest.mark.parametrize('channels', [1, 4])
def test_grey_images_have_brightness_and_contrast_alone(channels):
  image = jnp.asarray(np.random.default_rng(0).random((4, 4, channels)), jnp.float32)
  assert color.color_jitter(KEYS[0], image, saturation=0.5, hue=0.5) is image
  out = jitter(image, brightness=1, contrast=1, saturation=1, hue=0.5)
  assert (out.min(), out.max()) == (0, 1)  # clipped
