"""Initialisers: their range and standard deviation on a kernel [3, 3, 32, 64]."""

import jax
import numpy as np
import pytest

from cnnjax.layers import init

FAN_IN, FAN_OUT = 9 * 32, 9 * 64


@pytest.mark.parametrize(
  ('initialise', 'std', 'uniform'),
  [
    (init.he_fan_out, (2 / FAN_OUT) ** 0.5, False),
    (init.he_fan_in, (2 / FAN_IN) ** 0.5, False),
    (init.glorot_uniform, (2 / (FAN_IN + FAN_OUT)) ** 0.5, True),
    (init.lecun_tanh, FAN_IN**-0.5, True),
    (init.torch_uniform, (FAN_IN * 3) ** -0.5, True),
    (init.uniform_fan_in(2.4), 2.4 / FAN_IN / 3**0.5, True),
    (init.torch_bias(FAN_IN), (FAN_IN * 3) ** -0.5, True),
  ],
)
def test_spread(initialise, std, uniform):
  x = np.asarray(initialise(jax.random.key(0), (3, 3, 32, 64), np.float32))
  assert x.dtype == np.float32
  np.testing.assert_allclose(x.std(), std, rtol=0.02)
  assert abs(x.mean()) < 0.03 * std
  largest = np.abs(x).max() / std
  if uniform:
    assert 1.7 < largest <= 3**0.5 + 1e-5
  else:
    assert largest > 3.5  # a truncated normal would stop near 2
