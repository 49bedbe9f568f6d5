"""Patches against a brute-force search; images made for features whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import analysis
from cnnjax.analysis import synthesis
from cnnjax.errors import UserError
from cnnjax.layers.conv import conv

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def test_patches_by_brute_force():
  """The patch that a convolution likes best, of all of each image's patches."""
  layer = conv(3, (3, 2), strides=2, padding=0)
  images = RNG.normal(size=(6, 9, 8, 2)).astype(np.float32)
  variables = layer.init(KEY, images)
  (field,) = (f for f in analysis.fields(layer, (9, 8, 2)) if not f.name or f.name == 'Conv')
  found = synthesis.strongest(layer.apply(variables, images), 2)
  cut = synthesis.patches(images, found, field)
  assert cut.shape == (3, 2, 3, 2, 2)
  kernel = np.asarray(variables['params']['kernel'])
  for channel in range(3):
    best = []
    for image in images:
      every = [image[y : y + 3, x : x + 2] for y in range(0, 7, 2) for x in range(0, 7, 2)]
      best.append(max(((p * kernel[..., channel]).sum(), p.tobytes()) for p in every))
    best.sort(reverse=True)
    np.testing.assert_allclose(found.value[channel], [v for v, _ in best[:2]], rtol=1e-5)
    assert [p.tobytes() for p in cut[channel]] == [p for _, p in best[:2]]


def test_patches_stay_inside():
  maps = np.zeros((1, 3, 3, 2))
  maps[0, 0, 0, 0] = maps[0, 2, 1, 1] = 1
  found = synthesis.strongest(maps, 1)
  assert (found.row[:, 0].tolist(), found.column[:, 0].tolist()) == ([0, 2], [0, 1])
  images = np.arange(36.0).reshape(1, 6, 6, 1)
  field = analysis.Field('', (1, 3, 3, 2), (3, 99), (2, 2), (0.0, 0.0))
  cut = synthesis.patches(images, found, field)
  np.testing.assert_array_equal(cut[0, 0], images[0, :3])  # from row -1
  np.testing.assert_array_equal(cut[1, 0], images[0, 3:])
  with pytest.raises(UserError, match='count=2'):
    synthesis.strongest(maps, 2)


@pytest.mark.parametrize('linear', [False, True])
def test_inversion_recovers_the_image(linear):
  image = RNG.uniform(-1, 1, (1, 6, 5, 2)).astype(np.float32)
  matrix = np.linalg.qr(RNG.normal(size=(60, 60)))[0].astype(np.float32)
  fn = lambda x: x.reshape(1, -1) @ (3 * matrix) if linear else x
  made = synthesis.invert(KEY, fn, fn(image), image.shape, variation=0.0, energy=0.0)
  np.testing.assert_allclose(made.images, image, atol=1e-3)
  assert made.values.shape == (400,)
  assert made.values[-1] < 1e-6 < made.values[0]


def test_variation_smooths_what_features_leave_open():
  """Given only the mean, the image is flat."""
  fn = lambda x: x.mean((1, 2))
  made = synthesis.invert(KEY, fn, jnp.full((1, 1), 0.5), (1, 6, 6, 1), variation=1.0, energy=0.0)
  np.testing.assert_allclose(made.images, 0.5, atol=0.02)


def test_total_variation_by_hand():
  image = jnp.array([[0.0, 3.0], [4.0, 9.0]]).reshape(1, 2, 2, 1)
  assert synthesis.total_variation(image) == (25 + 36 + 25) / 4
  assert synthesis.total_variation(image, 1.0) == pytest.approx(4)
  slope = jax.grad(synthesis.total_variation)(jnp.zeros((1, 3, 3, 1)), 1.0)
  assert np.isfinite(slope).all()


def test_the_best_picture_of_a_filter_is_the_filter():
  """Within bounds, and shifted by jitter, the score rises; without jitter it is the sign."""
  weights = RNG.normal(size=(1, 4, 4, 1)).astype(np.float32)
  score = lambda x: (x * weights).sum()
  made = synthesis.maximise(
    KEY, score, np.zeros((1, 4, 4, 1)), steps=60, jitter=0, variation=0.0, bounds=(-1, 1)
  )
  np.testing.assert_allclose(made.images, np.sign(weights), atol=1e-6)
  assert made.values[0] == 0 < made.values[10] < made.values[-1]


def test_jitter_is_drawn_from_the_key():
  layer = conv(1, 3, padding=1)
  start = RNG.normal(size=(1, 8, 8, 1)).astype(np.float32)
  variables = layer.init(KEY, start)
  score = lambda x: (layer.apply(variables, x) ** 2)[0, 0, 0, 0]  # at one place
  made = [synthesis.maximise(jax.random.key(k), score, start, steps=40) for k in (0, 0, 1)]
  np.testing.assert_array_equal(made[0].images, made[1].images)
  assert np.abs(made[0].images - made[2].images).max() > 0.01
  # Rolled about, all places get something; one fixed place would leave most pixels as they were.
  assert np.mean(np.abs(made[0].images - start) > 0.01) > 0.9
  assert made[0].values[-5:].mean() > made[0].values[:5].mean()
