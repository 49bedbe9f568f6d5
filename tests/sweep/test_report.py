"""Runs read back and reported: what is refused, what is said, and that every format holds it."""

import json
import re

import pytest

from cnnjax.errors import UserError
from cnnjax.sweep import report, runs, tables
from tests.commands import is_one_line
from tests.sweep.finished_runs import write, write_seeds

ACCURACY = report.make_metric('test/accuracy')
BETTER = (0.912, 0.921, 0.917, 0.924, 0.919, 0.926, 0.915)
WORSE = (0.900, 0.904, 0.906, 0.905, 0.907, 0.908, 0.902)


def compared(tmp_path, one, *others, metric=ACCURACY):
  """The measured sides and their comparisons."""
  names = ('B', 'A', 'C')[: 1 + len(others)]
  sides = [
    runs.side(f'{name}={write_seeds(tmp_path / name, accuracies)}', metric.name)
    for name, accuracies in zip(names, (one, *others), strict=True)
  ]
  return [report.measure(side, metric) for side in sides], report.match(sides[0], sides[1:])


def verdicts(tmp_path, *accuracies, metric=ACCURACY):
  sides, matches = compared(tmp_path, *accuracies, metric=metric)
  form = report.make_form(metric, [side.summary for side in sides])
  return [report.verdict(m, metric, form, comparisons=len(matches)) for m in matches]


def refused(function, *arguments, **options):
  with pytest.raises(UserError) as caught:
    function(*arguments, **options)
  is_one_line(caught.value)
  return str(caught.value)


def test_a_side_has_the_newest_figure_of_every_seed(tmp_path):
  write(tmp_path / 'x', seed=7, accuracy=0.75)
  write(tmp_path / 'y', seed=3, accuracy=0.5, changes={'max_seconds': 60.0})
  (tmp_path / 'notes.txt').write_text('no directory')
  found = runs.side(f'{tmp_path}/*', 'test/accuracy')
  assert found.values == {3: 0.5, 7: 0.75}
  assert list(found.values) == [3, 7]
  assert found.runs[1].directory == f'{tmp_path}/x'
  assert (found.runs[1].step, found.runs[1].test_examples) == (20, 1000)
  assert runs.side(f'{tmp_path}/x/', 'train/loss').values == {7: 1 / 20}


def test_an_unfinished_run_is_refused_by_name(tmp_path):
  pattern = write_seeds(tmp_path, (0.9, 0.8))
  write(tmp_path / 'seed2', seed=2, last=15, accuracy=0.7)
  assert "seed2' is not finished (it is at step 15 of 20)" in refused(
    runs.side, pattern, 'test/accuracy'
  )
  found = runs.side(pattern, 'test/accuracy', unfinished=True)
  assert found.values == {0: 0.9, 1: 0.8, 2: 0.7}
  said = ' '.join(report.notes(ACCURACY, [report.measure(found, ACCURACY)], []))
  assert f'Counted though not finished: {tmp_path}/seed2 (step 15).' in said
  rows = tmp_path / 'seed1' / 'metrics.jsonl'
  rows.write_text(''.join(rows.read_text().splitlines(keepends=True)[:-1]))  # not its evaluation
  assert "seed1' is not finished (it is at step 20 of 20)" in refused(
    runs.side, f'{tmp_path}/seed1', 'test/accuracy'
  )
  (tmp_path / 'seed1' / 'data.json').unlink()
  assert 'has not begun' in refused(runs.side, pattern, 'test/accuracy')


def test_what_is_no_side(tmp_path):
  pattern = write_seeds(tmp_path, (0.9, 0.8))
  assert 'finds no directory' in refused(runs.side, f'{tmp_path}/none*', 'test/accuracy')
  (tmp_path / 'seed_empty').mkdir()
  assert 'holds no run' in refused(runs.side, pattern, 'test/accuracy')
  (tmp_path / 'seed_empty').rmdir()
  write(tmp_path / 'seed9', seed=1, accuracy=0.9)
  message = refused(runs.side, pattern, 'test/accuracy')
  assert 'seed1 and' in message
  assert 'have the same seed, 1' in message
  changes = {'optimizer.learning_rate': 0.5, 'batch_size': 250}
  write(tmp_path / 'seed8', seed=8, accuracy=0.9, changes=changes)
  message = refused(runs.side, f'{tmp_path}/seed[08]', 'test/accuracy')
  assert 'seed0' in message
  assert 'seed8 differ in batch_size, optimizer.learning_rate (batch_size is 64 and 250)' in message
  write(tmp_path / 'other', seed=10, examples=900, accuracy=0.9)
  message = refused(runs.side, f'{tmp_path}/[so]*[0r]', 'test/accuracy')
  assert 'differ in data.json test_examples (data.json test_examples is 900 and 1000)' in message
  (tmp_path / 'seed0' / 'config.json').write_text('{"sed": 1}')
  assert "seed0/config.json: config key='sed' is unknown" in refused(
    runs.side, pattern, 'test/accuracy'
  )


