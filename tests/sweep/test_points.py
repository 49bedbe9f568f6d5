"""Points known beforehand: where fractions of a range lie, and that a sequence fills it evenly."""

import math

import pytest

from cnnjax.sweep import points, space

SPACE = space.Space(
  {
    'rate': space.log_uniform(1e-4, 1e-1),
    'kind': space.choice('a', 'b'),
    'momentum': space.uniform(0.8, 0.99, when={'kind': 'b'}),
    'width': space.integer(8, 23),
  },
  sampler='quasi_random',
)


@pytest.mark.parametrize(
  ('parameter', 'u', 'value'),
  [
    (space.uniform(-1, 3), 0.25, 0.0),
    (space.uniform(0.1, 0.3), 1 - 2**-53, 0.3),
    (space.log_uniform(1e-4, 1e-1), 1 / 3, 1e-3),
    (space.log_uniform(1e-3, 1e-1), 1 - 2**-53, 1e-1),
    (space.integer(-2, 1), 0.0, -2),
    (space.integer(-2, 1), 0.24, -2),
    (space.integer(-2, 1), 0.26, -1),
    (space.integer(-2, 1), 1 - 2**-53, 1),
    (space.integer(1, 3, log=True), 0.49, 1),  # 4 ** 0.49 < 2
    (space.integer(1, 3, log=True), 0.51, 2),
    (space.integer(1, 3, log=True), 0.8, 3),  # 4 ** 0.8 = 3.03
    (space.choice(True, 1, (2,), None), 0.74, (2,)),
    (space.grid('a'), 0.99, 'a'),
  ],
)
def test_at(parameter, u, value):
  found = points.at(parameter, u)
  assert type(found) is type(value)
  assert found == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value)
  if not parameter.values:
    assert parameter.low <= found <= parameter.high


def test_sobol_fills_evenly():
  """Each sixteenth of a range has one of 16 points; more points begin with the same ones."""
  found = points.known(SPACE, 16, seed=1)
  assert sorted(int(16 * (math.log10(p['rate']) + 4) / 3) for p in found) == list(range(16))
  assert sorted(p['width'] for p in found) == list(range(8, 24))
  assert [p['kind'] for p in found].count('b') == 8
  for point in found:
    assert ('momentum' in point) == (point['kind'] == 'b')
  for n in (1, 2, 3, 15):
    assert points.known(SPACE, n, seed=1) == found[:n]
  assert points.known(SPACE, 16, seed=2) != found


def test_others():
  s = space.Space({'a': space.grid(1, 2), 'b': space.grid(5, 6, when={'a': 2})}, sampler='grid')
  assert points.known(s, 9, seed=0) == [{'a': 1}, {'a': 2, 'b': 5}, {'a': 2, 'b': 6}]
  assert points.known(s, 1, seed=0) == [{'a': 1}]
  assert points.known(s._replace(sampler='tpe'), 2, seed=0) == [{}, {}]
