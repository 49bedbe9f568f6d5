"""Every model of the zoo has the parameters and multiply-accumulates that it should have.

reference/model_counts.csv was counted from the public definitions; what isn't public there has a
row in reference/extra_counts.csv, which says how it was derived.
"""

import csv
import json
import pathlib

import pytest

from cnnjax import analysis, models
from cnnjax.models import __main__ as command

FOLDER = pathlib.Path(__file__).parent / 'reference'
FILES = ('model_counts.csv', 'extra_counts.csv')


def rows():
  found = {}
  for file in FILES:
    with (FOLDER / file).open(newline='') as opened:
      for row in csv.DictReader(opened):
        assert row['model'] not in found, f'{row["model"]} stands in two rows'
        found[row['model']] = row
  return found


ROWS = rows()


def test_every_reference_is_a_model():
  assert set(ROWS) <= set(models.names())


@pytest.mark.parametrize('name', models.names())
def test_counts(name):
  assert name in ROWS, f'{name} has no row: derive its counts and add one to extra_counts.csv'
  row, entry = ROWS[name], models.REGISTRY[name]
  size = tuple(map(int, row['input'].split('x')))
  height, width = size if len(size) == 2 else size * 2
  assert (height, width) == entry.image[:2]
  counted = analysis.count(models.create(name, num_classes=entry.num_classes), entry.image)
  assert (counted.parameters, counted.macs) == (int(row['params']), int(row['macs']))
  assert sum(layer.parameters for layer in counted.layers) == counted.parameters
  assert sum(layer.macs for layer in counted.layers) == counted.macs
  assert row['source'].strip()
  assert entry.paper


def test_table(capsys, monkeypatch):
  monkeypatch.setattr(models, 'names', lambda: ('lenet5', 'mlp'))
  assert command.main([]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3
  assert lines[1].split()[:3] == ['lenet5', '61,706', '416,520']
  assert command.main(['--json']) == 0
  found = json.loads(capsys.readouterr().out)
  assert [row['name'] for row in found] == ['lenet5', 'mlp']
  assert found[0]['input'] == [32, 32, 1]


def test_layers_of_one_model(capsys):
  assert command.main(['lenet5', '--json']) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found['parameters'], found['macs']) == (61706, 416520)
  # LeCun et al. 1998 and by hand: 28 x 28 outputs of 25 products for 6 maps; 10 x 10 of 150 for 16.
  convs = [row for row in found['layers'] if len(row['output']) == 3]
  assert [row['macs'] for row in convs] == [28 * 28 * 25 * 6, 10 * 10 * 150 * 16]
  assert convs[0]['output'] == [28, 28, 6]
  assert command.main(['lenet5']) == 0
  assert capsys.readouterr().out.splitlines()[-1].split() == ['total', '61,706', '416,520']


@pytest.mark.parametrize('argv', [['resnt18'], ['resnet18', 'resnet34'], ['--jsn']])
def test_mistakes_are_one_line(capsys, argv):
  assert command.main(argv) == 2
  output = capsys.readouterr()
  assert output.out == ''
  assert len(output.err.splitlines()) == 1
  assert argv[0] in output.err
