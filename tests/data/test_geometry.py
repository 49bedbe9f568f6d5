"""Crops, flips and affine maps: what they did is read from images of ramps, or done by SciPy."""

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cnnjax.data import geometry, resample
from cnnjax.errors import UserError

IMAGE = jnp.asarray(np.random.default_rng(3).random((6, 5, 3)), jnp.float32)
KEYS = jax.random.split(jax.random.key(0), 400)


def over_keys(f, image=IMAGE, keys=KEYS):
  return np.asarray(jax.jit(jax.vmap(f, in_axes=(0, None)))(keys, image))


def ramps(size):
  """An image [size, size, 2] whose values are (row, column): interpolation of it is exact."""
  return jnp.stack(jnp.meshgrid(*[jnp.arange(size, dtype=jnp.float32)] * 2, indexing='ij'), -1)


@pytest.mark.parametrize(
  ('f', 'mode'),
  [(geometry.random_crop, mode) for mode in ('constant', 'reflect')]
  + [(geometry.translate, mode) for mode in ('constant', 'reflect', 'edge', 'wrap')],
)
def test_every_window_of_the_padded_image_comes_equally_often(f, mode):
  padded = np.pad(np.asarray(IMAGE), ((2, 2), (2, 2), (0, 0)), mode=mode)
  windows = {padded[i : i + 6, j : j + 5].tobytes(): 0 for i in range(5) for j in range(5)}
  option = 'padding' if f is geometry.random_crop else 'pixels'
  for crop in over_keys(lambda key, image: f(key, image, mode=mode, **{option: 2})):
    windows[crop.tobytes()] += 1
  assert len(windows) == 25
  assert min(windows.values()) >= 4  # 16 expected, standard deviation 3.9
  assert max(windows.values()) <= 32


@pytest.mark.parametrize('size', [(8, 8, 3), (7, 7, 1)])
def test_nothing_happens_at_zero(size):
  image = jnp.asarray(np.random.default_rng(0).random(size), jnp.float32)
  for f, options in (
    (geometry.random_crop, {'padding': 0}),
    (geometry.translate, {'pixels': 0}),
    (geometry.random_resized_crop, {'scale': (1, 1), 'ratio': (1, 1)}),
    (geometry.flip_horizontal, {'probability': 0}),
    (geometry.rotate, {'degrees': 0}),
    (geometry.affine, {}),
  ):
    np.testing.assert_array_equal(f(KEYS[0], image, **options), image)


@pytest.mark.parametrize('probability', [0.0, 0.2, 1.0])
def test_flip_mirrors_columns_with_its_probability(probability):
  flips = over_keys(
    lambda key, image: geometry.flip_horizontal(key, image, probability=probability)
  )
  mirrored = (flips == np.fliplr(IMAGE)).all(axis=(1, 2, 3))
  same = (flips == np.asarray(IMAGE)).all(axis=(1, 2, 3))
  assert (mirrored ^ same).all()
  assert abs(mirrored.mean() - probability) <= 4 * (probability * (1 - probability) / 400) ** 0.5


def test_alternating_flip_mirrors_at_odd_visits():
  for visit in range(4):
    shown = geometry.flip_alternating(KEYS[visit], IMAGE, visit=jnp.int32(visit))
    np.testing.assert_array_equal(shown, IMAGE[:, ::-1] if visit % 2 else IMAGE)


@pytest.mark.parametrize('seed', range(2))
def test_warp_is_the_affine_map_of_scipy_and_of_dm_pix(seed):
  rng = np.random.default_rng(seed)
  image = rng.random((9, 12, 2)).astype(np.float32)
  matrix, shift = np.eye(2) + rng.normal(size=(2, 2)) / 3, rng.normal(size=2)
  center = (np.array(image.shape[:2]) - 1) / 2
  offset = center + shift - matrix @ center
  for nearest, order in ((False, 1), (True, 0)):
    expected = np.stack(
      [
        ndimage.affine_transform(
          plane, matrix, offset, order=order, mode='grid-constant', cval=0.25
        )
        for plane in np.moveaxis(image, -1, 0)
      ],
      axis=-1,
    )
    entries = tuple(matrix.ravel().tolist())
    result = geometry.warp(image, entries, tuple(shift.tolist()), nearest=nearest, fill=0.25)
    np.testing.assert_allclose(result, expected, atol=2e-6)
  with jax.numpy_rank_promotion('allow'):
    full = np.block([[matrix, np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]])
    other = dm_pix.affine_transform(
      jnp.asarray(image), jnp.asarray(full, jnp.float32),
      offset=jnp.asarray([*offset, 0], jnp.float32), mode='constant', cval=-9.0,
    )  # fmt: skip
  inside = np.asarray(other) != -9  # it leaves out what lies less than a pixel outside
  assert inside.mean() > 0.2
  result = np.asarray(geometry.warp(image, entries, tuple(shift.tolist())))
  np.testing.assert_allclose(result[inside], np.asarray(other)[inside], atol=1e-5)


def maps(f, size=33, count=400):
  """The maps [count, 2, 2] and shifts [count, 2] that f applied, seen from the centre."""
  c = size // 2
  out = over_keys(f, ramps(size), jax.random.split(jax.random.key(1), count))
  here = out[:, c, c]
  return np.stack([out[:, c + 1, c] - here, out[:, c, c + 1] - here], axis=-1), here - c


