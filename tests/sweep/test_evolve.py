"""Selections by hand, and the toy problem of the paper on population-based training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from cnnjax.sweep import evolve

NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize(
  ('scores', 'order'),
  [
    ([0.2, 0.9, 0.5], [1, 2, 0]),
    ([-3.0, -1.0, -2.0], [1, 2, 0]),  # losses to be minimised come negated
    ([0.5, 0.7, 0.5, 0.7], [1, 3, 0, 2]),  # equal ones by index
    ([0.0, -0.0, 0.0], [0, 1, 2]),
    ([NAN, 0.1, INF, 0.2, -INF], [3, 1, 0, 2, 4]),  # what isn't finite, last and by index
  ],
)
def test_ranking(scores, order):
  assert_array_equal(jax.jit(evolve.ranking)(jnp.array(scores)), order)


@pytest.mark.parametrize(
  ('scores', 'keep', 'kept'),
  [
    ([0.2, 0.9, 0.5, 0.7], 2, [1, 3]),
    ([0.9, 0.1, 0.5, 0.7], 3, [0, 2, 3]),
    ([0.5, 0.5, 0.5, 0.5], 2, [0, 1]),
    ([NAN, 0.1, NAN, 0.2], 1, [3]),
    ([NAN, 0.1, NAN, 0.2], 3, [0, 1, 3]),  # fewer than three are finite
    ([NAN, NAN], 1, [0]),
    ([0.3, 0.1], 2, [0, 1]),
  ],
)
def test_halve(scores, keep, kept):
  halve = jax.jit(evolve.halve, static_argnames='keep')
  assert_array_equal(halve(jnp.array(scores), keep=keep), kept)


def test_survivors():
  count = lambda members, eta: [evolve.survivors(members, e, eta=eta) for e in range(10)]
  assert count(16, 2) == [16, 8, 4, 4, 2, 2, 2, 2, 1, 1]
  assert count(27, 3) == [27, 9, 9, 3, 3, 3, 3, 3, 3, 1]
  assert count(5, 2) == [5, 2, 1, 1, 1, 1, 1, 1, 1, 1]
  assert count(3, 4) == [3, 1, 1, 1, 1, 1, 1, 1, 1, 1]
  assert count(1, 2) == [1] * 10


def test_each_rung_costs_the_same():
  # Figure 3 of Jamieson & Talwalkar: from the first rung on, every rung has the same budget.
  alive = [evolve.survivors(16, evaluation) for evaluation in range(16)]  # during each evaluation
  rungs = [sum(alive[first : 2 * first]) for first in (1, 2, 4, 8)]
  assert rungs == [8, 8, 8, 8]


def test_take_gathers_members_and_leaves_what_is_shared():
  tree = {'w': jnp.arange(6.0).reshape(3, 2), 'step': jnp.int32(7), 'key': jax.random.key(0)}
  taken = evolve.take(tree, jnp.array([2, 0, 2, 1]))
  assert_array_equal(taken['w'], [[4, 5], [0, 1], [4, 5], [2, 3]])
  assert taken['step'] == 7
  keys = jax.random.split(jax.random.key(0), 3)
  assert_array_equal(
    jax.random.key_data(evolve.take(keys, jnp.array([1]))), jax.random.key_data(keys[1:2])
  )


BOUNDS = {'rate': (0.1, 1.0), 'decay': (0.0, 5.0), 'width': (2, 9)}
HYPERS = {
  'rate': np.float32([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.5, 0.9]),
  'decay': np.float32([1, 2, 3, 4, 5, 6, 0, 2]),  # member 5 lies outside of the bounds
  'width': np.int32([2, 3, 4, 5, 6, 7, 8, 4]),
  'smoothing': np.float32([0, 1, 2, 3, 4, 5, 6, 7]) / 10,  # varies, but isn't perturbed
  'seed': np.int32([10, 11, 12, 13, 14, 15, 16, 17]),
}


@jax.jit
def evolved(key, scores):
  state = {'w': 10.0 * jnp.arange(8)[:, None], 'step': jnp.int32(3)}
  hypers = {name: jnp.asarray(values) for name, values in HYPERS.items()}
  return evolve.exploit_and_explore(key, scores, state, hypers, bounds=BOUNDS)


many = jax.jit(jax.vmap(evolved, in_axes=(0, None)))
KEYS = jax.random.split(jax.random.key(0), 64)


def test_the_worst_become_perturbed_copies_of_the_best():
  scores = jnp.array([0.5, 0.1, 0.6, 0.4, 0.2, 0.3, 0.9, 0.8])
  state, hypers, parents = jax.device_get(many(KEYS, scores))
  others = [0, 2, 3, 5, 6, 7]
  assert_array_equal(parents[:, others], np.tile(others, (64, 1)))
  assert set(parents[:, 1]) == set(parents[:, 4]) == {6, 7}
  assert (parents[:, 1] != parents[:, 4]).any()
  assert_array_equal(state['w'], 10.0 * parents[..., None])
  assert_array_equal(state['step'], 3)

  for name, values in HYPERS.items():
    assert hypers[name].dtype == values.dtype
    assert_array_equal(hypers[name][:, others], np.tile(values[others], (64, 1)))
  assert_array_equal(hypers['seed'][:, [1, 4]], np.tile([11, 14], (64, 1)))
  assert_array_equal(hypers['smoothing'], HYPERS['smoothing'][parents])
  allowed = {  # by parent; 0.9 * 1.2 and 8 * 1.2 are cut off at their bounds, 0 stays 0
    'rate': {6: [0.4, 0.6], 7: [0.72, 1.0]},
    'decay': {6: [0.0, 0.0], 7: [1.6, 2.4]},
    'width': {6: [6, 9], 7: [3, 5]},  # 6.4, 9.6; 3.2, 4.8
  }
  for name, moves in allowed.items():
    for member in (1, 4):
      for parent, both in moves.items():
        found = hypers[name][parents[:, member] == parent, member]
        np.testing.assert_allclose(np.unique(found), np.unique(np.float32(both)), rtol=1e-6)
  # Each value is drawn for itself: both directions go together with both.
  mine = parents[:, 1] == 7
  both = {(r > 0.8, d > 2) for r, d in zip(hypers['rate'][mine, 1], hypers['decay'][mine, 1],
                                           strict=True)}  # fmt: skip
  assert len(both) == 4


@pytest.mark.parametrize(
  ('scores', 'replaced', 'parents_of_them'),
  [
    ([NAN, 1.0, NAN, 2.0, INF, 3.0, NAN, -INF], [0, 2, 4, 6, 7], {3, 5}),
    ([NAN, NAN, NAN, 2.0, NAN, NAN, NAN, NAN], [0, 1, 2, 4, 5, 6, 7], {3}),
    ([NAN, 1.0, 4.0, 2.0, 0.5, 3.0, 0.7, 0.6], [0, 4], {2, 5}),
    ([NAN] * 8, [], set()),
    ([1.0] * 8, [6, 7], {0, 1}),  # equal ones rank by index
  ],
)
def test_diverged_members_are_replaced_and_never_copied(scores, replaced, parents_of_them):
  _, hypers, parents = jax.device_get(many(KEYS, jnp.array(scores)))
  kept = [i for i in range(8) if i not in replaced]
  assert_array_equal(parents[:, kept], np.tile(kept, (64, 1)))
  assert set(parents[:, replaced].ravel()) == parents_of_them
  assert_array_equal(hypers['rate'][:, kept], np.tile(HYPERS['rate'][kept], (64, 1)))


def test_a_round_is_a_function_of_its_key():
  scores = jnp.arange(8.0)
  first, again, other = (jax.device_get(evolved(KEYS[i], scores)) for i in (0, 0, 1))
  jax.tree.map(assert_array_equal, first, again)
  assert any((first[1][name] != other[1][name]).any() for name in BOUNDS)


@pytest.mark.parametrize(('members', 'replaced'), [(1, []), (2, [0]), (5, [0])])
def test_small_populations(members, replaced):
  scores = jnp.arange(float(members))
  hypers = {'rate': jnp.full(members, 0.5)}
  evolve_once = jax.jit(functools.partial(evolve.exploit_and_explore, bounds=BOUNDS))
  _, changed, parents = jax.device_get(evolve_once(jax.random.key(1), scores, {}, hypers))
  expected = [members - 1 if i in replaced else i for i in range(members)]
  assert_array_equal(parents, expected)
  assert_array_equal(np.flatnonzero(changed['rate'] != 0.5), replaced)


def test_exploiting_alone_solves_the_papers_toy():
  # Figure 2: Q = 1.2 - |theta|^2 is what counts; each of two members sees the gradient along one
  # coordinate alone, so that by itself it never gets beyond 1.2 - 0.9^2 = 0.39.
  own = ('h0', 'h1')
  hypers = {'h0': jnp.array([1.0, 0.0]), 'h1': jnp.array([0.0, 1.0])}
  value = lambda theta: 1.2 - (theta**2).sum(axis=1)
  descend = lambda theta: theta * (1 - 0.02 * jnp.stack([hypers[h] for h in own], axis=1))
  alone = together = jnp.full((2, 2), 0.9)
  exploit = jax.jit(functools.partial(evolve.exploit_and_explore, bounds={}, own=own))
  for t in range(200):
    alone, together = descend(alone), descend(together)
    if t % 4 == 3:
      key = jax.random.fold_in(jax.random.key(0), t)
      together, _, _ = exploit(key, value(together), together, hypers)
  np.testing.assert_allclose(value(alone), 0.39, atol=1e-3)
  assert value(together).max() > 1.15


def test_learning_rates_grow_beyond_the_best_drawn():
  # theta^2 by gradient descent: up to 0.1 a larger rate is a better one; half of that is drawn.
  @jax.jit
  def one_round(key, theta, rates):
    theta = theta * (1 - 2 * rates['rate']) ** 5
    bounds = {'rate': (1e-4, 1e-1)}
    return evolve.exploit_and_explore(key, -(theta**2), theta, rates, bounds=bounds)

  drawn = 10 ** np.random.default_rng(0).uniform(-4, -1.3, (5, 8)).astype(np.float32)
  for seed, rates in enumerate(drawn):
    theta, hypers = jnp.ones(8), {'rate': rates}
    for key in jax.random.split(jax.random.key(seed), 20):
      theta, hypers, _ = one_round(key, theta, hypers)
    assert jnp.abs(theta).min() < 0.5 * (1 - 2 * rates.max()) ** 100
    assert hypers['rate'].max() <= np.float32(1e-1)
