import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.data import augment
from cnnjax.errors import UserError

IMAGE = jnp.asarray(np.random.default_rng(3).random((6, 5, 3)), jnp.float32)
KEYS = jax.random.split(jax.random.key(0), 400)


def over_keys(f, image=IMAGE):
  return np.asarray(jax.jit(jax.vmap(f, in_axes=(0, None)))(KEYS, image))


@pytest.mark.parametrize('mode', ['constant', 'reflect'])
def test_random_crop_is_every_window_of_the_padded_image_equally_often(mode):
  padded = np.pad(np.asarray(IMAGE), ((2, 2), (2, 2), (0, 0)), mode=mode)
  windows = {padded[i : i + 6, j : j + 5].tobytes(): 0 for i in range(5) for j in range(5)}
  for crop in over_keys(lambda key, image: augment.random_crop(key, image, padding=2, mode=mode)):
    windows[crop.tobytes()] += 1
  assert len(windows) == 25
  assert min(windows.values()) >= 4  # 16 expected, standard deviation 3.9
  assert max(windows.values()) <= 32


def test_random_crop_without_padding_is_the_identity():
  np.testing.assert_array_equal(augment.random_crop(KEYS[0], IMAGE, padding=0), IMAGE)


@pytest.mark.parametrize('probability', [0.0, 0.2, 1.0])
def test_flip_mirrors_columns_with_its_probability(probability):
  flips = over_keys(lambda key, image: augment.flip_horizontal(key, image, probability=probability))
  mirrored = (flips == np.fliplr(IMAGE)).all(axis=(1, 2, 3))
  same = (flips == np.asarray(IMAGE)).all(axis=(1, 2, 3))
  assert (mirrored ^ same).all()
  assert abs(mirrored.mean() - probability) <= 4 * (probability * (1 - probability) / 400) ** 0.5


def test_one_image_gets_the_same_alone_as_in_a_batch():
  recipe = augment.parse('random_crop(padding=2)|flip_horizontal')
  images = jnp.stack([IMAGE, 1 - IMAGE, IMAGE / 2])
  batched = jax.vmap(recipe)(KEYS[:3], images)
  for i in range(3):
    np.testing.assert_array_equal(recipe(KEYS[i], images[i]), batched[i])


def test_parse_runs_operations_in_order_each_with_the_key_of_its_position():
  recipe = augment.parse(
    ' random_crop(padding=2, mode="reflect") | flip_horizontal|random_crop(padding=1)'
  )
  for key in KEYS[:4]:
    draw = lambda position, key=key: jax.random.fold_in(key, position)
    image = augment.random_crop(draw(0), IMAGE, padding=2, mode='reflect')
    image = augment.flip_horizontal(draw(1), image)
    image = augment.random_crop(draw(2), image, padding=1)
    np.testing.assert_array_equal(recipe(key, IMAGE), image)


@pytest.mark.parametrize('spec', ['', '  '])
def test_empty_recipe_is_the_identity(spec):
  assert augment.parse(spec)(KEYS[0], IMAGE) is IMAGE


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('random_crops(padding=4)', "augment='random_crops' is unknown: did you mean 'random_crop'"),
    ('random_crop(pading=4)', "augment: option of random_crop='pading' is unknown"),
    ('random_crop', 'random_crop needs the option padding'),
    ('random_crop(4)', 'names with keyword options'),
    ('random_crop(**{"padding": 4})', 'names with keyword options'),
    ('random_crop(padding=-1)', 'random_crop(padding=-1) must be an integer >= 0'),
    ('random_crop(padding=1.5)', 'padding=1.5'),
    ('random_crop(padding="4")', "padding='4'"),
    ('random_crop(padding=4, mode="edge")', "mode='edge' is unknown"),
    ('flip_horizontal(probability=2)', 'probability=2) must be a number in [0, 1]'),
    ('flip_horizontal(probability=open("x"))', 'options must be plain values'),
    ('flip_horizontal|', 'wrong syntax'),
    ('flip_horizontal(probability=0.1, probability=0.2)', 'is given twice'),
    ('flip_horizontal;random_crop', 'wrong syntax'),
    ('flip_horizontal & flip_horizontal', 'names with keyword options'),
    ('augment.flip_horizontal', 'names with keyword options'),
    ('__import__("os")', 'names with keyword options'),
    ('\0', 'wrong syntax'),
    ('(' * 100_000, 'wrong syntax'),
    (None, 'augment=None must be a string'),
  ],
)
def test_mistakes_are_named(spec, message):
  with pytest.raises(UserError) as error:
    augment.parse(spec)
  assert message in str(error.value)
  assert str(error.value).startswith('augment')


def test_reflecting_further_than_the_image_is_refused():
  with pytest.raises(UserError, match=r'padding=5.* below the size 6x5'):
    augment.random_crop(KEYS[0], IMAGE, padding=5, mode='reflect')


def test_cutout_blackens_a_square_cut_off_at_the_borders():
  image = jnp.ones((9, 12, 2))
  keys = jax.random.split(jax.random.key(0), 500)
  holes = np.asarray(jax.vmap(lambda k: augment.cutout(k, image, size=4))(keys)) == 0
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
    augment.cutout(jax.random.key(0), jnp.ones((4, 4, 1)), size=size)
