"""`python -m cnnjax.analyze`, as a user runs it."""

import json

from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.training import loop
from tests.commands import refused, run


def test_the_classic_example():
  layer = ('--layer=conv', '--input=32,32,3', '--features=6', '--kernel=5,5', '--padding=VALID')
  status, out, err = run('analyze', *layer, '--json')
  assert (status, err) == (0, '')
  found = json.loads(out)
  assert found['parameters'] == 456
  assert found['parameters_per_channel_filter'] == 156
  assert found['fully_connected_weights'] == 14_450_688
  assert found['fully_connected_parameters'] == 14_455_392
  assert found['connections'] == 352_800
  assert found['output'] == [28, 28, 6]
  status, out, _ = run('analyze', *layer)
  assert status == 0
  assert '456  (5 x 5 x 3 + 1) x 6, each filter spanning its channels' in out
  assert 'say 156 parameters; this layer has 456' in out


def test_a_model_and_a_mistake():
  status, out, err = run('analyze', '--model=lenet5')
  assert (status, err) == (0, '')
  assert out.splitlines()[-1].split()[:2] == ['total', '61,706']
  status, out, err = run('analyze', '--model=lenet6', '--json')
  assert (status, out) == (2, '')
  assert len(err.splitlines()) == 1
  assert "did you mean 'lenet5'" in err


def test_the_report_of_a_run(tmp_path):
  c = config_lib.default()
  c.model = ConfigDict({'name': 'cnn', 'features': (4,), 'dense': ()})
  c.steps, c.parallel.devices, c.optimizer.learning_rate = 8, 1, 0.02
  row = loop.train(config_lib.validate(c), str(tmp_path))
  status, out, err = run('analyze', f'--workdir={tmp_path}')
  assert status == 0, err
  assert out == f'report  {tmp_path}/report.html\n'
  page = (tmp_path / 'report.html').read_text()
  assert f'<dd>{row["accuracy"]:.4f}</dd>' in page
  assert f'test accuracy {row["accuracy"]:.4f}, test loss {row["loss"]:.4f}' in page


def test_no_report(tmp_path):
  assert 'holds no run' in refused('analyze', f'--workdir={tmp_path / "missing"}')
