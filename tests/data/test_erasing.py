import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.data import erasing
from cnnjax.errors import UserError


def test_cutout_blackens_a_square_cut_off_at_the_borders():
  image = jnp.ones((9, 12, 2))
  keys = jax.random.split(jax.random.key(0), 500)
  holes = np.asarray(jax.jit(jax.vmap(lambda k: erasing.cutout(k, image, size=4)))(keys)) == 0
  assert (holes[..., 0] == holes[..., 1]).all()
  rows, columns = holes[..., 0].any(axis=2), holes[..., 0].any(axis=1)
  np.testing.assert_array_equal(holes[..., 0], rows[:, :, None] & columns[:, None, :])
  heights, widths = rows.sum(axis=1), columns.sum(axis=1)
  # The centre is always inside: at least half of the square stays, and the whole one fits often.
  assert (heights.min(), heights.max(), widths.min(), widths.max()) == (2, 4, 2, 4)
  for hit in (rows, columns):
    assert hit.any(axis=0).all()  # every row and column is reached


@pytest.mark.parametrize('size', [0, -1, 2.0, True])
def test_cutout_refuses_a_size(size):
  with pytest.raises(UserError, match=r'augment: cutout\(size='):
    erasing.cutout(jax.random.key(0), jnp.ones((4, 4, 1)), size=size)


def test_random_erasing_fills_a_box_with_noise_as_often_as_it_says():
  image = jnp.full((24, 20, 3), -1.0)  # no noise is negative
  keys = jax.random.split(jax.random.key(2), 1000)

  def erase(key):
    return erasing.random_erasing(key, image, probability=0.3, scale=(0.1, 0.3), ratio=(0.5, 2))

  out = np.asarray(jax.jit(jax.vmap(erase))(keys))
  noise = (out >= 0).all(axis=-1)
  np.testing.assert_array_equal(noise, (out >= 0).any(axis=-1))
  rows, columns = noise.any(axis=2), noise.any(axis=1)
  np.testing.assert_array_equal(noise, rows[:, :, None] & columns[:, None, :])
  hit = noise.any(axis=(1, 2))
  assert abs(hit.sum() - 300) <= 4 * (1000 * 0.3 * 0.7) ** 0.5
  area = noise[hit].sum(axis=(1, 2)) / (24 * 20)
  assert 0.08 < area.min() < 0.12
  assert 0.28 < area.max() < 0.34  # sides are rounded to pixels
  ratio = columns[hit].sum(axis=1) / rows[hit].sum(axis=1)
  assert 0.4 < ratio.min() < 0.6
  assert 1.7 < ratio.max() < 2.5
  values = np.round(out[noise] * 255)
  np.testing.assert_allclose(out[noise] * 255, values, atol=1e-4)
  counts = np.bincount(values.astype(int).ravel(), minlength=256)
  assert len(counts) == 256
  assert abs(counts - counts.mean()).max() < 5 * counts.mean() ** 0.5


def test_random_erasing_at_probability_zero_is_the_identity():
  image = jnp.asarray(np.random.default_rng(0).random((5, 7, 1)), jnp.float32)
  erased = erasing.random_erasing(jax.random.key(0), image, probability=0)
  np.testing.assert_array_equal(erased, image)