def test_a_metric_that_nobody_wrote(tmp_path):
  write(tmp_path / 'run', accuracy=0.5, loss=float('nan'))
  message = refused(runs.side, f'{tmp_path}/run', 'test/acuracy')
  assert "run: --metric='test/acuracy' is unknown: did you mean 'test/accuracy'" in message
  assert message.endswith('Allowed: test/accuracy, test/loss, train/loss')
  assert 'test/loss is nan at step 20' in refused(runs.side, f'{tmp_path}/run', 'test/loss')
  (tmp_path / 'run' / 'metrics.jsonl').unlink()
  options = {'unfinished': True}
  assert 'no figures' in refused(runs.side, f'{tmp_path}/run', 'test/loss', **options)


def test_which_direction_is_better():
  higher = {'test/accuracy': True, 'probe/knn_accuracy': True, 'train/images_per_second': True,
            'test/loss': False, 'test/expected_calibration_error': False,
            'train/seconds': False}  # fmt: skip
  assert {name: report.make_metric(name).higher for name in higher} == higher
  assert report.make_metric('test/expected_calibration_error').percent
  assert not report.make_metric('test/loss').percent
  assert report.make_metric('test/loss', 'higher').higher
  assert not report.make_metric('test/accuracy', 'lower').higher


def test_a_better_one(tmp_path):
  (said,) = verdicts(tmp_path, BETTER, WORSE)
  # Differences 12, 17, 11, 19, 12, 18, 13: the mean 14.57, the standard error 1.251, and 2.4469 is
  # the table's value of t for 6 degrees of freedom. No seed of seven is the other way: 2 / 2^7.
  assert said.startswith(
    'B is better than A by 1.46 points (95% interval 1.15 to 1.76), p = <0.0001'
  )
  assert said.endswith('by the paired t-test over 7 seeds.')
  (said,) = verdicts(tmp_path / 'turned', WORSE, BETTER)
  assert said.startswith(
    'A is better than B by 1.46 points (95% interval 1.15 to 1.76), p = <0.0001'
  )


def test_a_loss_is_better_when_it_is_lower(tmp_path):
  metric = report.make_metric('test/loss')
  (said,) = verdicts(tmp_path, WORSE, BETTER, metric=metric)
  assert re.match(r'A is better than B by 0\.01\d+ \(95% interval 0\.01\d+ to 0\.01\d+\)', said)


def test_what_only_normal_differences_show(tmp_path):
  (said,) = verdicts(tmp_path, BETTER[:4], WORSE[:4])
  assert said.startswith('B is better than A by ')
  assert said.endswith(
    'This holds if differences are normal: the permutation test, which does not ask for that, has'
    ' p = 0.12, the least that 4 seeds allow.'
  )


def test_no_difference(tmp_path):
  (said,) = verdicts(tmp_path, (0.91, 0.90, 0.93, 0.90), (0.90, 0.91, 0.90, 0.89))
  assert said.startswith('No difference shown between B and A: B is ahead by 1.0')
  assert 'interval -' in said
  assert said.endswith('over 4 seeds. That does not show that they are equal.')


@pytest.mark.parametrize(
  ('one', 'other', 'said'),
  [
    ((0.9, 0.8), (0.1, 0.2), 'a test takes 3 paired seeds, there is 2.'),
    ((0.9, 0.8, 0.7), (0.9, 0.8, 0.7), 'they are equal with each of 3 seeds.'),
    (
      (0.9, 0.8, 0.85),
      (0.8, 0.7, 0.75),
      'B is ahead by 10.0 points, p = 0.25 by the sign-flip test',
    ),
  ],
)
def test_nothing_is_shown_by_too_little(tmp_path, one, other, said):
  assert f'No difference shown between B and A: {said}' in verdicts(tmp_path, one, other)[0]


