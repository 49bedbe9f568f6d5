"""Networks whose symmetry is known exactly; answers and accuracy against plain NumPy."""

from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.analysis import equivariance
from cnnjax.analysis.equivariance import Grid, apply, flip, rotation, scaling, shift
from cnnjax.errors import UserError
from cnnjax.layers.pool import blur_pool

IMAGES = np.random.default_rng(0).random((2, 8, 8, 2)).astype(np.float32)


class Net(nn.Module):
  """Two convolutions, then a head that sees the mean of each map, or all of it."""

  strides: int = 1
  padding: str = 'CIRCULAR'
  flat: bool = False

  @nn.compact
  def __call__(self, x, train=False):
    del train
    conv = partial(nn.Conv, kernel_size=(3, 3), padding=self.padding)
    x = nn.relu(conv(4, name='conv1')(x))
    x = nn.relu(conv(4, strides=self.strides, name='conv2')(x))
    return nn.Dense(3, name='head')(x.reshape(len(x), -1) if self.flat else x.mean((1, 2)))


def measured(net, transforms, *, images: Any = IMAGES, edit=lambda variables: variables, **options):
  variables = edit(jax.jit(net.init)(jax.random.key(0), images))
  return equivariance.errors(net, variables, images, transforms, **options)


def test_movements_are_those_of_numpy():
  moved = apply(shift(2, -1, mode='wrap'), IMAGES)
  np.testing.assert_array_equal(moved, np.roll(IMAGES, (2, -1), (1, 2)))
  moved = np.zeros_like(IMAGES)
  moved[:, 2:, :-1] = IMAGES[:, :-2, 1:]
  np.testing.assert_array_equal(apply(shift(2, -1), IMAGES), moved)
  half = apply(shift(0, 0.5, mode='wrap'), IMAGES)
  np.testing.assert_allclose(half, (IMAGES + np.roll(IMAGES, 1, 2)) / 2, atol=1e-6)
  np.testing.assert_array_equal(apply(flip('horizontal'), IMAGES), IMAGES[:, :, ::-1])
  np.testing.assert_array_equal(apply(flip('vertical'), IMAGES), IMAGES[:, ::-1])
  np.testing.assert_allclose(apply(rotation(90), IMAGES), np.rot90(IMAGES, 1, (1, 2)), atol=1e-5)
  small = apply(scaling(0.5), np.ones((1, 8, 8, 1)))
  assert small[0, 2:6, 2:6].min() == 1
  assert small.sum() == 16


def test_movement_on_a_map_is_that_of_the_plane():
  """Of a smooth function of the plane, sampled on both grids."""
  wave = lambda r, c: np.sin(0.11 * r + 0.2) + np.cos(0.07 * c) * 0.01 * r
  image = wave(*np.mgrid[:64, :64].astype(np.float32))[None, ..., None]
  rows, columns = 3 + 2 * np.arange(30)[:, None], 1 + 4 * np.arange(15)[None]
  grid = Grid((2, 4), (3 + 29 - 31.5, 1 + 28 - 31.5))
  on_map = wave(rows, columns).astype(np.float32)[None, ..., None]
  for transform in (shift(3, -5), rotation(25), scaling(1.3), flip('horizontal')):
    expected = apply(transform, image)[0, :, :, 0][rows, columns]
    result = apply(equivariance.on_map(transform, grid), on_map)[0, :, :, 0]
    inside = slice(8, 22), slice(4, 11)
    np.testing.assert_allclose(result[inside], expected[inside], atol=0.02)


def test_circular_convolutions_move_with_the_image_but_do_not_turn_with_it():
  moves = [shift(0, 1, mode='wrap'), shift(3, -2, mode='wrap'), flip('horizontal'), rotation(90)]
  found = measured(Net(), moves)
  assert list(found) == ['conv1', 'conv2', 'head', '']
  for error in found.values():  # the mean over a map is invariant
    assert error[:2].max() < 1e-6
  assert found['conv2'][2:].min() > 0.05


def test_a_stride_of_two_knows_even_shifts_alone():
  found = measured(Net(strides=2), [shift(0, by, mode='wrap') for by in (1, 2, 3, 4)])
  assert found['conv1'].max() < 1e-6
  assert found['conv2'][[1, 3]].max() < 1e-6
  assert found['conv2'][[0, 2]].min() > 0.05
  assert found[''][[1, 3]].max() < 1e-6
  assert found[''][[0, 2]].min() > 1e-3


def test_what_leaves_the_view_does_not_count():
  moves = [shift(0, 3), shift(-2, 1)]
  # Without padding no window sees what lies outside.
  assert measured(Net(padding='VALID'), moves)['conv2'].max() < 1e-6
  frame = np.pad(IMAGES, ((0, 0), (4, 4), (4, 4), (0, 0)))
  framed = measured(Net(flat=True), moves, images=frame)
  assert max(framed['conv1'].max(), framed['conv2'].max()) < 1e-6
  assert framed[''].min() > 0.05  # a flattened map is another vector


