"""Slices against direct evaluation; directions against the norms and the scale they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.analysis import landscape
from cnnjax.errors import UserError


def random_params(seed):
  rng = np.random.default_rng(seed)
  shapes = {'conv': (3, 3, 2, 4), 'dense': (5, 3), 'bias': (4,)}
  return {name: np.float32(rng.standard_normal(shape)) for name, shape in shapes.items()}


def test_filters_are_as_long_as_the_network_s():
  params = random_params(0)
  draw = jax.jit(landscape.filter_normalised)
  first, second = (draw(jax.random.key(i), params) for i in (1, 2))
  for name in ('conv', 'dense'):
    for f in range(params[name].shape[-1]):
      expected = np.linalg.norm(params[name][..., f].ravel())
      assert np.linalg.norm(first[name][..., f].ravel()) == pytest.approx(expected, rel=1e-5)
    cosine = np.vdot(first[name], second[name]) / np.vdot(first[name], first[name])
    assert abs(cosine) < 0.9
  np.testing.assert_array_equal(first['bias'], np.zeros(4))


def test_the_scale_of_weights_does_not_count():
  """A ReLU network is the same function when one layer is scaled up and the next one down."""
  params = {'a': random_params(0)['dense'], 'b': random_params(1)['dense'][:3]}
  scaled = {'a': 8 * params['a'], 'b': params['b'] / 8}
  x = np.float32(np.random.default_rng(0).standard_normal((6, 5)))
  loss = lambda p: jnp.square(jax.nn.relu(x @ p['a']) @ p['b']).mean()
  positions = np.linspace(-1, 1, 5)
  costs = [
    landscape.line(loss, p, landscape.filter_normalised(jax.random.key(3), p), positions=positions)
    for p in (params, scaled)
  ]
  assert np.ptp(costs[0]) > 0.1
  np.testing.assert_allclose(*costs, rtol=1e-5)


def test_slices_are_the_loss_there():
  start, across, up = (random_params(i) for i in range(3))
  loss = lambda p: jnp.sin(p['conv']).sum() + (p['dense'] ** 3).sum() * p['bias'].sum()
  at = jax.jit(lambda x, y: loss({n: start[n] + x * across[n] + y * up[n] for n in start}))
  xs, ys = (-0.5, 0.0, 2.0), (0.25, -1.0)
  costs = landscape.plane(loss, start, across, up, xs=xs, ys=ys)
  np.testing.assert_allclose(costs, [[at(x, y) for x in xs] for y in ys], rtol=1e-5)
  on_line = landscape.line(loss, start, across, positions=xs)
  np.testing.assert_allclose(on_line, [at(x, 0) for x in xs], rtol=1e-5)


def test_between_two_networks():
  start, end = random_params(0), random_params(1)
  loss = lambda p: jnp.square(p['conv']).sum() + jnp.sin(p['bias']).sum()
  middle = jax.tree.map(lambda a, b: (a + b) / 2, start, end)
  costs = landscape.between(loss, start, end, positions=(0, 0.5, 1))
  np.testing.assert_allclose(costs, [loss(p) for p in (start, middle, end)], rtol=1e-5)
  with pytest.raises(UserError, match='shapes differ'):
    landscape.between(loss, start, {**end, 'bias': jnp.zeros(3)}, positions=(0,))
