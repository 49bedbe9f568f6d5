import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.data import augment, geometry
from cnnjax.errors import UserError

IMAGE = jnp.asarray(np.random.default_rng(3).random((6, 5, 3)), jnp.float32)
KEYS = jax.random.split(jax.random.key(0), 400)


RECIPES = (
  'random_crop(padding=2)|flip_horizontal|translate(pixels=1, mode="wrap")|cutout(size=2)',
  'random_resized_crop|random_erasing(probability=0.9)',
  'rotate(degrees=30)|affine(degrees=10, translate=0.1, scale=(0.9, 1.2), shear=10)',
  'color_jitter(brightness=0.2, contrast=0.3, saturation=0.4, hue=0.1)',
  'rand_augment(num_ops=1)|trivial_augment',
)


def test_every_augmentation_is_in_a_recipe_here():
  assert set(augment.AUGMENTATIONS) == {'flip_alternating'} | {
    name.split('(')[0] for recipe in RECIPES for name in recipe.split('|')
  }


@pytest.mark.parametrize('spec', RECIPES)
def test_one_image_gets_the_same_alone_as_in_a_batch(spec):
  recipe = augment.parse(spec)
  images = jnp.stack([IMAGE, 1 - IMAGE, IMAGE / 2])
  batched = jax.jit(jax.vmap(recipe))(KEYS[:3], images)
  alone = jax.jit(recipe)
  for i in range(3):
    np.testing.assert_allclose(alone(KEYS[i], images[i]), batched[i], atol=1e-5)
  grey = IMAGE[..., :1]
  assert jax.eval_shape(recipe, KEYS[0], grey) == jax.eval_shape(lambda: grey)


@pytest.mark.parametrize('spec', RECIPES[:3])
def test_compiled_equals_not_compiled(spec):
  recipe = augment.parse(spec)
  np.testing.assert_allclose(jax.jit(recipe)(KEYS[0], IMAGE), recipe(KEYS[0], IMAGE), atol=1e-5)


def test_visits_reach_the_operations_that_ask():
  recipe = augment.parse('random_crop(padding=1)|flip_alternating')
  cropped = augment.parse('random_crop(padding=1)')(KEYS[0], IMAGE)
  shown = [recipe(KEYS[0], IMAGE, visit=jnp.int32(visit)) for visit in (0, 1)]
  np.testing.assert_array_equal(shown[0], cropped)
  np.testing.assert_array_equal(shown[1], cropped[:, ::-1])
  with pytest.raises(UserError, match='needs batches with `epoch`'):
    recipe(KEYS[0], IMAGE)


def test_parse_runs_operations_in_order_each_with_the_key_of_its_position():
  recipe = augment.parse(
    ' random_crop(padding=2, mode="reflect") | flip_horizontal|random_crop(padding=1)'
  )
  for key in KEYS[:4]:
    draw = lambda position, key=key: jax.random.fold_in(key, position)
    image = geometry.random_crop(draw(0), IMAGE, padding=2, mode='reflect')
    image = geometry.flip_horizontal(draw(1), image)
    image = geometry.random_crop(draw(2), image, padding=1)
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
    ('translate(pixels=2, mode="zero")', "augment: translate mode='zero' is unknown"),
    ('rotate(degrees=400)', 'rotate(degrees=400) must be a number in [0, 180]'),
    ('affine(scale=(1.1, 0.9))', 'affine(scale=(1.1, 0.9)) must be two numbers (least, most)'),
    ('affine(shear=90)', 'affine(shear=90) must be a number in [0, 89]'),
    ('random_resized_crop(scale=0.5)', 'random_resized_crop(scale=0.5) must be two numbers'),
    ('random_resized_crop(scale=(0, 1))', 'in (0, 1]'),
    ('random_erasing(ratio=(1, 1e999))', 'random_erasing(ratio=(1, inf)) must be two numbers'),
    ('color_jitter(hue=0.6)', 'color_jitter(hue=0.6) must be a number in [0, 0.5]'),
    ('rand_augment(num_ops=9)', 'rand_augment(num_ops=9) must be an integer in [1, 8]'),
    ('rand_augment(magnitude=11)', 'rand_augment(magnitude=11) must be a number in [0, 10]'),
    ('trivial_augment(magnitude=1)', "augment: option of trivial_augment='magnitude' is unknown"),
    ('flip_alternating(visit=1)', "augment: option of flip_alternating='visit' is unknown"),
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
