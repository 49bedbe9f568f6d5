"""A run read back: it says of every example what the run's own evaluation said."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.data import sources
from cnnjax.errors import UserError
from cnnjax.training import loop, trained


@pytest.mark.parametrize('ema_decay', [0.0, 0.5])
def test_the_figures_of_a_run(tmp_path, ema_decay):
  c = config_lib.default()
  c.model = ConfigDict({'name': 'cnn', 'features': (4,), 'dense': (), 'norm': 'batch'})
  c.steps, c.ema_decay, c.eval_mirror, c.parallel.devices = 8, ema_decay, True, 1
  c.optimizer.learning_rate = 0.02
  row = loop.train(config_lib.validate(c), str(tmp_path))
  run = trained.load(str(tmp_path))
  assert run.step == row['step'] == 8
  digits = sources.digits('test')
  batch = {'image': run.preprocess(digits.images)}
  logits = jax.jit(run.task.predict)(run.variables, batch)
  assert np.mean(np.argmax(logits, -1) == digits.labels) == pytest.approx(row['accuracy'])
  assert 0.2 < row['accuracy'] < 0.98  # neither chance nor all: that of these weights

  # Evaluated in another way: without mirror images, and of nothing else of another config.
  assert loop.evaluate_checkpoint(config_lib.validate(c), str(tmp_path)) == row
  c.eval_mirror = False
  plain = loop.evaluate_checkpoint(config_lib.validate(c), str(tmp_path))
  assert abs(plain['loss'] - row['loss']) > 1e-4
  with pytest.raises(UserError, match=r'differs in eval_mirror \('):
    loop.train(config_lib.validate(c), str(tmp_path))
  c.ema_decay = 0.9
  with pytest.raises(UserError, match=r'differs in ema_decay \('):
    loop.evaluate_checkpoint(config_lib.validate(c), str(tmp_path))


def test_what_is_no_run(tmp_path):
  with pytest.raises(UserError, match=r'holds no run: config.json and data.json must be there'):
    trained.load(str(tmp_path))