def test_several_comparisons_are_corrected(tmp_path):
  near = [accuracy - 0.001 * sign for accuracy, sign in zip(BETTER, (1, 3, -1, 2, 1, -1, 2),
                                                            strict=True)]  # fmt: skip
  sides, matches = compared(tmp_path, BETTER, near, WORSE)
  first, second = matches
  assert first.found.p is not None
  assert second.found.p is not None
  assert second.adjusted_p == 2 * second.found.p
  assert first.adjusted_p == first.found.p > second.adjusted_p
  form = report.make_form(ACCURACY, [side.summary for side in sides])
  said = report.verdict(second, ACCURACY, form, comparisons=2)
  assert 'over 7 seeds, corrected for 2 comparisons (<0.0001 before).' in said


def test_what_one_comparison_shows_two_may_not(tmp_path):
  points = (1, 3, -1, 2, 2, 1, 1)  # t = 2.71 with 6 degrees of freedom
  near = [round(x - 0.001 * d, 3) for x, d in zip(BETTER, points, strict=True)]
  (said,) = verdicts(tmp_path / 'one', BETTER, near)
  assert re.match(r'B is better than A by 0\.13 points .*, p = 0\.035 by the paired t-test', said)
  assert 'No difference shown' in verdicts(tmp_path / 'two', BETTER, near, near)[1]


def test_seeds_without_a_partner_are_named(tmp_path):
  sides, matches = compared(tmp_path, BETTER[:5], WORSE[:3])
  assert matches[0].seeds == [0, 1, 2]
  assert matches[0].alone == ['B: 3, 4']
  said = report.notes(ACCURACY, sides, matches)
  assert 'B and A: seeds without a partner are left out, B: 3, 4.' in said
  write(tmp_path / 'D', seed=99, accuracy=0.5)
  other = runs.side(f'D={tmp_path}/D', 'test/accuracy')
  assert 'B (seeds 0, 1, 2, 3, 4) and D (seeds 99) have no seed in common' in refused(
    report.match, sides[0].side, [other]
  )


def test_what_the_reader_is_warned_of(tmp_path):
  close = [accuracy + 0.001 * (seed % 2) for seed, accuracy in enumerate(BETTER)]
  sides, matches = compared(tmp_path, BETTER, close)
  # (0.919 * 0.081 / 1000)^(1/2) is the error of one accuracy.
  assert abs(sides[0].binomial_error - 0.00862) < 1e-5
  said = ' '.join(report.notes(ACCURACY, sides, matches))
  assert said.startswith('test/accuracy in %, higher is better')
  assert 'one accuracy of 1000 examples' in said
  assert 'interval (BCa) of 7 values is too narrow' in said
  assert 'differ by less than one binomial standard error' in said
  assert 'revisions' not in said
  assert 'No interval' not in said
  loss = report.make_metric('test/loss')
  assert report.measure(sides[0].side, loss).binomial_error is None
  write(tmp_path / 'other', examples=900, accuracy=0.5)
  (tmp_path / 'other' / 'environment.json').write_text('{"git": "97cdd33"}')
  other = runs.side(f'O={tmp_path}/other', 'test/accuracy')
  both = [sides[0], report.measure(other, ACCURACY)]
  said = ' '.join(report.notes(ACCURACY, both, report.match(sides[0].side, [other])))
  assert 'B and O were not tested on the same data: data.json test_examples differ.' in said
  assert 'different revisions of the code: 97cdd33, f96c9ed.' in said
  assert 'one accuracy of 900 or 1000 examples' in said
  assert 'No interval of fewer than 3 values' in said


def test_the_points_of_a_sweep(tmp_path):
  trials = tmp_path / 'trials'
  for number, rate in enumerate((0.1, 0.2, 0.4)):
    accuracies = [0.9 + rate / 10 + 0.002 * seed for seed in range(3)]
    write_seeds(trials / f'{number:04}', accuracies, changes={'optimizer.learning_rate': rate})
  write_seeds(trials / '0003', (0.99, 0.99))
  write_seeds(trials / '0004', (0.99, 0.99, 0.99), last=15)
  (trials / '0005').mkdir()
  points, left_out = runs.points(str(tmp_path), 'test/accuracy')
  assert left_out.pop('0003') == '2 of 3 seeds'
  assert 'not finished' in left_out.pop('0004')
  assert 'no config.json' in left_out.pop('0005')
  assert not left_out
  points = report.best_first(points, ACCURACY)
  assert [point.name for point in points] == ['0002', '0001', '0000']
  measured = [report.measure(point, ACCURACY) for point in points]
  table, *said = report.sweep_page(ACCURACY, measured, {'0003': ''})
  assert table.head[:4] == ('trial', 'optimizer.learning_rate', 'n', 'mean')
  assert [row[:4] for row in table.rows] == [
    ('0002', '0.4', '3', '94.20'), ('0001', '0.2', '3', '92.20'), ('0000', '0.1', '3', '91.20')
  ]  # fmt: skip
  assert said[0].startswith('The first of 3 points is chosen by these very figures')
  assert said[1].startswith('Left out, not finished or without all seeds: 0003.')
  points, left_out = runs.points(str(tmp_path), 'test/accuracy', unfinished=True)
  assert list(left_out) == ['0005']
  lowest = report.best_first(points, report.make_metric('test/accuracy', 'lower'))
  assert lowest[0].name == '0000'


