"""Intervals and tests against numbers counted by hand, scipy's, and simulations."""

import itertools

import numpy as np
import pytest
import scipy.special
import scipy.stats

from cnnjax.sweep import statistics


def test_a_summary_by_hand():
  found = statistics.summarize([1.0, 2.0, 3.0, 6.0])
  assert found[:2] == (4, 3.0)
  np.testing.assert_allclose(found.std, (14 / 3) ** 0.5)  # squares 4 + 1 + 0 + 9
  np.testing.assert_allclose(found.standard_error, (14 / 12) ** 0.5)
  assert (found.min, found.max) == (1.0, 6.0)
  # 3.182446 is the table's value of t for 3 degrees of freedom and 0.975.
  reach = 3.182446305284263 * (14 / 12) ** 0.5
  np.testing.assert_allclose(found.t_interval, (3 - reach, 3 + reach))


@pytest.mark.parametrize('values', [[0.5], [0.5, 0.6], [0.3] * 4])
def test_no_interval_of_too_few_or_equal_values(values):
  found = statistics.summarize(values)
  assert found.t_interval is found.bca_interval is None
  if len(values) == 1:
    assert found.std is found.standard_error is None
  if len(values) == 4:
    assert found.std == found.standard_error == 0


def exact_bca(x):
  """Efron 1987, of all n^n samples in place of drawn ones."""
  n, middle = len(x), np.mean(x)
  means = np.array([np.mean(s) for s in itertools.product(x, repeat=n)])
  less, ties = np.mean(means < middle - 1e-12), np.mean(np.abs(means - middle) < 1e-12)
  z0 = scipy.special.ndtri(less + ties / 2)
  u = np.asarray(x) - middle
  a = (u**3).sum() / (6 * (u**2).sum() ** 1.5)
  z = z0 + scipy.special.ndtri([0.025, 0.975])
  return np.quantile(means, scipy.special.ndtr(z0 + z / (1 - a * z)))


@pytest.mark.parametrize('x', [(1.0, 2.0, 3.0, 6.0), (0.2, 0.21, 0.25, 0.3, 0.8)])
def test_bca_is_that_of_all_samples(x):
  found, expected = statistics.bca_interval(x), exact_bca(x)
  # Drawn samples move its ends by a step or two of so few values' means.
  np.testing.assert_allclose(found, expected, atol=0.03 * np.ptp(x))
  assert found[1] - np.mean(x) > np.mean(x) - found[0]  # longer on the side of the tail
  assert statistics.bca_interval(x) == found


def test_bca_moves_and_grows_with_the_values():
  x = np.array([0.31, 0.35, 0.36, 0.4, 0.52, 0.55])
  found = np.array(statistics.bca_interval(x))
  np.testing.assert_allclose(statistics.bca_interval(100 * x - 7), 100 * found - 7)
  drawn = scipy.stats.bootstrap((x,), np.mean, n_resamples=20_000, rng=np.random.default_rng(5))
  np.testing.assert_allclose(found, drawn.confidence_interval, atol=0.005)


def coverage(interval, n, count):
  samples = np.random.default_rng(n).normal(size=(count, n))
  ends = np.array([interval(x) for x in samples])
  return np.mean((ends[:, 0] < 0) & (ends[:, 1] > 0))


def test_the_t_interval_covers_what_it_says():
  for n in (3, 5):
    assert abs(coverage(statistics.t_interval, n, 1500) - 0.95) < 0.015  # 2.7 standard errors


def test_bca_of_few_values_covers_less():
  assert coverage(statistics.bca_interval, 5, 200) < 0.9


@pytest.mark.parametrize(
  ('differences', 'p'),
  [
    ((1.0, 2.0, 4.0), 2 / 8),  # |sums| of all signs: 7, 5, 3, 1, each twice
    ((4.0, 2.0, -1.0), 4 / 8),
    ((1.0, -2.0, 4.0), 6 / 8),
    ((1.0, 2.0, -4.0), 1.0),
    ((1.0, 1.0, 1.0), 2 / 8),
    ((0.0, 1.0, 1.0), 4 / 8),
  ],
)
def test_sign_flips_of_three_by_hand(differences, p):
  assert statistics.sign_flip_p(differences) == p
  assert statistics.sign_flip_p([-d for d in differences]) == p


