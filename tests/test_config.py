"""The schema: what `validate` accepts, completes and refuses."""

import pytest
from ml_collections import ConfigDict

from cnnjax import config
from cnnjax.errors import UserError


def test_default_is_valid_and_stays_as_it_is():
  assert config.validate(config.default()).to_dict() == config.default().to_dict()


def test_a_partial_config_is_completed_and_integers_serve_as_floats():
  complete = config.validate(
    ConfigDict({'epochs': 3, 'model': {'name': 'cnn', 'features': [8, 9]}})
  )
  assert complete.epochs == 3.0
  assert isinstance(complete.epochs, float)
  assert complete.batch_size == config.default().batch_size
  assert complete.model.to_dict() == {'name': 'cnn', 'features': (8, 9)}
  assert complete.is_locked


@pytest.mark.parametrize(
  ('key', 'value', 'said'),
  [
    ('batch_sizes', 3, 'batch_size'),
    ('batch_size', '3', 'int'),
    ('batch_size', True, 'int'),
    ('batch_size', -2, '-1 for the whole'),
    ('epochs', 'many', 'float'),
    ('steps', 2.5, 'int'),
    ('dtype', 'float64', 'bfloat16'),
    ('seed', -1, '2**32'),
    ('augment', 3, 'str'),
    ('micro_batches', 0, 'at least 1'),
    ('ema_decay', 1.0, 'in [0, 1)'),
    ('sam_radius', -0.1, 'at least 0'),
    ('eval_probes', ('knn', 'svm'), "'knn' and 'linear'"),
    ('profile', '5', 'FIRST:LAST'),
    ('profile', '5:4', 'FIRST:LAST'),
  ],
)
def test_mistakes_name_key_value_and_what_is_allowed(key, value, said):
  c = config.default()
  with c.ignore_type():
    c[key] = value
  with pytest.raises(UserError) as error:
    config.validate(c)
  for words in (key, repr(value) if key != 'batch_sizes' else 'batch_sizes', said):
    assert words in str(error.value)


def test_mean_without_std_is_refused():
  c = config.default()
  c.data.mean = (0.5,)
  with pytest.raises(UserError, match=r'data\.std'):
    config.validate(c)
