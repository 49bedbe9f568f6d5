"""RandAugment and TrivialAugment: the operations against Pillow, the draws by what came out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from cnnjax.data import policy

ENHANCERS = {
  'color': ImageEnhance.Color,
  'contrast': ImageEnhance.Contrast,
  'brightness': ImageEnhance.Brightness,
}


def pillow(image, name, s, ranges):
  """The operation at strength s on a Pillow image, as the papers' programs do it."""
  width, height = image.size
  fill = round(ranges.fill * 255)
  fill = (fill,) * 3 if image.mode == 'RGB' else fill

  def transform(*matrix):
    return image.transform(
      image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=fill
    )

  far = [round(s * (ranges.translate[0] * side + ranges.translate[1])) for side in (width, height)]
  if name in ENHANCERS:
    return ENHANCERS[name](image).enhance(1 + s * ranges.enhance)
  if name == 'sharpness':
    return Image.blend(image.filter(ImageFilter.SMOOTH), image, 1 + s * ranges.enhance)
  return {
    'identity': lambda: image,
    'auto_contrast': lambda: ImageOps.autocontrast(image),
    'equalize': lambda: ImageOps.equalize(image),
    'rotate': lambda: image.rotate(math.degrees(s * ranges.rotate), fillcolor=fill),
    'solarize': lambda: ImageOps.solarize(image, 256 - int(abs(s) * 256)),
    'posterize': lambda: ImageOps.posterize(image, 8 - round(abs(s) * ranges.bits)),
    'shear_x': lambda: transform(1, s * ranges.shear, 0, 0, 1, 0),
    'shear_y': lambda: transform(1, 0, 0, s * ranges.shear, 1, 0),
    'translate_x': lambda: transform(1, 0, far[0], 0, 1, 0),
    'translate_y': lambda: transform(1, 0, 0, 0, 1, far[1]),
  }[name]()


def photo(size=(30, 37, 3), seed=0):
  """8-bit values that are neither uniform nor of the whole range."""
  values = np.random.default_rng(seed).normal(100, 30, size) + 3 * np.arange(size[1])[:, None] / 2
  return np.clip(values, 20, 240).astype(np.uint8)


@jax.jit
def apply_all(image, strengths):
  """Every operation at every strength: [14, S, H, W, C], once per range."""
  one = lambda ranges: jax.vmap(jax.vmap(
    lambda o, s: policy.apply(image, o, s, ranges), (None, 0)), (0, None)
  )(jnp.arange(len(policy.OPERATIONS)), strengths)  # fmt: skip
  return one(policy.RAND), one(policy.WIDE)


@pytest.mark.parametrize('channels', [3, 1])
def test_operations_are_those_of_pillow(channels):
  pixels = photo((30, 37, channels))
  image = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
  strengths = (-0.9, -0.37, 0.0, 0.13, 0.7, 1.0)
  results = apply_all(jnp.asarray(pixels / 255, jnp.float32), jnp.asarray(strengths))
  for ranges, result in zip((policy.RAND, policy.WIDE), np.asarray(results), strict=False):
    for name, by_strength in zip(policy.OPERATIONS, result, strict=True):
      for s, values in zip(strengths, by_strength, strict=True):
        expected = np.asarray(pillow(image, name, s, ranges), np.float64).reshape(pixels.shape)
        off = abs(values * 255 - expected) > 1.51  # it truncates, after rounding the grey value
        # Where a pixel's source lies between two pixels, either is the nearest.
        moved = name in ('rotate', 'shear_x', 'shear_y')
        assert off.mean() <= (0.01 if moved else 0), (name, s, abs(values * 255 - expected).max())
        if s == 0 and name not in ('auto_contrast', 'equalize'):
          np.testing.assert_array_equal(values, np.float32(pixels / 255))