def test_rotations_are_about_the_centre_and_uniform():
  matrices, shifts = maps(lambda key, image: geometry.rotate(key, image, degrees=30))
  np.testing.assert_allclose(shifts, 0, atol=1e-4)
  np.testing.assert_allclose(
    matrices @ matrices.swapaxes(1, 2), np.tile(np.eye(2), (400, 1, 1)), atol=1e-4
  )
  angles = np.degrees(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
  counts, _ = np.histogram(angles, bins=8, range=(-30, 30))
  assert counts.sum() == 400
  assert counts.min() >= 24  # 50 expected, standard deviation 6.6
  assert counts.max() <= 76


def test_affine_maps_are_made_of_shear_scale_rotation_and_translation():
  matrices, shifts = maps(
    lambda key, image: geometry.affine(
      key, image, degrees=20, translate=0.1, scale=(0.8, 1.5), shear=10
    )
  )
  forward = np.linalg.inv(matrices)  # from the image to the result
  # A rotation and a scale times [[1, 0], [t, 1]] on (row, column): the second column isn't sheared.
  scales = np.linalg.norm(forward[:, :, 1], axis=1)
  np.testing.assert_allclose(np.linalg.det(forward), scales**2, rtol=1e-3)
  angles = np.degrees(np.arctan2(-forward[:, 0, 1], forward[:, 1, 1]))
  leaning = (forward[:, :, 0] * forward[:, :, 1]).sum(axis=1) / scales**2
  shears = np.degrees(np.arctan(leaning))
  moves = -(forward @ shifts[:, :, None])[..., 0] / 33
  for values, low, high in (
    (scales, 0.8, 1.5), (angles, -20, 20), (shears, -10, 10),
    (moves[:, 0], -0.1, 0.1), (moves[:, 1], -0.1, 0.1),
  ):  # fmt: skip
    margin = (high - low) * 1e-3
    assert low - margin <= values.min() <= low + (high - low) / 50
    assert high - (high - low) / 50 <= values.max() <= high + margin
    spread = (high - low) / 12**0.5
    assert abs(values.mean() - (low + high) / 2) <= 4 * spread / 400**0.5


def boxes(out):
  """The boxes (top, left, height, width) that were stretched over ramps, from the results."""
  size, middle = out.shape[1], out.shape[1] // 2
  start, length = [], []
  for axis in (0, 1):
    line = out[:, :, 0, 0] if axis == 0 else out[:, 0, :, 1]
    step = line[:, middle + 1] - line[:, middle]
    length.append(step * size)
    start.append(line[:, middle] - (middle + 0.5) * step + 0.5)
  return np.stack([*start, *length], axis=-1)


def test_resized_crops_are_boxes_of_the_right_area_and_ratio():
  out = over_keys(
    lambda key, image: geometry.random_resized_crop(key, image, scale=(0.1, 0.5), ratio=(0.5, 2)),
    ramps(64),
  )
  found = boxes(out)
  np.testing.assert_allclose(found, np.round(found), atol=0.02)
  top, left, height, width = np.round(found).T
  assert top.min() >= 0
  assert left.min() >= 0
  assert (top + height).max() <= 64
  assert (left + width).max() <= 64
  area, ratio = height * width / 64**2, width / height
  assert 0.1 * 0.9 < area.min() < 0.12  # sides are rounded to pixels
  assert 0.48 < area.max() < 0.5 * 1.1
  assert 0.45 < ratio.min() < 0.55
  assert 1.8 < ratio.max() < 2.2
  assert abs(area.mean() - 0.3) < 4 * 0.4 / 12**0.5 / 20  # uniform in [0.1, 0.5]
  assert abs(np.log(ratio).mean()) < 4 * np.log(4) / 12**0.5 / 20  # uniform in its logarithm
  for first, room in ((top, 64 - height), (left, 64 - width)):  # uniform over the places there are
    assert abs((first / np.maximum(room, 1)).mean() - 0.5) < 4 / 12**0.5 / 20


def test_resized_crop_is_the_resampling_of_pillow():
  image = np.random.default_rng(0).integers(0, 256, (32, 24, 3), np.uint8)
  square = np.zeros((32, 32, 5), np.float32)
  square[:, :24, :3], square[..., 3:] = image / 255, ramps(32)
  # The same draws on an image of the same size, whose ramps say which box they meant.
  out = over_keys(
    lambda key, im: geometry.random_resized_crop(key, im, scale=(0.2, 0.6)), square, KEYS[:20]
  )
  reference = np.round(square[..., :3] * 255).astype(np.uint8)
  for result, box in zip(out, np.round(boxes(out[..., 3:])), strict=True):
    cut = resample.cut(reference, resample.Box(*map(int, box), closed=True), (32, 32))
    np.testing.assert_allclose(result[..., :3] * 255, cut, atol=2.01)  # theirs rounds twice


def test_resized_crop_falls_back_to_the_central_box():
  crop = geometry.random_resized_crop(KEYS[0], ramps(16), scale=(0.9, 1), ratio=(4, 4))
  np.testing.assert_allclose(crop[:, :, 1], ramps(16)[:, :, 1], atol=1e-5)  # the whole width ...
  rows = np.clip(6 + (np.arange(16) + 0.5) / 4 - 0.5, 6, 9)  # ... and rows 6 to 9
  np.testing.assert_allclose(crop[:, 0, 0], rows, atol=1e-5)


def test_reflecting_further_than_the_image_is_refused():
  with pytest.raises(UserError, match=r'random_crop\(padding=5.* below the size 6x5'):
    geometry.random_crop(KEYS[0], IMAGE, padding=5, mode='reflect')
