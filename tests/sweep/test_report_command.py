"""`python -m cnnjax.sweep.report`, as a user runs it and with every choice of flags."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver

from cnnjax.errors import UserError
from cnnjax.sweep import report
from tests.commands import is_one_line, run
from tests.sweep.finished_runs import write_seeds


@pytest.fixture
def printed(capsys):
  """What the command prints with these flags, in this process."""

  def call(**values):
    with flagsaver.flagsaver(**values):
      flags.FLAGS.mark_as_parsed()
      report.main()
    return capsys.readouterr().out

  return call


@pytest.fixture
def sides(tmp_path):
  return {
    'runs': f'B={write_seeds(tmp_path / "b", (0.92, 0.93, 0.925))}',
    'against': [f'A={write_seeds(tmp_path / "a", (0.91, 0.90, 0.905))}'],
  }


def test_as_a_user_runs_it(sides):
  status, out, err = run(
    'sweep.report', f'--runs={sides["runs"]}', f'--against={sides["against"][0]}'
  )
  assert (status, err) == (0, '')
  lines = out.splitlines()
  assert lines[0].split()[:2] == ['n', 'mean']
  assert lines[1].split()[:3] == ['B', '3', '92.50']
  assert lines[3].startswith('B - A')


def test_every_format_says_the_same(printed, sides):
  found = json.loads(printed(**sides, format='json'))
  assert found['left_out'] == {}
  mean = f'{100 * found["comparisons"][0]["difference"]["mean"]:.2f}'
  verdict = found['comparisons'][0]['verdict']
  for name in ('text', 'markdown', 'latex'):
    out = printed(**sides, format=name)
    assert mean in out
    assert verdict.partition(' (')[0] in out
    assert printed(**sides, format=name) == out


def test_a_sweep(printed, tmp_path):
  for trial, rate in (('0000', 0.1), ('0001', 0.2)):
    accuracies = [0.8 + rate / 10, 0.81 + rate / 10]
    changes = {'optimizer.learning_rate': rate}
    write_seeds(tmp_path / 'trials' / trial, accuracies, changes=changes)
  lines = printed(sweep=str(tmp_path)).splitlines()
  assert lines[0].split()[:3] == ['trial', 'optimizer.learning_rate', 'n']
  assert [line.split()[0] for line in lines[1:3]] == ['0001', '0000']
  found = json.loads(printed(sweep=str(tmp_path), metric='test/loss', format='json'))
  assert [side['name'] for side in found['sides']] == ['0001', '0000']
  assert found['better'] == 'lower'


@pytest.mark.parametrize(
  'values', [{}, {'sweep': 'x', 'runs': 'y'}, {'sweep': 'x', 'against': ['y']}]
)
def test_what_is_to_be_reported_must_be_said(printed, values):
  with pytest.raises(UserError, match='--runs=PATTERN') as caught:
    printed(**values)
  is_one_line(caught.value)
