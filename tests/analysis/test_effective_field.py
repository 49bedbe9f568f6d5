"""Effective fields against convolutions in NumPy and against Gaussians by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import signal

from cnnjax import models
from cnnjax.analysis import effective_field, field_plots
from cnnjax.errors import UserError

KEY = jax.random.key(0)


def stack(images, *kernels):
  """Linear layers, their outputs as large as their inputs."""
  numbers = ('NHWC', 'HWIO', 'NHWC')
  conv = functools.partial(lax.conv_general_dilated, padding='SAME', dimension_numbers=numbers)
  for kernel in kernels:
    images = conv(images, kernel, (1, 1))
  return images


def test_uniform_kernels_give_the_box_convolved_with_itself():
  """Luo et al. 2016, section 2.1; sigma^2 = n (k^2 - 1) / 12."""
  down, across, n = 3, 5, 4
  images = np.zeros((1, 21, 31, 1), np.float32)
  kernels = [np.ones((down, across, 1, 1), np.float32)] * n
  found = effective_field.measure_fn(KEY, stack, images, *kernels, power=1)

  def folded(k, size):
    along = functools.reduce(np.convolve, [np.ones(k) / k] * n)
    return np.pad(along, (size - len(along)) // 2)

  np.testing.assert_allclose(found.mass, np.outer(folded(3, 21), folded(5, 31)), atol=1e-7)
  assert found.theoretical.size == (9, 17)
  assert found.box == (6, 7, 14, 23)
  np.testing.assert_allclose(found.mean, (10, 15), rtol=1e-6)
  variances = n * (down**2 - 1) / 12, n * (across**2 - 1) / 12
  np.testing.assert_allclose(np.square(found.sigma), variances, rtol=1e-5)

  squared = effective_field.measure_fn(KEY, stack, images, *kernels)
  np.testing.assert_allclose(squared.mass, found.mass**2 / (found.mass**2).sum(), atol=1e-7)
  one = effective_field.measure_fn(KEY, stack, images, *kernels[:1])
  assert one.area95 == 1  # 14 of 15 equal pixels hold 93 %
  gaussian = [np.exp(-((np.arange(31) - 15.0) ** 2) / 2 / v) for v in (8 / 12, 24 / 12)]
  gaussian = np.outer(gaussian[0][5:26], gaussian[1])
  misfit = np.abs(one.mass - gaussian / gaussian.sum()).sum() / 2
  np.testing.assert_allclose(one.misfit, misfit, rtol=1e-5)


def test_any_kernels_equal_their_convolution():
  rng = np.random.default_rng(0)
  first, second = (np.float32(rng.normal(size=s)) for s in ((3, 2, 2, 3), (2, 3, 3, 1)))
  images = np.zeros((3, 11, 11, 2), np.float32)
  found = effective_field.measure_fn(KEY, stack, images, first, second, chunk=2, signals=2)
  # Gradients are correlated with the kernels; of inputs' channels the squares add up.
  expected = np.zeros((4, 4))
  for c in range(2):
    paths = [signal.convolve2d(first[:, :, c, h], second[:, :, h, 0]) for h in range(3)]
    expected += np.sum(paths, 0) ** 2
  top, left, bottom, right = found.box
  inside = found.mass[top : bottom + 1, left : right + 1]
  np.testing.assert_allclose(inside, expected / expected.sum(), rtol=1e-4)
  np.testing.assert_allclose(inside.sum(), 1, rtol=1e-6)


def test_signals_weigh_all_channels_alike():
  kernel = np.zeros((1, 3, 1, 3), np.float32)
  kernel[0, 0, 0, 0], kernel[0, 1, 0, 1], kernel[0, 2, 0, 2] = 1, 2, 1
  images = np.zeros((8, 1, 7, 1), np.float32)
  found = effective_field.measure_fn(KEY, stack, images, kernel, signals=500)
  # Each is a mean of 4,000 squares of normal numbers: standard error 2.2 %.
  np.testing.assert_allclose(found.mass[0], np.array([0, 0, 1, 4, 1, 0, 0]) / 6, rtol=0.07)


def test_a_gaussian_kernel_is_recovered():
  line = np.exp(-(np.arange(-12, 13) ** 2) / 2 / 3.0**2)
  kernel = np.float32(np.outer(line, line))[..., None, None]
  images = np.zeros((1, 25, 25, 1), np.float32)
  found = effective_field.measure_fn(KEY, stack, images, kernel, power=1)
  np.testing.assert_allclose(found.sigma, (3, 3), rtol=1e-3)
  assert found.misfit < 1e-3
  # The circle of radius sigma sqrt(2 ln 20) holds 95 %.
  np.testing.assert_allclose(found.area95 * 25**2, 2 * np.pi * 9 * np.log(20), rtol=0.02)


@pytest.fixture(scope='module')
def lenet():
  model, images = models.create('lenet5', num_classes=10), jax.random.normal(KEY, (3, 32, 32, 1))
  variables = jax.jit(model.init)(jax.random.key(1), images)
  return model, variables, images


def test_a_stage_of_a_model(lenet):
  model, variables, images = lenet
  found = effective_field.measure(KEY, model, variables, images, name='stage2', chunk=2)
  assert found.theoretical.size == (16, 16)
  assert found.box == (8, 8, 23, 23)
  assert found.mass[8:24, 8:24].all()
  np.testing.assert_allclose(found.mass[8:24, 8:24].sum(), 1)

  # By hand: the same signals through the model's own gradient.
  def unit(image, weights):
    return models.features(model, variables, image[None], ['stage2'])['stage2'][0, 2, 2] @ weights

  keys = [jax.random.split(key, 1)[0] for key in jax.random.split(KEY, 3)]
  weights = jnp.stack([jax.random.normal(key, (16,)) for key in keys])
  mass = np.square(jax.jit(jax.vmap(jax.grad(unit)))(images, weights)).sum((0, 3))
  np.testing.assert_allclose(found.mass, mass / mass.sum(), rtol=1e-4, atol=1e-8)


def test_the_logits_see_the_whole_image_and_mistakes_are_told(lenet):
  model, variables, images = lenet
  found = effective_field.measure(KEY, model, variables, images)
  assert found.box == (0, 0, 31, 31)
  with pytest.raises(UserError, match="did you mean 'stage2'"):
    effective_field.measure(KEY, model, variables, images, name='stage3')
  with pytest.raises(UserError, match='chunk=0'):
    effective_field.measure(KEY, model, variables, images, chunk=0)
  with pytest.raises(UserError, match='gradient is zero'):
    effective_field.measure_fn(KEY, lambda x: jnp.tanh(0 * x), images)


def test_the_picture_shows_both_fields():
  images = np.zeros((1, 15, 21, 1), np.float32)
  kernels = [np.ones((3, 5, 1, 1), np.float32)] * 2
  found = effective_field.measure_fn(KEY, stack, images, *kernels, power=1)
  figure = field_plots.over_photo(np.zeros((15, 21, 3), np.uint8), [found, found])
  assert len(figure.axes) == 2
  rectangle, ellipse = figure.axes[0].patches
  assert rectangle.get_bbox().bounds == (5.5, 4.5, 9, 5)  # pixels 6 to 14 across, 5 to 9 down
  assert tuple(np.round(ellipse.center, 4)) == (10, 7)
  assert ellipse.width == pytest.approx(2 * 4**0.5 * (2 * np.log(20)) ** 0.5, rel=1e-4)
  figure.draw_without_rendering()
  with pytest.raises(UserError, match='photo of'):
    field_plots.over_photo(np.zeros((21, 15)), [found])
