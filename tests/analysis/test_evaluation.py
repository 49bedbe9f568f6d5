import jax
import numpy as np
import pytest
import sklearn.metrics

from cnnjax.analysis import evaluation
from cnnjax.training import losses, metrics

RNG = np.random.default_rng(3)
N, C = 200, 6
LOGITS = 2 * RNG.normal(size=(N, C)).astype(np.float32)
LABELS = RNG.integers(0, C - 1, N).astype(np.int32)  # none of the last class
LOGITS[:, 1] -= 50  # which is never predicted


predictions = jax.jit(evaluation.predictions, static_argnames='loss')
evaluation_sums = jax.jit(metrics.evaluation_sums, static_argnames='activation')


def found(logits=LOGITS, labels=LABELS, **options):
  return jax.device_get(predictions(logits, labels, **options))


def test_matrix_and_classes_match_scikit_learn():
  matrix = evaluation.confusion(found(), C)
  predicted = LOGITS.argmax(-1)
  labels = np.arange(C)
  assert np.array_equal(matrix, sklearn.metrics.confusion_matrix(LABELS, predicted, labels=labels))
  precision, recall, _, support = sklearn.metrics.precision_recall_fscore_support(
    LABELS, predicted, labels=labels, zero_division=np.nan
  )
  classes = evaluation.per_class(found(), C)
  np.testing.assert_array_equal(classes.support, support)
  np.testing.assert_array_equal(classes.precision, precision)
  np.testing.assert_array_equal(classes.recall, recall)
  assert np.isnan(classes.precision[1])
  assert np.isnan(classes.recall[5])


def test_calibration_by_hand():
  # Of two bins, (0, 0.5] and (0.5, 1], with three classes: 0.5, right; 0.4, wrong; 0.9, right;
  # 0.7, wrong; 0.8, wrong. |1/2 - 0.45| 2/5 + |1/3 - 0.8| 3/5 = 0.3.
  probabilities = [[0.5, 0.3, 0.2], [0.3, 0.4, 0.3], [0.05, 0.9, 0.05], [0.1, 0.2, 0.7],
                   [0.8, 0.1, 0.1]]  # fmt: skip
  calibration = evaluation.calibration(found(np.log(probabilities), np.array([0, 0, 1, 1, 2])), 2)
  assert calibration.count.tolist() == [2, 3]
  np.testing.assert_allclose(calibration.confidence, [0.45, 0.8], rtol=1e-6)
  np.testing.assert_allclose(calibration.accuracy, [0.5, 1 / 3], rtol=1e-6)
  assert calibration.error == pytest.approx(0.3, rel=1e-6)


@pytest.mark.parametrize('loss', ['softmax_cross_entropy', 'sigmoid_cross_entropy'])
def test_the_figures_of_training(loss):
  logits = LOGITS.copy()
  logits[:2] = np.nan  # predict nothing: in no matrix and no bin
  per_example = losses.LOSSES[loss](logits, LABELS)
  activation = {'softmax_cross_entropy': jax.nn.softmax}.get(loss, jax.nn.sigmoid)
  sums = evaluation_sums(per_example, logits, {'label': LABELS}, activation=activation)
  trained, ours = metrics.summarize(sums), found(logits, loss=loss)
  np.testing.assert_array_equal(ours.loss, per_example)
  assert evaluation.confusion(ours, C).tolist() == trained['confusion_matrix']
  calibration = evaluation.calibration(ours)
  assert calibration.error == pytest.approx(trained['expected_calibration_error'], rel=1e-5)
  assert calibration.count.sum() == N - 2
  recall = evaluation.per_class(ours, C).recall[:-1]
  np.testing.assert_allclose(recall, trained['per_class_accuracy'][:-1])
  assert np.isnan(evaluation.calibration(ours._replace(predicted=np.full(N, -1))).error)


def test_worst_mistakes():
  some = evaluation.Predictions(
    label=np.array([0, 1, 2, 0, 1, 2]),
    predicted=np.array([0, 0, 0, -1, 2, 1]),
    confidence=np.ones(6, np.float32),
    loss=np.array([9.0, 1.0, 3.0, np.nan, 3.0, 5.0]),
  )
  assert evaluation.worst(some, 9).tolist() == [3, 5, 2, 4, 1]
  assert evaluation.worst(some, 2).tolist() == [3, 5]
