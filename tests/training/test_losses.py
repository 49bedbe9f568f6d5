import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics

from cnnjax.training import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(16, 7)).astype(np.float32) * 3
LABELS = RNG.integers(0, 7, 16)
ONE_HOT = np.eye(7, dtype=np.float32)[LABELS]
SOFT = RNG.dirichlet(np.ones(7), size=16).astype(np.float32)


def softmax_reference(logits, targets):
  return -(targets * scipy.special.log_softmax(logits.astype(np.float64), axis=-1)).sum(-1)


def sigmoid_reference(logits, targets):
  logits = logits.astype(np.float64)
  positive, negative = scipy.special.log_expit(logits), scipy.special.log_expit(-logits)
  return -(targets * positive + (1 - targets) * negative).sum(-1)


CASES = pytest.mark.parametrize(
  ('loss', 'reference'),
  [
    (losses.softmax_cross_entropy, softmax_reference),
    (losses.sigmoid_cross_entropy, sigmoid_reference),
  ],
  ids=losses.LOSSES,
)


@CASES
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_matches_scipy_for_indices_one_hot_and_soft_labels(loss, reference, smoothing):
  for labels, targets in [(LABELS, ONE_HOT), (ONE_HOT, ONE_HOT), (SOFT, SOFT)]:
    got = loss(jnp.asarray(LOGITS), jnp.asarray(labels), label_smoothing=smoothing)
    targets = (1 - smoothing) * targets + smoothing / 7
    assert got.shape == (16,)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, reference(LOGITS, targets), rtol=1e-5)


def test_means_match_scikit_learn():
  mean = losses.softmax_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS)).mean()
  probabilities = scipy.special.softmax(LOGITS.astype(np.float64), axis=-1)
  np.testing.assert_allclose(mean, sklearn.metrics.log_loss(LABELS, probabilities), rtol=1e-5)

  multi_hot = (SOFT > 0.1).astype(np.int32)
  total = losses.sigmoid_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(multi_hot)).sum()
  expected = sklearn.metrics.log_loss(
    multi_hot.ravel(), scipy.special.expit(LOGITS.astype(np.float64)).ravel(), normalize=False
  )
  np.testing.assert_allclose(total, expected, rtol=1e-5)


@CASES
def test_computes_in_float32_whatever_the_logits_type(loss, reference):
  logits = jnp.asarray(LOGITS, jnp.bfloat16)
  got = loss(logits, jnp.asarray(LABELS), label_smoothing=0.1)
  assert got.dtype == jnp.float32
  targets = 0.9 * ONE_HOT + 0.1 / 7
  np.testing.assert_allclose(got, reference(np.asarray(logits, np.float32), targets), rtol=1e-5)


@CASES
def test_large_logits_do_not_overflow(loss, reference):
  logits = jnp.asarray([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
  labels = jnp.asarray([0, 0])
  got = loss(logits, labels)
  np.testing.assert_allclose(got, reference(np.asarray(logits), np.eye(3)[[0, 0]]), rtol=1e-6)


@CASES
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_label_outside_the_classes_is_nan_and_spares_the_others(loss, reference, smoothing):
  del reference
  labels = jnp.asarray([-1, 7, 3])
  got = loss(jnp.asarray(LOGITS[:3]), labels, label_smoothing=smoothing)
  np.testing.assert_array_equal(np.isnan(got), [True, True, False])


def test_gradient_is_softmax_minus_target():
  grad = jax.grad(lambda z: losses.softmax_cross_entropy(z, jnp.asarray(LABELS)).sum())
  expected = scipy.special.softmax(LOGITS.astype(np.float64), axis=-1) - ONE_HOT
  np.testing.assert_allclose(grad(jnp.asarray(LOGITS)), expected, atol=1e-6)
