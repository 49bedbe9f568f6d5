"""`python -m cnnjax.analyze`, as a user runs it."""

import json

from tests.commands import run


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


def test_a_model():
  status, out, err = run('analyze', '--model=lenet5', '--json')
  assert (status, err) == (0, '')
  found = json.loads(out)
  assert found['input'] == [32, 32, 1]
  assert sum(layer['parameters'] for layer in found['layers']) == 61_706
  status, out, _ = run('analyze', '--model=lenet5')
  assert status == 0
  assert out.splitlines()[-1].split()[:2] == ['total', '61,706']


def test_mistakes_are_one_line_and_status_2():
  for arguments, message in (
    ((), '--layer=conv or --model=NAME'),
    (('--layer=conv', '--input=32,32', '--features=6', '--kernel=5,5'), "--input='32,32'"),
    (('--model=lenet6',), "did you mean 'lenet5'"),
  ):
    status, out, err = run('analyze', *arguments)
    assert (status, out) == (2, '')
    assert len(err.splitlines()) == 1
    assert message in err
