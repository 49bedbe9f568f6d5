"""What a few seeds can show: spread, intervals of the mean, and paired tests of a difference.

The values of a config's runs are a sample of what its seeds give; all that is said here is about
the mean over seeds, on the test set at hand. What is drawn is drawn from a fixed seed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

ALPHA = 0.05  # what p must not exceed; intervals are of 1 - ALPHA
FEWEST = 3  # values that an interval or a test takes
_RESAMPLES = 9_999
_EXACT = 16  # differences whose 2^n signs are all looked at

Interval = tuple[float, float]


class Summary(NamedTuple):
  """A sample of numbers.

  Attributes:
    n: how many there are.
    mean: of them.
    std: standard deviation, over n - 1; None for one number.
    standard_error: of the mean, std / sqrt(n).
    min: the least.
    max: the largest.
    t_interval: of the mean, if the numbers are normal; None for fewer than FEWEST, or all equal.
    bca_interval: of the mean, by bootstrap; None for the same.
  """

  n: int
  mean: float
  std: float | None
  standard_error: float | None
  min: float
  max: float
  t_interval: Interval | None
  bca_interval: Interval | None


class Comparison(NamedTuple):
  """A paired comparison; all p are two-sided, and None for fewer pairs than FEWEST.

  Attributes:
    difference: of the pairs' differences.
    t_p: of the paired t-test; None where all differences are equal.
    permutation_p: of the sign-flip test.
    least_p: the smallest permutation_p that so many pairs allow.
    wilcoxon_p: of the signed-rank test, differences of 0 left out.
    effect: Cohen's d_z, the differences' mean by their standard deviation; None where that is 0.
    p: that of the test that decides, chosen before any is seen: the t-test, where there is one.
  """

  difference: Summary
  t_p: float | None
  permutation_p: float | None
  least_p: float
  wilcoxon_p: float | None
  effect: float | None
  p: float | None


def summarize(values: Sequence[float]) -> Summary:
  """Mean, spread and intervals of the mean of at least one number."""
  x = np.asarray(values, np.float64)
  n, varies = len(x), bool(x.min() < x.max())
  std = float(x.std(ddof=1)) if varies else None if n == 1 else 0.0
  error = None if std is None else std / math.sqrt(n)
  enough = varies and n >= FEWEST
  return Summary(
    n=n,
    mean=float(x.mean()),
    std=std,
    standard_error=error,
    min=float(x.min()),
    max=float(x.max()),
    t_interval=t_interval(x) if enough else None,
    bca_interval=bca_interval(x) if enough else None,
  )


def t_interval(values: Sequence[float] | np.ndarray) -> Interval:
  """Student's interval of the mean of two or more numbers."""
  x = np.asarray(values, np.float64)
  reach = stats.t.ppf(1 - ALPHA / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
  return float(x.mean() - reach), float(x.mean() + reach)


def bca_interval(values: Sequence[float] | np.ndarray) -> Interval:
  """The bias-corrected and accelerated bootstrap interval of the mean.

  Efron 1987, "Better bootstrap confidence intervals". It is too narrow for few values: a sample of
  three can be drawn in ten ways only.

  Args:
    values: two or more, not all equal.
  """
  x = np.asarray(values, np.float64)
  middle, scale = x.mean(), np.abs(x - x.mean()).max()

  def mean(z: np.ndarray, axis: int = -1) -> np.ndarray:
    # The same numbers summed in another order are a tie, which BCa counts as half below.
    return np.round(np.mean(z, axis=axis), 9)

  found = stats.bootstrap(
    ((x - middle) / scale,),
    mean,
    n_resamples=_RESAMPLES,
    confidence_level=1 - ALPHA,
    method='BCa',
    vectorized=True,
    rng=np.random.default_rng(0),
  )
  low, high = found.confidence_interval
  return float(middle + scale * low), float(middle + scale * high)


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
  """Compares `first - second`, pair by pair.

  Args:
    first: one value for each seed.
    second: of the same seeds, in the same order.
  """
  a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
  # Accuracies are fractions, so equal differences of them differ by rounding: let them be equal.
  size = max(np.abs(a).max(), np.abs(b).max()) or 1.0
  d = np.round(a - b, 12 - math.ceil(math.log10(size))) + 0.0  # no -0.0
  difference = summarize(d.tolist())
  enough, t_p, permutation_p, wilcoxon_p = len(d) >= FEWEST, None, None, None
  if enough:
    permutation_p, wilcoxon_p = sign_flip_p(d), signed_rank_p(d)
    if difference.std and difference.standard_error:
      t = difference.mean / difference.standard_error
      t_p = float(2 * stats.t.sf(abs(t), len(d) - 1))
  return Comparison(
    difference=difference,
    t_p=t_p,
    permutation_p=permutation_p,
    least_p=2.0 ** (1 - len(d)) if len(d) <= _EXACT else 1 / (_RESAMPLES + 1),
    wilcoxon_p=wilcoxon_p,
    effect=difference.mean / difference.std if difference.std else None,
    p=permutation_p if t_p is None else t_p,
  )


def sign_flip_p(differences: Sequence[float] | np.ndarray) -> float:
  """How often random signs give a sum of the differences as far from 0 as theirs is.

  If it makes no difference which run of a pair is which, every choice of signs is as likely. All
  2^n are looked at for up to 16 differences, else 9,999 drawn ones and the one that was observed
  (Phipson & Smyth 2010, arXiv:1603.05766, which says why it counts).
  """
  d = np.asarray(differences, np.float64)
  n = len(d)
  if n <= _EXACT:
    signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)  # [2^n, n]
  else:
    signs = np.random.default_rng(0).choice((-1, 1), size=(_RESAMPLES + 1, n))
    signs[0] = 1
  rounding = 1e-9 * np.abs(d).sum()
  return float(np.mean(np.abs(signs @ d) >= abs(d.sum()) - rounding))


def signed_rank_p(differences: Sequence[float] | np.ndarray) -> float:
  """Wilcoxon's signed-rank test: the sign-flip test of the ranks of the differences' sizes.

  Differences of 0 are left out, ties share their mean rank (Wilcoxon 1945; Pratt's way with zeros
  differs).
  """
  d = np.asarray(differences, np.float64)
  d = d[d != 0]
  return sign_flip_p(stats.rankdata(np.abs(d)) * np.sign(d))


def holm(ps: Sequence[float]) -> list[float]:
  """p of several tests, adjusted so that any false one among them is as rare as asked of one.

  Holm 1979: the least p times their number, the next times one less, and so on, none smaller than
  the one before.
  """
  p = np.asarray(ps, np.float64)
  order = np.argsort(p, kind='stable')
  adjusted = np.empty_like(p)
  adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
  return np.minimum(adjusted, 1.0).tolist()


def binomial_error(share: float, n: int) -> float:
  """Standard error of a share of right answers, as another n examples would give another."""
  return math.sqrt(share * (1 - share) / n)
