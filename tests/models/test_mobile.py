"""The block and options of the mobile families; see also test_golden, test_cases and test_zoo."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.layers.conv import conv
from cnnjax.models.mobile import InvertedResidual, round_width

KEY = jax.random.key(0)
LAYERS = {'conv': conv, 'norm': lambda **_: lambda x: x, 'act': nn.relu6}


def test_widths_are_rounded_to_eight_but_never_below_nine_tenths():
  assert [round_width(w) for w in (1, 8, 11.9, 12, 19.9, 20, 84, 83)] == [
    8,
    8,
    16,
    16,
    24,
    24,
    88,
    80,
  ]
  assert [round_width(w, divisor=4) for w in (5, 18, 30)] == [8, 20, 32]


# Trainable parameters of torchvision 0.29.2's and timm 1.0.31's definitions, 1000 classes.
@pytest.mark.parametrize(
  ('name', 'width', 'count'),
  [
    ('mobilenetv1_100', 1.25, 6270840),
    ('mobilenet_v2', 0.1, 1367080),
    ('mobilenet_v2', 0.5, 1968680),
    ('mobilenet_v2', 1.4, 6108776),
    ('mobilenet_v3_small', 0.25, 374272),
    ('mobilenet_v3_small', 1.5, 4897936),
    ('mobilenet_v3_large', 0.75, 3377576),
    ('mobilenetv4_conv_small', 0.35, 1905384),
    ('mobilenetv4_conv_small', 0.5, 2238952),
    ('mnasnet1_0', 0.25, 1606024),
    ('mnasnet1_0', 2.0, 12469944),
  ],
)
def test_width_multiplies_the_channels(name, width, count):
  model = models.create(name, width=width)
  shapes = jax.eval_shape(partial(model.init, KEY), jnp.zeros((1, 32, 32, 3)))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])) == count


def block(features=8, expanded=16, kernel_size=3, strides=1, **options):
  return InvertedResidual(features, expanded, kernel_size, strides, **LAYERS, **options)


def test_the_input_is_added_where_the_shape_stays():
  x = jnp.float32(np.random.default_rng(0).normal(size=(2, 7, 6, 8)))
  for model, added in (
    (block(), True),
    (block(skip=False), False),
    (block(strides=2), False),
    (block(features=12), False),
  ):
    zeros = lambda like: jnp.zeros(like.shape)
    variables = jax.tree.map(zeros, jax.eval_shape(model.init, KEY, x))
    y = model.apply(variables, x)
    np.testing.assert_array_equal(y, x if added else jnp.zeros_like(y))


def test_optional_convolutions_of_a_block():
  x = jnp.ones((1, 8, 8, 8))
  parts = lambda **options: set(jax.eval_shape(block(**options).init, KEY, x)['params'])
  assert parts() == {'expand', 'depthwise', 'project'}
  assert parts(expanded=8) == {'depthwise', 'project'}
  assert parts(start=5) == {'start', 'expand', 'depthwise', 'project'}
  assert parts(start=5, kernel_size=0) == {'start', 'expand', 'project'}
  for options in ({'start': 3}, {'start': 3, 'kernel_size': 0}):  # one convolution strides
    y, _ = jax.eval_shape(block(strides=2, **options).init_with_output, KEY, x)
    assert y.shape == (1, 4, 4, 8)


def test_drop_path_drops_whole_examples():
  x = jnp.float32(np.random.default_rng(0).normal(size=(64, 4, 4, 8)))
  model = block(drop_path=0.5, train=True)
  variables = model.init({'params': KEY, 'dropout': KEY}, x)
  branch = block().apply(variables, x) - x
  y = model.apply(variables, x, rngs={'dropout': jax.random.key(3)}) - x
  kept = np.asarray(jnp.abs(y).max((1, 2, 3)) > 0)
  assert 16 < kept.sum() < 48
  np.testing.assert_allclose(y[kept], 2 * branch[kept], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  'name',
  [
    'ghostnet_050',
    'mnasnet0_5',
    'mobilenet_v2',
    'mobilenet_v3_small',
    'mobilenetv1_100',
    'mobilenetv4_conv_small',
    'shufflenet_v2_x0_5',
  ],
)
def test_any_size_and_channels_in_bfloat16(name):
  model = models.create(name, num_classes=7, dtype='bfloat16')
  for shape in ((1, 1, 1, 3), (2, 33, 50, 1)):
    run = partial(model.init_with_output, KEY)
    jaxpr, (logits, variables) = jax.make_jaxpr(run, return_shape=True)(
      jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    assert (logits.shape, logits.dtype) == ((shape[0], 7), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    assert 'bf16' in str(jaxpr)