def test_sign_flips_of_accuracies_are_counted_exactly():
  """Sums that tie in whole numbers tie as differences of fractions."""
  rng = np.random.default_rng(0)
  for _ in range(20):
    a, b = rng.integers(340, 350, size=(2, 6))
    whole = (a - b).tolist()
    sums = [abs(sum(s * d for s, d in zip(signs, whole, strict=True)))
            for signs in itertools.product((-1, 1), repeat=6)]  # fmt: skip
    expected = sum(s >= abs(sum(whole)) for s in sums) / 2**6
    assert statistics.compare(a / 359, b / 359).permutation_p == expected


def test_many_pairs_are_drawn():
  d = np.random.default_rng(1).normal(0.4, 1, size=20)
  found = statistics.sign_flip_p(d)
  expected = scipy.stats.permutation_test(
    (d,), np.sum, permutation_type='samples', n_resamples=9_999, rng=np.random.default_rng(2)
  ).pvalue
  assert abs(found - expected) < 0.02
  assert statistics.sign_flip_p(d) == found
  assert statistics.sign_flip_p(np.ones(40)) == 1e-4 == statistics.compare(d, d * 0).least_p


def test_signed_ranks():
  d = np.array([1.2, -0.3, 2.1, 0.7, -0.4, 3.3, 0.9, 1.5])
  expected = scipy.stats.wilcoxon(d, method='exact').pvalue
  np.testing.assert_allclose(statistics.signed_rank_p(d), expected)
  # Ranks 1, 2, -3, 4 without the zero: 10 of 16 signs give a sum of 4 or more in size.
  assert statistics.signed_rank_p([0.0, 0.1, 0.2, -0.3, 0.4]) == 10 / 16
  assert statistics.signed_rank_p([2.0, 2.0, -2.0]) == 1.0  # tied ranks 2, 2, 2
  assert statistics.signed_rank_p([0.0, 0.0]) == 1.0


def test_a_comparison():
  a, b = [0.91, 0.93, 0.90, 0.94, 0.92], [0.90, 0.90, 0.91, 0.91, 0.90]
  found = statistics.compare(a, b)  # differences in points: 1, 3, -1, 3, 2
  np.testing.assert_allclose(found.difference.mean, 0.016)
  np.testing.assert_allclose(found.difference.std, 2.8**0.5 / 100)
  np.testing.assert_allclose(found.t_p, scipy.stats.ttest_rel(a, b).pvalue)
  np.testing.assert_allclose(found.effect, 1.6 / 2.8**0.5)
  # Their sum is 8. As far from 0 are 1, 3, 1, 3, 2 with one sign, or with that of one 1 turned.
  assert found.permutation_p == 6 / 32
  assert found.p == found.t_p
  assert found.least_p == 2 / 32
  assert statistics.compare(b, a)[1:4] == found[1:4]


def test_equal_differences_have_no_t_test():
  a, b = np.array([355, 352, 350]) / 359, np.array([354, 351, 349]) / 359
  found = statistics.compare(a, b)
  assert found.difference.std == 0
  assert found.t_p is found.effect is None
  assert found.p == found.permutation_p == found.least_p == 0.25
  same = statistics.compare(a, a)
  assert (same.p, same.difference.mean, same.wilcoxon_p) == (1.0, 0.0, 1.0)


def test_two_pairs_are_not_tested():
  found = statistics.compare([1.0, 3.0], [0.5, 0.1])
  assert found.p is found.t_p is found.permutation_p is found.wilcoxon_p is None


def test_holm_by_hand():
  np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
  np.testing.assert_allclose(statistics.holm([0.9, 0.5]), [1.0, 1.0])
  assert statistics.holm([0.2]) == [0.2]
  assert statistics.holm([]) == []


def test_the_binomial_error_by_hand():
  np.testing.assert_allclose(statistics.binomial_error(0.9, 100), 0.03)
