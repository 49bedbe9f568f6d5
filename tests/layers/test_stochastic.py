"""Dropout and DropPath: a draw belongs to an example's id, not to its place."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.errors import UserError
from cnnjax.layers.stochastic import DropBlock, Dropout, DropPath

KEY = jax.random.key(7)
LAYERS = [Dropout(0.4), DropPath(0.4), Dropout(0.4, shared_axes=(1, 2))]
BLOCK = DropBlock(0.3, block_size=3)


class Net(nn.Module):
  """Two random layers, one of them nested."""

  @nn.compact
  def __call__(self, x, train=False):
    x = Dropout(0.3, name='first')(x, train)

    class Inner(nn.Module):
      @nn.compact
      def __call__(self, x):
        return DropPath(0.5, train=train, name='path')(x)

    return x + Inner(name='inner')(x)


def draw(layer, x, ids=None):
  variables = {} if ids is None else {'examples': {'id': jnp.asarray(ids)}}
  return np.asarray(layer.apply(variables, x, train=True, rngs={'dropout': KEY}))


@pytest.mark.parametrize('layer', [*LAYERS, BLOCK])
def test_the_mask_goes_with_the_id(layer):
  x = jnp.ones((8, 4, 4, 3))
  ids = np.array([5, 900, 2, 17, 60000, 0, 3, 4], np.int32)
  whole = draw(layer, x, ids)
  assert 0 < (whole == 0).mean() < 1
  order = np.random.default_rng(0).permutation(8)
  np.testing.assert_array_equal(draw(layer, x, ids[order]), whole[order])
  halves = [draw(layer, x[:4], ids[:4]), draw(layer, x[4:], ids[4:])]
  np.testing.assert_array_equal(np.concatenate(halves), whole)
  np.testing.assert_array_equal(draw(layer, x), draw(layer, x, np.arange(8, dtype=np.int32)))


def test_rates_scale_and_shared_axes():
  x = jnp.ones((200, 4, 4, 8))
  full, path, maps = (draw(layer, x) for layer in LAYERS)
  for y in (full, path, maps):
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.6], rtol=1e-6)
  assert abs((full == 0).mean() - 0.4) < 0.01
  assert abs((maps == 0).mean() - 0.4) < 0.05
  assert abs((path == 0).mean() - 0.4) < 0.12
  assert (path == path[:, :1, :1, :1]).all()
  assert (maps == maps[:, :1, :1]).all()
  assert (maps != maps[..., :1]).any()


@pytest.mark.parametrize('layer', [Dropout, DropPath])
def test_identity_without_training_or_rate(layer):
  x = jnp.ones((2, 3))
  assert layer(0.5).apply({}, x, train=False) is x
  assert layer(0.0).apply({}, x, train=True) is x
  assert not layer(1.0).apply({}, x, train=True, rngs={'dropout': KEY}).any()
  with pytest.raises(UserError, match=r'rate=1\.5'):
    layer(1.5).apply({}, x, train=True)


def test_the_structure_of_the_ids_can_be_discovered_and_used():
  x = jnp.ones((4, 2, 2, 3))
  assert Net().init(KEY, x) == {}  # init leaves no ids behind
  _, state = Net().apply({}, x, train=True, rngs={'dropout': KEY}, mutable=['examples'])
  ids = state['examples']
  np.testing.assert_array_equal(ids['first']['id'], np.arange(4))
  assert jax.tree.map(jnp.shape, ids) == {'first': {'id': (4,)}, 'inner': {'path': {'id': (4,)}}}
  run = lambda ids: Net().apply(
    {'examples': jax.tree.map(lambda _: ids, state['examples'])},
    x,
    train=True,
    rngs={'dropout': KEY},
  )
  a, b = run(jnp.array([1, 2, 3, 4])), run(jnp.array([4, 3, 2, 1]))
  np.testing.assert_array_equal(a, b[::-1])


def test_blocks_are_squares_that_hold_about_the_rate():
  x = jnp.ones((300, 11, 9, 4))
  y = draw(BLOCK, x)
  zero = y == 0
  # Every zero lies in a square of zeros: opening with a 3 x 3 square changes nothing.
  seeds = np.lib.stride_tricks.sliding_window_view(zero, (3, 3), axis=(1, 2)).all((-2, -1))
  covered = np.zeros_like(zero)
  for i in range(3):
    for j in range(3):
      covered[:, i : i + 9, j : j + 7] |= seeds
  np.testing.assert_array_equal(covered, zero)
  # Seeds are drawn with the probability p of equation 1. An inner pixel stays if none of the 9
  # seeds around it is drawn.
  p = 0.3 * 11 * 9 / 9 / (9 * 7)
  assert abs((~zero[:, 4:7, 4:5]).mean() - (1 - p) ** 9) < 0.02
  np.testing.assert_allclose(y.mean((1, 2, 3)), 1, rtol=1e-5)
  assert (zero != zero[..., :1]).any()  # each channel has patches of its own


def test_blocks_fit_small_maps_and_need_training():
  x = jnp.ones((64, 2, 3, 1))
  y = draw(DropBlock(0.5), x)  # the block is the whole map
  assert set(np.unique(y)) == {0.0, 1.0}
  assert (y == y[:, :1, :1]).all()
  assert 0.3 < (y == 0).mean() < 0.7
  np.testing.assert_array_equal(DropBlock(0.5).apply({}, x, train=False), x)
  np.testing.assert_array_equal(DropBlock(0.0).apply({}, x, train=True), x)
  with pytest.raises(UserError, match='rate=2'):
    DropBlock(2).apply({}, x, train=True)
