"""What members may differ in, and that traced numbers mean what literals do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import config as config_lib
from cnnjax.data import augment, mix
from cnnjax.errors import UserError
from cnnjax.sweep import hyper
from cnnjax.training import losses, optimizers
from tests import commands

CONFIG = config_lib.validate(config_lib.default())


def read(key, *values):
  return hyper.read(CONFIG, [{key: value} for value in values])[1]


def test_what_differs_is_read_with_its_type():
  points = [
    {'seed': 2**32 - 1, 'optimizer.momentum': 0.5, 'loss.label_smoothing': 0.1},
    {'seed': 0, 'optimizer.momentum': 0.5, 'loss.label_smoothing': 0, 'schedule.name': 'cosine'},
    {'seed': 1, 'optimizer.momentum': 0.5},
  ]
  configs, values = hyper.read(CONFIG, points)
  assert [c.schedule.name for c in configs] == ['constant', 'cosine', 'constant']
  assert {k: (v.dtype.name, v.tolist()) for k, v in values.items()} == {
    'seed': ('uint32', [2**32 - 1, 0, 1]),
    'loss.label_smoothing': ('float32', [float(np.float32(0.1)), 0, 0]),
    'schedule': ('int32', [0, 1, 0]),
  }
  own = hyper.substitute(configs[0], {k: v[1] for k, v in values.items()})
  assert (own.seed, own.loss.label_smoothing, own.schedule.name) == (0, 0, 'constant')
  assert configs[0].seed == 2**32 - 1


def test_recipes_give_their_numbers_by_place():
  values = read(
    'augment',
    'flip_horizontal|affine(degrees=5, scale=(0.5, 1.0))|cutout(size=2)',
    'flip_horizontal(probability=0.25)|affine(scale=(0.8, 1.0))|cutout(size=4)',
  )
  assert {k: (v.dtype.name, v.tolist()) for k, v in values.items()} == {
    'augment.0.probability': ('float32', [0.5, 0.25]),
    'augment.1.degrees': ('float32', [5, 0]),
    'augment.1.scale.0': ('float32', [0.5, float(np.float32(0.8))]),
    'augment.2.size': ('int32', [2, 4]),
  }


@pytest.mark.parametrize(
  ('key', 'values', 'message'),
  [
    ('batch_size', (16, 32), r'config.batch_size takes 16 and 32, but .*--mode=search'),
    ('optimizer.name', ('sgd', 'adam'), r"config.optimizer.name takes 'sgd' and 'adam', but"),
    ('optimizer.lookahead', (0, 5), r'config.optimizer.lookahead takes 0 and 5, but'),
    ('model.features', ((8,), (16,)), r'config.model.features takes \(8,\) and \(16,\), but'),
    ('optimizer.momentum', (None, 0.5), r'config.optimizer.momentum takes None and 0.5: every'),
    ('optimizer.weight_decay', (0.1, -1), r'config.optimizer.weight_decay=-1 must be at least 0'),
    ('augment', ('', 'flip_horizontal'), r"config.augment takes '' and 'flip_horizontal', but"),
    ('augment', ('rotate(degrees=5)', 'rotate(degrees=500)'), r'rotate\(degrees=500\) must be'),
    ('mix', ('mixup(alpha=0.2)', 'cutmix(alpha=0.2)'), r'config.mix takes .* the same operations'),
    *(
      ('augment', (first, second), rf'config.augment: {option} of .* cannot be traced')
      for option, first, second in [
        ('padding', 'random_crop(padding=1)', 'random_crop(padding=2)'),
        ('pixels', 'translate(pixels=1)', 'translate(pixels=2)'),
        ('mode', "translate(pixels=1, mode='edge')", 'translate(pixels=1)'),
        ('num_ops', 'rand_augment(num_ops=1)', 'rand_augment(num_ops=2)'),
        ('ratio', 'random_erasing(ratio=(0.5, 2.0))', 'random_erasing(ratio=(0.4, 2.0))'),
      ]
    ),
  ],
)
def test_what_cannot_be_traced_is_named(key, values, message):
  with pytest.raises(UserError, match=message) as error:
    read(key, *values)
  commands.is_one_line(error.value)


def test_a_population_has_members():
  with pytest.raises(UserError, match='at least one member'):
    hyper.read(CONFIG, [])


def test_traced_options_draw_what_literals_draw():
  image = jax.random.uniform(jax.random.key(1), (8, 8, 1))
  spec = 'rotate(degrees=40)|flip_horizontal(probability=0.75)|cutout(size=5)'
  spec += '|color_jitter(brightness=0.2, contrast=0.3)|random_erasing(probability=0.9)'
  other = 'rotate(degrees=5)|flip_horizontal|cutout(size=2)|color_jitter|random_erasing'
  own = {k: v[1] for k, v in read('augment', other, spec).items()}
  assert len(own) == 6
  traced = lambda key, own: augment.compose(hyper.operations('augment', other, own))(key, image)
  literal = augment.parse(spec)
  keys = jax.random.split(jax.random.key(2), 4)
  found = jax.jit(jax.vmap(traced, (0, None)))(keys, own)
  expected = jax.jit(jax.vmap(lambda key: literal(key, image)))(keys)
  np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
  ('first', 'second', 'numbers'),
  [
    ('affine(scale=(0.7, 1.2))', 'affine(degrees=9, translate=0.2, shear=5, scale=(0.7, 1))', 4),
    ('rand_augment(magnitude=4)', 'rand_augment', 1),
    ('random_resized_crop(scale=(0.2, 0.9))', 'random_resized_crop', 2),
    ('flip_alternating|random_erasing(scale=(0.1, 0.2))', 'flip_alternating|random_erasing', 2),
  ],
)
def test_more_options_can_be_traced(first, second, numbers):
  assert len(read('augment', first, second)) == numbers


def test_traced_mixing_is_that_of_literals():
  values = read('mix', 'mixup(alpha=0.2)|cutmix(alpha=1)', 'mixup(alpha=0.7)|cutmix(alpha=1)')
  assert list(values) == ['mix.0.alpha']
  key, own = jax.random.key(3), {k: v[1] for k, v in values.items()}
  traced = lambda own: hyper.operations('mix', 'mixup(alpha=0.2)', own)[0](key, 2, 2)
  found, expected = jax.jit(traced)(own), mix.mixup(key, 2, 2, alpha=0.7)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


OPTIONS = {'momentum': 0.8, 'b1': 0.7, 'b2': 0.9, 'eps': 1e-3}
PARAMS = {'head': {'kernel': jnp.linspace(-1, 1, 6).reshape(2, 3), 'bias': jnp.ones(3)}}


@pytest.mark.parametrize('name', optimizers.OPTIMIZERS)
def test_optimizers_take_traced_numbers(name):
  """Those that 0 switches off as well, in one member and not in the other."""
  rule = optimizers.OPTIMIZERS[name].__kwdefaults__ or {}
  numbers = [{k: v for k, v in OPTIONS.items() if k in rule} for _ in range(2)]
  numbers[0] |= {'weight_decay': 0.0, 'clip_norm': 0.0}
  numbers[1] |= {'weight_decay': 0.1, 'clip_norm': 0.5}

  def update(numbers):
    optimizer = optimizers.create(name, 0.1, **numbers)
    return optimizer.update(jax.tree.map(jnp.cos, PARAMS), optimizer.init(PARAMS), PARAMS)[0]

  stacked = jax.tree.map(lambda *x: jnp.asarray(x), *numbers)
  found = jax.jit(jax.vmap(update))(stacked)
  expected = jax.jit(lambda: jax.tree.map(lambda *x: jnp.stack(x), *map(update, numbers)))()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


def test_traced_label_smoothing_is_that_of_literals():
  logits = jax.random.normal(jax.random.key(0), (5, 4))
  labels = jnp.array([0, 3, 2, 1, 7])  # the last is no class
  traced = jax.jit(losses.softmax_cross_entropy)
  for smoothing in (0.0, 0.2):
    found = traced(logits, labels, label_smoothing=smoothing)
    expected = losses.softmax_cross_entropy(logits, labels, label_smoothing=smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
