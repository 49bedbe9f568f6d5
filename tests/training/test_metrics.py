import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics

from cnnjax.training import metrics

RNG = np.random.default_rng(1)
N, C = 64, 8
LOGITS = RNG.normal(size=(N, C)).astype(np.float32) * 2
LABELS = np.r_[np.arange(C), RNG.integers(0, C, N - C)].astype(np.int32)
LOSSES = RNG.random(N).astype(np.float32)


def batch(labels=LABELS, mask=None):
  made = {'label': jnp.asarray(labels)}
  return made if mask is None else made | {'mask': jnp.asarray(mask, jnp.float32)}


evaluation_sums = jax.jit(metrics.evaluation_sums, static_argnames='activation')


def sums(losses=LOSSES, logits=LOGITS, labels=LABELS, mask=None, **kwargs):
  return jax.device_get(
    evaluation_sums(jnp.asarray(losses), jnp.asarray(logits), batch(labels, mask), **kwargs)
  )


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    if np.issubdtype(a[name].dtype, np.integer):
      np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    else:
      np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=name)


def test_summary_matches_scikit_learn():
  summary = metrics.summarize(sums())
  predicted = LOGITS.argmax(-1)
  confusion = sklearn.metrics.confusion_matrix(LABELS, predicted)
  assert summary['accuracy'] == sklearn.metrics.accuracy_score(LABELS, predicted)
  assert summary['top5_accuracy'] == sklearn.metrics.top_k_accuracy_score(LABELS, LOGITS, k=5)
  assert summary['confusion_matrix'] == confusion.tolist()
  assert summary['per_class_accuracy'] == pytest.approx(
    sklearn.metrics.recall_score(LABELS, predicted, average=None)
  )
  assert summary['loss'] == pytest.approx(LOSSES.mean(dtype=np.float64), rel=1e-6)
  assert json.loads(json.dumps(summary)) == summary


def test_calibration_error_by_hand():
  # Two classes with confidences 0.9, 0.9, 0.6, 0.6 and outcomes right, wrong, right, right:
  # bin of 0.9: |0.5 - 0.9| = 0.4; bin of 0.6: |1 - 0.6| = 0.4; half the examples in each.
  logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
  summary = metrics.summarize(sums(np.zeros(4), logits, np.array([0, 1, 1, 1])))
  assert summary['expected_calibration_error'] == pytest.approx(0.4, abs=1e-6)


@pytest.mark.parametrize(
  ('activation', 'reference'),
  [(jax.nn.softmax, lambda x: scipy.special.softmax(x, -1)), (jax.nn.sigmoid, scipy.special.expit)],
)
def test_calibration_error_matches_a_loop_over_bins(activation, reference):
  confidence = reference(LOGITS.astype(np.float64)).max(-1)
  correct = LOGITS.argmax(-1) == LABELS
  expected = 0.0
  for m in range(15):
    inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
    if inside.any():
      expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
  summary = metrics.summarize(sums(activation=activation))
  assert summary['expected_calibration_error'] == pytest.approx(expected, rel=1e-5)


def test_certain_predictions_fall_into_the_last_bin():
  logits = np.array([[200.0, 0.0], [0.0, 200.0]])
  got = sums(np.zeros(2), logits, np.array([0, 0]))
  assert got['bin_count'].tolist() == [0] * 14 + [2]
  assert metrics.summarize(got)['expected_calibration_error'] == pytest.approx(0.5)


def test_ties_rank_by_index():
  logits = np.zeros((C, C))
  got = sums(np.zeros(C), logits, np.arange(C))
  assert (got['correct'], got['top5']) == (1, 5)
  assert got['confusion'][:, 0].tolist() == [1] * C


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('place', [0, 1])
def test_logits_that_are_not_finite_count_and_are_wrong(bad, place):
  logits = np.array([[1.0, 0.0, 0.0]] * 2)
  logits[0, place] = bad
  got = sums(np.zeros(2), logits, np.array([0, 0]))
  assert (got['count'], got['correct'], got['top5']) == (2, 1, 1)
  assert (got['class_count'][0], got['class_correct'][0]) == (2, 1)
  assert (got['confusion'].sum(), got['bin_count'].sum()) == (1, 1)
  assert metrics.summarize(got)['per_class_accuracy'] == [0.5, None, None]


