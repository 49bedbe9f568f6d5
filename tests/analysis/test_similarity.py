"""CKA against its definition, and probes on features that are or aren't separable."""

import numpy as np
import pytest

from cnnjax.analysis import similarity
from cnnjax.errors import UserError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 7)).astype(np.float32)
Y = (X @ RNG.normal(size=(7, 5)) + RNG.normal(size=(20, 5)) + 3).astype(np.float32)


def centred(k):
  h = np.eye(len(k)) - 1 / len(k)
  return h @ k @ h


def hsic0(k, m):
  return np.trace(centred(k) @ centred(m))


def hsic1(k, m):
  """Song et al. 2012, equation 4, word for word."""
  n, one = len(k), np.ones(len(k))
  k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
  return (
    np.trace(k @ m)
    + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    - 2 / (n - 2) * (one @ k @ m @ one)
  ) / (n * (n - 3))


@pytest.mark.parametrize(('debiased', 'hsic'), [(False, hsic0), (True, hsic1)])
def test_definition(debiased, hsic):
  k, m = (np.float64(x) @ np.float64(x).T for x in (X, Y))
  expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
  assert similarity.cka(X, Y, debiased=debiased) == pytest.approx(expected, abs=1e-5)
  assert 0.1 < expected < 0.9


@pytest.mark.parametrize('debiased', [False, True])
def test_invariances(debiased):
  rotation, _ = np.linalg.qr(RNG.normal(size=(7, 7)))
  cka = lambda x, y: float(similarity.cka(x, y, debiased=debiased))
  assert cka(X, X) == pytest.approx(1, abs=1e-5)
  assert cka(X, -2.5 * X @ rotation + 4) == pytest.approx(1, abs=1e-5)
  assert cka(X @ rotation, 9 * Y) == pytest.approx(cka(X, Y), abs=1e-5)
  # Not to what changes directions' lengths: this is what tells it from CCA.
  assert cka(X, X * np.float32([9, 1, 1, 1, 1, 1, 1])) < 0.9


def test_independent_features():
  """Twenty images and 400 channels: what the bias is about."""
  biased, debiased = [], []
  for _ in range(20):
    x, y = RNG.normal(size=(2, 20, 400)).astype(np.float32)
    biased.append(similarity.cka(x, y))
    debiased.append(similarity.cka(x, y, debiased=True))
  assert np.mean(biased) > 0.9
  assert abs(np.mean(debiased)) < 0.05


def test_layers_of_two_models():
  maps = Y.reshape(20, 1, 5, 1)  # flattened
  found = similarity.compare({'a': X, 'b': maps}, {'c': Y, 'd': X, 'constant': np.ones((20, 2))})
  assert found.shape == (2, 3)
  np.testing.assert_allclose(found[:, 2], 0)
  np.testing.assert_allclose([found[0, 1], found[1, 0]], 1, atol=1e-5)
  own = similarity.compare({'a': X, 'b': maps})
  np.testing.assert_allclose(own, own.T, atol=1e-6)
  np.testing.assert_allclose(own[:, 0], found[:, 1], atol=1e-6)


def test_pooled():
  maps = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(similarity.pooled(maps, 2), [[2.5, 4.5, 10.5, 12.5]])
  np.testing.assert_array_equal(similarity.pooled(maps, 1), [[7.5]])
  np.testing.assert_array_equal(similarity.pooled(X, 3), X)


def test_probes():
  labels = RNG.integers(0, 3, 120)
  noise = RNG.normal(size=(120, 2, 2, 3)).astype(np.float32)
  layers = {
    'noise': noise,
    'class': noise + 20 * np.eye(3, dtype=np.float32)[labels][:, None, None],
  }
  train = {name: x[:80] for name, x in layers.items()}
  test = {name: x[80:] for name, x in layers.items()}
  found = similarity.probe(train, labels[:80], test, labels[80:], num_classes=3, grid=2)
  assert list(found) == ['noise', 'class']
  assert found['class'] == 1
  assert found['noise'] < 0.6


def test_refused():
  with pytest.raises(UserError, match=r'x, y have \[19, 20\] examples'):
    similarity.cka(X, Y[1:])
  with pytest.raises(UserError, match='at least 4'):
    similarity.cka(X[:3], Y[:3])
  with pytest.raises(UserError, match='grid=3 must divide'):
    similarity.pooled(np.zeros((1, 4, 4, 1)), 3)