def test_an_image_of_one_value_is_no_division_by_zero():
  operations = jnp.asarray(
    [policy.OPERATIONS.index(name) for name in ('auto_contrast', 'equalize', 'contrast', 'color')]
  )
  apply = jax.jit(jax.vmap(lambda o, image: policy.apply(image, o, 0.5, policy.WIDE), (0, None)))
  for value in (0, 77, 255):
    image = jnp.full((5, 4, 3), value / 255, jnp.float32)
    for result in apply(operations, image):
      np.testing.assert_allclose(result, image, atol=1e-6)


def over_keys(f, keys):
  return np.asarray(jax.jit(jax.vmap(f))(keys))


def closest(outputs, candidates):
  """For every output the candidate nearest to it, and how far that is."""
  flat = np.asarray(candidates, np.float64).reshape(len(candidates), -1)
  out = np.asarray(outputs, np.float64).reshape(len(outputs), -1)
  distance = (out**2).sum(1)[:, None] + (flat**2).sum(1)[None] - 2 * out @ flat.T
  return distance.argmin(axis=1), distance.min(axis=1)


SMALL = jnp.asarray(photo((20, 20, 3)) / 255, jnp.float32)


def test_rand_augment_draws_every_operation_and_sign_equally_often():
  candidates, _ = apply_all(SMALL, jnp.asarray([-0.7, 0.7]))
  candidates = candidates.reshape(28, *SMALL.shape)
  keys = jax.random.split(jax.random.key(0), 1400)
  one = over_keys(lambda key: policy.rand_augment(key, SMALL, num_ops=1, magnitude=7), keys)
  which, distance = closest(one, candidates)
  assert distance.max() < 1e-6
  counts = np.bincount(which, minlength=28).reshape(14, 2)
  operations = counts.sum(axis=1)
  assert operations.min() >= 61  # 100 expected, standard deviation 9.6
  assert operations.max() <= 139
  signed = [name not in ('identity', 'auto_contrast', 'equalize', 'solarize', 'posterize')
            for name in policy.OPERATIONS]  # fmt: skip
  assert abs(counts[signed, 0] / operations[signed] - 0.5).max() < 0.2
  assert abs(counts[signed, 0].sum() / operations[signed].sum() - 0.5) < 4 * 0.5 / 900**0.5


def test_rand_augment_applies_one_operation_after_the_other():
  first, _ = apply_all(SMALL, jnp.asarray([-0.7, 0.7]))
  pairs, _ = jax.jit(jax.vmap(apply_all, (0, None)))(
    first.reshape(28, *SMALL.shape), jnp.asarray([-0.7, 0.7])
  )
  keys = jax.random.split(jax.random.key(1), 40)
  two = over_keys(lambda key: policy.rand_augment(key, SMALL, magnitude=7), keys)
  which, distance = closest(two, pairs.reshape(-1, *SMALL.shape))
  assert distance.max() < 1e-6
  assert len(set(which.tolist())) > 30


def test_trivial_augment_draws_operation_and_strength():
  strengths = np.arange(-30, 31) / 30
  _, candidates = apply_all(SMALL, jnp.asarray(strengths, jnp.float32))
  keys = jax.random.split(jax.random.key(0), 1400)
  out = over_keys(lambda key: policy.trivial_augment(key, SMALL), keys)
  which, distance = closest(out, candidates.reshape(-1, *SMALL.shape))
  assert distance.max() < 1e-6
  operations, places = np.divmod(which, len(strengths))
  counts = np.bincount(operations, minlength=14)
  moved = counts[-2:].sum()  # 194 expected; by 20 pixels or more, along either axis, all is black
  assert 144 <= moved <= 244
  counts = counts[1:-2]  # the identity is also what strength 0 comes to
  assert counts.min() >= 58  # 100 expected, or 97 without the zeros
  assert counts.max() <= 139
  brightness = places[operations == policy.OPERATIONS.index('brightness')]
  assert abs(brightness.mean() - 30) < 4 * 18 / 97**0.5
  assert brightness.min() < 5
  assert brightness.max() > 55