def test_all_logits_nan_still_summarizes():
  summary = metrics.summarize(sums(np.full(2, np.nan), np.full((2, 3), np.nan), np.array([0, 1])))
  assert (summary['accuracy'], summary['expected_calibration_error']) == (0.0, None)
  assert np.isnan(summary['loss'])


def test_mask_equals_subset_whatever_lies_under_it():
  mask = RNG.random(N) < 0.7
  losses, logits = LOSSES.copy(), LOGITS.copy()
  losses[~mask], logits[~mask] = np.nan, np.nan
  assert_equal(sums(losses, logits, mask=mask), sums(LOSSES[mask], LOGITS[mask], LABELS[mask]))


def test_halves_add_up_to_the_whole():
  total = None
  for half in (slice(0, 20), slice(20, N)):
    total = metrics.accumulate(total, sums(LOSSES[half], LOGITS[half], LABELS[half]))
  assert_equal(total, sums())
  assert {str(value.dtype) for value in total.values()} == {'int64', 'float64'}


def test_order_does_not_matter():
  order = RNG.permutation(N)
  assert_equal(sums(LOSSES[order], LOGITS[order], LABELS[order]), sums())


def test_relabelling_classes_permutes_the_confusion_matrix():
  new = RNG.permutation(C)  # class c becomes new[c]
  logits = np.empty_like(LOGITS)
  logits[:, new] = LOGITS
  got, old = sums(logits=logits, labels=new[LABELS]), sums()
  np.testing.assert_array_equal(got['confusion'][np.ix_(new, new)], old['confusion'])
  assert (got['correct'], got['top5']) == (old['correct'], old['top5'])


def test_soft_labels_count_by_their_largest_entry():
  soft = 0.8 * np.eye(C, dtype=np.float32)[LABELS] + 0.2 / C
  assert_equal(sums(labels=soft), sums())


def test_the_data_checksum_sees_which_examples_count_and_not_their_order():
  def checksum(ids, mask=(1, 1, 1)):
    arrays = {'label': jnp.zeros(3, int), 'id': jnp.asarray(ids), 'mask': jnp.asarray(mask)}
    sums = metrics.training_sums(jnp.zeros(3), jnp.zeros((3, 2)), arrays)
    return int(sums['data'])

  base = checksum([4, 0, 9])
  assert base == checksum([9, 4, 0]) == checksum([4, 9, 0])
  others = [checksum([4, 0, 8]), checksum([3, 1, 9]), checksum([4, 9, 9], (1, 0, 1))]
  others += [checksum([4, 0, 9], (1, 0, 1)), checksum([4, 0, 9], (0, 0, 0))]
  assert len({base, *others}) == 5  # an example that doesn't count isn't looked at
  assert others[2] == others[3]


def test_training_sums_are_those_of_evaluation():
  mask = RNG.random(N) < 0.5
  cheap = metrics.training_sums(jnp.asarray(LOSSES), jnp.asarray(LOGITS), batch(mask=mask))
  full = sums(mask=mask)
  assert_equal(jax.device_get(cheap), {name: full[name] for name in cheap})
  assert set(metrics.summarize(cheap)) == {'loss', 'accuracy'}


def test_accumulation_keeps_large_counts_exact():
  one = {'count': np.int32(2**31 - 1), 'loss': np.float32(1e8)}
  total = None
  for _ in range(3):
    total = metrics.accumulate(total, one)
  total = metrics.accumulate(total, {'count': np.int32(1), 'loss': np.float32(1)})
  assert total == {'count': 3 * (2**31 - 1) + 1, 'loss': 3e8 + 1}


def test_many_classes_have_no_confusion_matrix():
  classes = metrics.MAX_CONFUSION_CLASSES + 1
  got = sums(np.zeros(2), np.eye(2, classes), np.array([0, 0]))
  assert 'confusion' not in got
  summary = metrics.summarize(got)
  assert 'confusion_matrix' not in summary
  assert summary['per_class_accuracy'][:2] == [0.5, None]


def test_nothing_counted_is_an_error():
  with pytest.raises(ValueError, match='no examples'):
    metrics.summarize(sums(mask=np.zeros(N)))