@pytest.mark.parametrize('symmetry', ['mirror', 'turn'])
def test_a_symmetric_kernel_gives_a_symmetric_network(symmetry):
  mirrored = lambda x: x + x[:, ::-1]
  turned = lambda x: sum(jnp.rot90(x, i) for i in range(4))
  symmetric = {'mirror': mirrored, 'turn': turned}[symmetry]
  found = measured(
    Net(),
    [flip('horizontal'), rotation(90)],
    edit=partial(jax.tree.map, lambda x: symmetric(x) if x.ndim == 4 else x),
  )
  assert max(found['conv2'][0], found[''][0]) < 1e-5
  if symmetry == 'mirror':
    assert found['conv2'][1] > 0.05
  else:  # what is 3 x 3 and its own quarter turn is its own mirror image too
    assert max(found['conv2'][1], found[''][1]) < 1e-5


def test_any_model_of_the_zoo_and_anti_aliasing_by_a_partial():
  images, moves = (
    np.float32(np.random.default_rng(1).random((2, 16, 16, 1))),
    [shift(0, 1), shift(0, 2)],
  )
  options = {'features': (4,), 'dense': (), 'num_classes': 3}
  plain = measured(models.create('cnn', **options), moves, images=images)
  assert {'stage1', 'stage1/conv1', 'head', ''} <= plain.keys()
  assert all(np.isfinite(error).all() and error.shape == (2,) for error in plain.values())
  pool = partial(blur_pool, window=5)
  smooth = measured(models.create('cnn', **options, pool=pool), moves, images=images)
  assert smooth['stage1'][0] < 0.6 * plain['stage1'][0]


def test_a_map_behind_a_gate_still_has_a_grid():
  class Gated(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      del train
      x = x * nn.sigmoid(x.mean((1, 2), keepdims=True))
      return nn.Conv(3, (3, 3), padding='CIRCULAR', name='conv')(x)

  found = measured(Gated(), [shift(3, 2, mode='wrap')])
  assert found['conv'] < 1e-6
  assert found[''] < 1e-6


def classify(x):
  """Which quarter of the columns holds the brightest pixel of the first row."""
  return jax.nn.one_hot(x[:, 0, :, 0].argmax(-1) // 2, 4)


def test_consistency_counted_by_hand():
  dot = lambda column: np.float32(np.arange(8) == column).reshape(1, 1, 8, 1)
  images = np.concatenate([dot(0), dot(1)])
  logits = equivariance.responses(classify, images, [shift(0, by, mode='wrap') for by in range(4)])
  # The first answers 0, 0, 1, 1: 2 of 6 pairs agree. The second 0, 1, 1, 2: 1 of 6.
  np.testing.assert_array_equal(logits.argmax(-1).T, [[0, 0, 1, 1], [0, 1, 1, 2]])
  assert equivariance.consistency(logits) == pytest.approx((2 / 6 + 1 / 6) / 2)
  change = equivariance.change(logits, logits[0])
  np.testing.assert_allclose(change.answers, [0, 0.5, 1, 1])
  np.testing.assert_allclose(change.logits, [0, 1, np.sqrt(2), np.sqrt(2)])
  far = (np.e - 1) / (np.e + 3)  # between softmaxes of two one-hot logits of four classes
  np.testing.assert_allclose(change.probabilities, [0, far / 2, far, far], rtol=1e-6)


def test_accuracy_against_shift_is_that_of_a_plain_loop():
  rng = np.random.default_rng(2)
  images, labels = rng.integers(0, 256, (10, 4, 8, 1), np.uint8), rng.integers(0, 4, 10)
  moves = [(0, 0), (1, 0), (0, 3), (-2, -1)]
  logits = equivariance.responses(classify, images, [shift(*by) for by in moves], batch_size=4)
  assert logits.shape == (4, 10, 4)
  expected = []
  for down, right in moves:
    correct = 0
    for image, label in zip(images, labels, strict=True):
      padded = np.pad(image, ((4, 4), (8, 8), (0, 0)))
      moved = padded[4 - down : 8 - down, 8 - right : 16 - right]
      correct += moved[0, :, 0].argmax() // 2 == label
    expected.append(correct / 10)
  np.testing.assert_allclose(equivariance.accuracy(logits, labels), expected)


def test_mistakes():
  with pytest.raises(UserError, match=r"flip direction='diagonal'.*horizontal, vertical"):
    flip(cast(Any, 'diagonal'))
  with pytest.raises(UserError, match='factor=0 must be above 0'):
    scaling(0)
  with pytest.raises(UserError, match='at least 2 movements, got logits of 1'):
    equivariance.consistency(np.zeros((1, 3, 2)))