def test_a_sweep_of_single_runs_and_none(tmp_path):
  write(tmp_path / 'trials' / '0000', accuracy=0.5)
  (point,), left_out = runs.points(str(tmp_path), 'test/accuracy')
  assert (point.name, point.values, left_out) == ('0000', {0: 0.5}, {})
  assert 'no trial has a figure: ' in refused(runs.points, str(tmp_path), 'test/none')
  assert 'holds no trials' in refused(runs.points, str(tmp_path / 'trials'), 'test/accuracy')


AWKWARD = [
  tables.Table(
    ('', 'mean', 'p_x'),
    [
      ('a|b*', '-0.50', '<0.0001'),
      (r'r_1\x ~^{}', '1.00 to -2.00', '3 & 4 %'),
      ('seed-1', '5', '-'),
    ],
  ),
  'One $ a_b is -0.5 & 100 % better.',
]


def test_text_is_parsed_back():
  first, second = tables.text(AWKWARD).split('\n\n')
  rows = [tuple(re.split(r' {2,}', line.strip())) for line in first.splitlines()]
  assert rows == [('mean', 'p_x'), *AWKWARD[0].rows]
  assert len({len(line) for line in first.splitlines()}) == 1
  assert second == AWKWARD[1]


def test_markdown_is_parsed_back():
  first, second = tables.markdown(AWKWARD).split('\n\n')
  unescape = lambda words: re.sub(r'\\(.)', r'\1', words)
  head, rule, *rows = [
    tuple(unescape(cell.strip()) for cell in re.split(r'(?<!\\)\|', line)[1:-1])
    for line in first.splitlines()
  ]
  assert rule == ('---', '---:', '---:')
  assert [head, *rows] == [AWKWARD[0].head, *AWKWARD[0].rows]
  assert unescape(second) == AWKWARD[1]


def test_latex_is_parsed_back():
  first, second = tables.latex(AWKWARD).split('\n\n')

  def unescape(words):
    for command, character in (('backslash', '\\'), ('asciitilde', '~'), ('asciicircum', '^')):
      words = words.replace(rf'\text{command}{{}}', character)
    return re.sub(r'\\([&%$#_{}])', r'\1', re.sub(r'(?<!\\)\$(.)\$', r'\1', words))

  lines = first.splitlines()
  assert lines[:2] == [r'\begin{tabular}{lrr}', r'\toprule']
  assert (lines[3], *lines[-2:]) == (r'\midrule', r'\bottomrule', r'\end{tabular}')
  assert all(line.endswith(r' \\') for line in (lines[2], *lines[4:-2]))
  rows = [
    tuple(map(unescape, re.split(r'(?<!\\) ?& ', line[:-3]))) for line in (lines[2], *lines[4:-2])
  ]
  assert rows == [AWKWARD[0].head, *AWKWARD[0].rows]
  assert r'1.00 to $-$2.00' in first
  assert 'seed-1' in first
  assert unescape(second) == AWKWARD[1]


def test_json_holds_the_figures_unrounded(tmp_path):
  sides, matches = compared(tmp_path, BETTER, WORSE)
  found = json.loads(json.dumps(report.as_json(ACCURACY, sides, matches)))
  one, other = found['sides']
  assert [run['value'] for run in one['runs']] == list(BETTER)
  assert [run['workdir'] for run in other['runs']] == [f'{tmp_path}/A/seed{i}' for i in range(7)]
  assert one['mean'] == sides[0].summary.mean
  (comparison,) = found['comparisons']
  assert comparison['permutation_p'] == comparison['least_p'] == 2 / 2**7
  assert comparison['difference']['n'] == 7
  assert comparison['verdict'].startswith('B is better than A')
  assert found['confidence'] == 0.95
  table = report.compare_page(ACCURACY, sides, matches)[0]
  assert isinstance(table, tables.Table)
  assert table.rows[0][:3] == ('B', '7', f'{100 * one["mean"]:.2f}')
  assert table.rows[2][0] == 'B - A'
