"""Classifiers on features against scikit-learn's."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from cnnjax.training import probes

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(4, 6))


def examples(number):
  labels = RNG.integers(0, 4, number).astype(np.int32)
  return (CENTRES[labels] + RNG.normal(size=(number, 6))).astype(np.float32), labels


TRAIN, LABELS = examples(300)
TEST, TRUTH = examples(1500)  # more than are compared at once


@pytest.mark.parametrize(('neighbours', 'temperature'), [(1, 0.07), (20, 0.07), (20, 1.0)])
def test_knn(neighbours, temperature):
  got = probes.knn(
    TRAIN, LABELS, TEST, num_classes=4, neighbours=neighbours, temperature=temperature
  )
  reference = KNeighborsClassifier(
    neighbours, metric='cosine', weights=lambda d: np.exp((1 - d) / temperature)
  ).fit(TRAIN, LABELS)
  np.testing.assert_array_equal(got, reference.predict(TEST))
  assert (got == TRUTH).mean() > 0.6


def test_knn_with_fewer_examples_than_neighbours():
  got = probes.knn(TRAIN[:3], LABELS[:3], TEST[:5], num_classes=4)
  assert set(got) <= set(LABELS[:3])


@pytest.mark.parametrize('l2', [1e-3, 0.1])
def test_linear(l2):
  train = np.concatenate([TRAIN * 3 + 5, np.ones((300, 1), np.float32)], axis=1)  # a dead feature
  test = np.concatenate([TEST * 3 + 5, np.ones((1500, 1), np.float32)], axis=1)
  got = probes.linear(train, LABELS, test, num_classes=4, l2=l2)
  mean, std = TRAIN.mean(0), TRAIN.std(0)
  reference = LogisticRegression(C=1 / (l2 * 300), tol=1e-8, max_iter=5000)
  reference.fit((TRAIN - mean) / std, LABELS)
  assert (got == reference.predict((TEST - mean) / std)).mean() > 0.998  # 3 on the boundary
  assert (got == TRUTH).mean() > 0.6
