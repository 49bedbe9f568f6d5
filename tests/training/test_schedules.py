import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.errors import UserError
from cnnjax.training import schedules

RATE = 0.4


def values(name, steps, total=100, **options):
  schedule = schedules.create(name, learning_rate=RATE, total_steps=total, **options)
  host = np.array([schedule(step) for step in steps])
  device = jax.jit(jax.vmap(schedule))(jnp.asarray(steps, jnp.int32))
  assert {host.dtype, device.dtype} == {np.dtype(np.float32)}
  np.testing.assert_allclose(device, host, rtol=1e-6, atol=1e-7)
  np.testing.assert_array_equal(host, schedule(np.asarray(steps)))
  return host / RATE


@pytest.mark.parametrize(
  ('name', 'options', 'expected'),
  [
    ('constant', {}, {0: 1, 57: 1, 100: 1, 200: 1}),
    ('step', {}, {0: 1, 49: 1, 50: 0.1, 74: 0.1, 75: 0.01, 100: 0.01}),
    ('step', {'boundaries': (30, 0.6), 'factor': 0.5}, {29: 1, 30: 0.5, 59: 0.5, 60: 0.25}),
    ('step', {'boundaries': ()}, {0: 1, 99: 1}),
    ('linear', {}, {0: 1, 25: 0.75, 50: 0.5, 99: 0.01, 100: 0, 150: 0}),
    ('linear', {'end_factor': 0.2}, {0: 1, 50: 0.6, 100: 0.2}),
    ('cosine', {}, {0: 1, 25: (1 + math.sqrt(0.5)) / 2, 50: 0.5, 100: 0, 150: 0}),
    ('cosine', {'end_factor': 0.1}, {0: 1, 50: 0.55, 100: 0.1}),
    ('one_cycle', {}, {0: 0.04, 15: 0.52, 30: 1, 65: 0.500002, 100: 4e-6}),
    (
      'one_cycle',
      {'peak': 0.2, 'start_factor': 0.5, 'end_factor': 0.1, 'shape': 'linear'},
      {0: 0.5, 10: 0.75, 20: 1, 60: 0.55, 100: 0.1, 101: 0.1},
    ),
  ],
)
def test_values_by_hand(name, options, expected):
  got = values(name, list(expected), **options)
  np.testing.assert_allclose(got, list(expected.values()), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize('name', schedules.SCHEDULES)
def test_warmup_is_linear_and_ends_at_full_strength(name):
  options = {'one_cycle': {'start_factor': 1.0}}.get(name, {})
  got = values(name, range(5), warmup_steps=4, **options)
  np.testing.assert_allclose(got, [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)


def test_decay_runs_over_what_remains_after_warmup():
  got = values('cosine', [20, 60, 100], warmup_steps=20)
  np.testing.assert_allclose(got, [1, 0.5, 0], atol=1e-7)


@pytest.mark.parametrize('name', ['linear', 'cosine', 'one_cycle'])
@pytest.mark.parametrize(('total', 'warmup'), [(1, 0), (2, 1), (7, 3), (1000, 37), (90 * 5004, 5)])
def test_end_value_is_exact(name, total, warmup):
  schedule = schedules.create(
    name, learning_rate=RATE, total_steps=total, warmup_steps=warmup, end_factor=0.013
  )
  exact = np.float32(RATE) * np.float32(0.013)
  assert schedule(total) == exact
  assert jax.jit(schedule)(total) == exact
  assert schedule(total // 2) != exact


def test_learning_rate_may_be_traced():
  def value(rate):
    return schedules.create('cosine', learning_rate=rate, total_steps=10)(jnp.int32(5))

  np.testing.assert_allclose(
    jax.jit(jax.vmap(value))(jnp.asarray([1.0, 2.0])), [0.5, 1.0], rtol=1e-6
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'name': 'cosin'}, "schedule.name='cosin' is unknown: did you mean 'cosine'"),
    ({'total_steps': 0}, 'total_steps=0 must be a positive whole number'),
    ({'total_steps': 1.5}, 'total_steps=1.5'),
    ({'warmup_steps': -1}, 'warmup_steps=-1'),
    ({'warmup_steps': 10}, 'warmup_steps=10 must be a whole number from 0 to below total_steps=10'),
    ({'learning_rate': -1.0}, 'learning_rate=-1.0'),
    ({'learning_rate': math.nan}, 'learning_rate=nan'),
    ({'learning_rate': 'abc'}, "learning_rate='abc'"),
    (
      {'peak': 0.3},
      "schedule.options.peak=0.3 is not an option of 'cosine', which takes: end_factor",
    ),
    ({'end_factor': -0.1}, 'end_factor=-0.1'),
    ({'end_factor': 3.40282357e38}, 'a number, not negative and below 2**53'),  # not in float32
    ({'name': 'one_cycle', 'peak': 1.0}, 'peak=1.0 must be a number between 0 and 1'),
    ({'name': 'one_cycle', 'shape': 'cos'}, "schedule.options.shape='cos' is unknown"),
    ({'name': 'step', 'boundaries': (0.7, 0.5)}, 'must increase'),
    ({'name': 'step', 'boundaries': (2.5,)}, 'must increase'),
    ({'name': 'step', 'boundaries': (10,)}, 'total_steps=10'),
    ({'name': 'step', 'boundaries': 0.5}, 'boundaries=0.5'),
    ({'name': 'step', 'factor': 0}, 'factor=0 must be a positive number'),
  ],
)
def test_mistakes_are_named(changes, message):
  arguments = {'name': 'cosine', 'learning_rate': 0.1, 'total_steps': 10} | changes
  with pytest.raises(UserError) as error:
    schedules.create(arguments.pop('name'), **arguments)
  assert message in str(error.value)
