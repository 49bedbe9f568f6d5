"""Filters made by hand, and gratings shown to them one by one."""

import numpy as np
import pytest
from scipy import signal

from cnnjax.analysis import filters
from cnnjax.errors import UserError

RNG = np.random.default_rng(0)
PLACES = np.arange(-15, 16)
BLOB = np.exp(-(PLACES[:, None] ** 2 + PLACES**2) / (2 * 3.0**2))


def gabor(degrees, frequency=0.25):
  """Stripes at an angle under a Gaussian of 5 pixels."""
  angle = np.deg2rad(degrees)
  across = PLACES * np.sin(angle) + PLACES[:, None] * np.cos(angle)
  envelope = np.exp(-(PLACES[:, None] ** 2 + PLACES**2) / (2 * 5.0**2))
  return envelope * np.cos(2 * np.pi * frequency * across)


def bank(*kernels):
  return np.stack(kernels, -1)[:, :, None]


@pytest.mark.parametrize('degrees', [0, 30, 90, 135])
def test_gabor(degrees):
  found = filters.orientation(bank(gabor(degrees)))
  assert found.selectivity[0] > 0.95
  assert np.cos(2 * (found.angle[0] - np.deg2rad(degrees))) > 0.9999
  assert found.frequency[0] == 0.25


def test_isotropic_and_empty():
  found = filters.orientation(bank(BLOB, np.zeros_like(BLOB)))
  np.testing.assert_allclose(found.selectivity, 0, atol=1e-4)


def test_prewitt_by_hand():
  """The transform of [1, 0, -1] x [1, 1, 1]; its stripes stand."""
  kernel = np.float32([[1, 0, -1]] * 3)[:, :, None, None]
  frequencies, angles = (0.1, 0.25), (0.0, 0.4, np.pi / 2)
  found = filters.spectrum(kernel, frequencies=frequencies, angles=angles)
  f, a = np.array(frequencies)[:, None], np.array(angles)
  x, y = f * np.sin(a), f * np.cos(a)
  expected = np.abs(2 * np.sin(2 * np.pi * x) * (1 + 2 * np.cos(2 * np.pi * y)))
  np.testing.assert_allclose(found, expected[None], atol=1e-12)
  assert filters.orientation(kernel).angle[0] == pytest.approx(np.pi / 2)


def test_gratings_get_the_amplitudes_of_the_spectrum():
  """Slid over pictures: the response is a sinusoid; two phases give its amplitude."""
  kernel = RNG.normal(size=(5, 4, 2, 3))
  angles, frequency = np.pi * np.arange(6) / 6, 0.2
  shown = filters.gratings(9, frequency=frequency, angles=angles, phases=4)
  assert shown.shape == (6, 4, 9, 9, 1)
  assert shown.dtype == np.float32
  expected = filters.spectrum(kernel, frequencies=(frequency,), angles=angles)[:, 0]
  for f in range(3):
    for a in range(6):
      squares = 0.0
      for c in range(2):
        even, odd = (
          signal.correlate2d(shown[a, phase, :, :, 0], kernel[:, :, c, f], 'valid')[1, 2]
          for phase in (0, 1)
        )
        squares += even**2 + odd**2
      assert np.sqrt(squares) == pytest.approx(expected[f, a], rel=1e-5)
  total = np.abs((expected * np.exp(2j * angles)).sum(-1)) / expected.sum(-1)
  np.testing.assert_allclose(filters.selectivity(expected), total)


def test_selectivity_by_hand():
  responses = [[0, 0, 3, 0], [2, 2, 2, 2], [1, 0, 1, 0], [3, 0, 1, 0], [0, 0, 0, 0]]
  np.testing.assert_allclose(filters.selectivity(responses), [1, 0, 0, 0.5, 0], atol=1e-12)


def test_pictures_and_sheet():
  kernel = np.zeros((2, 2, 3, 5))
  kernel[0, 0, 0, 1], kernel[1, 1, 2, 1] = 4, -2
  shown = filters.pictures(kernel)
  assert shown.shape == (5, 2, 2, 3)
  assert (shown[1, 0, 0, 0], shown[1, 1, 1, 2], shown[1, 0, 1, 0]) == (1, 0.25, 0.5)
  np.testing.assert_array_equal(shown[0], 0.5)
  page = filters.sheet(shown, columns=2, gap=1)
  assert page.shape == (8, 5, 3)
  np.testing.assert_array_equal(page[:2, 3:], shown[1])
  np.testing.assert_array_equal(page[2], 1)
  np.testing.assert_array_equal(page[6:, 3:], 1)
  with pytest.raises(UserError, match='C 1 or 3'):
    filters.pictures(np.zeros((3, 3, 2, 4)))
  with pytest.raises(UserError, match='must be'):
    filters.spectrum(np.zeros((3, 3)))


def test_maps():
  features = np.stack([np.arange(6.0).reshape(2, 3) - 2, np.ones((2, 3))], -1)
  shown = filters.maps(features)
  assert shown.shape == (2, 2, 3, 1)
  np.testing.assert_allclose(shown[0].ravel(), np.arange(6) / 5)
  np.testing.assert_array_equal(shown[1], 0)
