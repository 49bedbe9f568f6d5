"""Command line: what the seeds of finished runs show, as a table for a paper.

  python -m cnnjax.sweep.report --runs='runs/b/seed*' [--against='runs/a/seed*' ...]
  python -m cnnjax.sweep.report --sweep=DIR
      [--metric=test/accuracy] [--better=higher|lower] [--unfinished]
      [--format=text|markdown|latex|json]

A side is a pattern of the workdirs of one config, a seed each; 'NAME=PATTERN' gives it a name.
Exit status: 0 done; 2 a mistake, told in one line.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from cnnjax import cli
from cnnjax.errors import UserError
from cnnjax.sweep import runs, statistics, tables
from cnnjax.sweep.runs import Side
from cnnjax.sweep.statistics import Comparison, Summary
from cnnjax.sweep.tables import Page, Table

_RUNS = flags.DEFINE_string('runs', None, 'A pattern of workdirs that differ in the seed alone.')
_AGAINST = flags.DEFINE_multi_string(
  'against', [], 'What to compare them with, seed by seed; may be given several times.'
)
_SWEEP = flags.DEFINE_string('sweep', None, "A sweep's workdir: its points, the best first.")
_METRIC = flags.DEFINE_string('metric', 'test/accuracy', 'SPLIT/NAME of metrics.jsonl.')
_BETTER = flags.DEFINE_enum(
  'better', None, ['higher', 'lower'], 'Which values are; if not given, the name of --metric tells.'
)
_UNFINISHED = flags.DEFINE_bool('unfinished', False, 'Count what runs have that are not finished.')
_FORMAT = flags.DEFINE_enum('format', 'text', ['text', 'markdown', 'latex', 'json'], 'To print.')

_FIGURES = ('n', 'mean', 'std', 's.e.', 'min', 'max', '95% t', '95% BCa', 'binomial')
_ENOUGH = 20  # runs from which on the bootstrap interval covers nearly what it says

Form = Callable[[float | None], str]


class Metric(NamedTuple):
  """What is reported.

  Attributes:
    name: 'SPLIT/NAME'.
    higher: whether higher values are better.
    percent: a fraction, shown in per cent.
  """

  name: str
  higher: bool
  percent: bool


class Measured(NamedTuple):
  """A side and its statistics.

  Attributes:
    side: the runs.
    summary: of their figures.
    binomial_error: the standard error that the size of the test set leaves in one run's accuracy;
      None for other metrics.
  """

  side: Side
  summary: Summary
  binomial_error: float | None


class Match(NamedTuple):
  """Two sides compared.

  Attributes:
    one, other: the sides; differences are `one - other`.
    seeds: those that both have.
    alone: 'NAME: SEEDS' of a side's seeds that the other one lacks.
    found: by `statistics.compare`.
    adjusted_p: its p after Holm's correction for all comparisons of the report.
    adjusted_permutation_p: likewise.
  """

  one: Side
  other: Side
  seeds: list[int]
  alone: list[str]
  found: Comparison
  adjusted_p: float
  adjusted_permutation_p: float


def make_metric(name: str, better: str | None = None) -> Metric:
  """What a metric's name tells; `better`, 'higher' or 'lower', goes before it."""
  lower = better == 'lower' if better else name.endswith(('loss', 'error', 'seconds'))
  return Metric(name, not lower, name.endswith(('accuracy', 'calibration_error')))


def measure(side: Side, metric: Metric) -> Measured:
  """A side's statistics."""
  summary, n = statistics.summarize(list(side.values.values())), side.runs[0].test_examples
  share = metric.name.endswith('accuracy') and not metric.name.startswith('train/')
  error = statistics.binomial_error(summary.mean, n) if share and n else None
  return Measured(side, summary, error)


def best_first(points: Iterable[Side], metric: Metric) -> list[Side]:
  """The points by their mean; equal ones stay in their order."""
  sign = -1 if metric.higher else 1  # fmean: of the same values in any order the same
  return sorted(points, key=lambda point: sign * fmean(point.values.values()))


def match(one: Side, others: Sequence[Side]) -> list[Match]:
  """Compares a side with each of the others on the seeds that both have.

  Raises:
    UserError: there is none.
  """
  matches = []
  for other in others:
    a, b = one.values, other.values
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
      raise UserError(
        f'{one.name} (seeds {_list(a)}) and {other.name} (seeds {_list(b)}) have no seed in common:'
        ' runs are compared seed by seed'
      )
    rest = ((one.name, a.keys() - b.keys()), (other.name, b.keys() - a.keys()))
    alone = [f'{name}: {_list(sorted(left))}' for name, left in rest if left]
    found = statistics.compare([a[seed] for seed in seeds], [b[seed] for seed in seeds])
    matches.append(Match(one, other, seeds, alone, found, 1.0, 1.0))
  # A comparison that is too small for a test counts among the corrected ones all the same.
  found = [(m.found.p, m.found.permutation_p) for m in matches]
  adjusted = [
    statistics.holm([1.0 if p is None else p for p in ps]) for ps in zip(*found, strict=True)
  ]
  return [
    m._replace(adjusted_p=p, adjusted_permutation_p=permutation_p)
    for m, p, permutation_p in zip(matches, *adjusted, strict=True)
  ]


def verdict(m: Match, metric: Metric, form: Form, *, comparisons: int = 1) -> str:
  """What a comparison shows, in words no stronger than its test.

  Args:
    m: the comparison.
    metric: what was measured.
    form: writes a figure.
    comparisons: how many the report has.
  """
  d, p, n = m.found.difference, m.found.p, len(m.seeds)
  none = f'No difference shown between {m.one.name} and {m.other.name}'
  if p is None:
    return f'{none}: a test takes {statistics.FEWEST} paired seeds, there is {n}.'
  if d.min == d.max == 0:
    return f'{none}: they are equal with each of {n} seeds.'
  first = (d.mean > 0) == metric.higher
  better, worse = (m.one.name, m.other.name)[:: 1 if first else -1]
  size = f'{form(abs(d.mean))}{" points" if metric.percent else ""}'
  if d.t_interval:
    low, high = sorted(math.copysign(1, d.mean) * bound for bound in d.t_interval)
    size += f' (95% interval {form(low)} to {form(high)})'
  test = 'sign-flip test' if m.found.t_p is None else 'paired t-test'
  shown = f'p = {_p(m.adjusted_p)} by the {test} over {n} seeds'
  if comparisons > 1:
    shown += f', corrected for {comparisons} comparisons ({_p(p)} before)'
  if m.adjusted_p > statistics.ALPHA:
    return f'{none}: {better} is ahead by {size}, {shown}. That does not show that they are equal.'
  words = f'{better} is better than {worse} by {size}, {shown}.'
  if m.adjusted_permutation_p > statistics.ALPHA:
    least = f', the least that {n} seeds allow' if m.found.permutation_p == m.found.least_p else ''
    words += (
      ' This holds if differences are normal: the permutation test, which does not ask for that,'
      f' has p = {_p(m.adjusted_permutation_p)}{least}.'
    )
  return words


def notes(metric: Metric, sides: Sequence[Measured], matches: Sequence[Match]) -> list[str]:
  """What a reader of the figures must know besides."""
  unit = ' in %' if metric.percent else ''
  said = [
    f'{metric.name}{unit}, {"higher" if metric.higher else "lower"} is better, the newest of each'
    ' run. Intervals are of the mean over seeds, each by itself, on this test set.'
  ]
  sizes = sorted({s.side.runs[0].test_examples or 0 for s in sides if s.binomial_error is not None})
  if sizes:
    said.append(
      f'Binomial: the standard error of one accuracy of {" or ".join(map(str, sizes))} examples, as'
      ' another test set would give another; the spread over seeds leaves it out.'
    )
  summaries = [s.summary for s in sides] + [m.found.difference for m in matches]
  if not all(s.t_interval for s in summaries):
    said.append(
      f'No interval of fewer than {statistics.FEWEST} values, whose spread says too little, or of'
      ' values that are all the same.'
    )
  if few := [s.n for s in summaries if s.bca_interval and s.n < _ENOUGH]:
    said.append(
      f'The bootstrap interval (BCa) of {min(few)} values is too narrow: trust the t interval.'
    )
  for m in matches:
    between = f'{m.one.name} and {m.other.name}'
    if m.alone:
      said.append(f'{between}: seeds without a partner are left out, {"; ".join(m.alone)}.')
    other_data = [k for k in runs.differing(m.one.runs[0], m.other.runs[0]) if k in runs.TEST_SET]
    if other_data:
      said.append(f'{between} were not tested on the same data: {_list(other_data)} differ.')
    error = sides[0].binomial_error
    if error and 0 < abs(m.found.difference.mean) < error:
      said.append(
        f'{between} differ by less than one binomial standard error: with another test set it may'
        ' be otherwise.'
      )
  every = [run for s in sides for run in s.side.runs]
  if early := [f'{run.directory} (step {run.step})' for run in every if not run.finished]:
    said.append(f'Counted though not finished: {_list(early)}.')
  revisions = sorted({run.revision or 'unknown' for run in every})
  if len(revisions) > 1:
    said.append(f'The runs are of different revisions of the code: {_list(revisions)}.')
  return said


def compare_page(metric: Metric, sides: Sequence[Measured], matches: Sequence[Match]) -> Page:
  """The report on sides and their comparisons."""
  form = make_form(metric, [s.summary for s in sides] + [m.found.difference for m in matches])
  rows = [(s.side.name, *_figures(s.summary, form), form(s.binomial_error)) for s in sides]
  tests = []
  for m in matches:
    name, f = f'{m.one.name} - {m.other.name}', m.found
    rows.append((name, *_figures(f.difference, form), '-'))
    holm = None if f.p is None else m.adjusted_p
    ps = (f.t_p, f.permutation_p, f.least_p, f.wilcoxon_p, holm)
    tests.append((name, *map(_p, ps), '-' if f.effect is None else f'{f.effect:.2f}'))
  page = [Table(('', *_FIGURES), rows)]
  if not matches:
    return [*page, *notes(metric, sides, matches)]
  head = ('p, two-sided', 'paired t', 'permutation', 'its least', 'Wilcoxon', 'Holm', 'd_z')
  verdicts = [verdict(m, metric, form, comparisons=len(matches)) for m in matches]
  return [*page, Table(head, tests), *verdicts, *notes(metric, sides, matches)]


def sweep_page(metric: Metric, points: Sequence[Measured], left_out: Mapping[str, str]) -> Page:
  """The report on a sweep's points, in their order."""
  form = make_form(metric, [point.summary for point in points])
  settings = [point.side.runs[0] for point in points]
  keys = sorted({key for run in settings for key in runs.differing(settings[0], run)})
  keys = [key for key in keys if not key.startswith('data.json ')]
  rows = [
    (
      point.side.name,
      *(_value(run.setting.get(key)) for key in keys),
      *_figures(point.summary, form),
      form(point.binomial_error),
    )
    for point, run in zip(points, settings, strict=True)
  ]
  page: list[Table | str] = [Table(('trial', *keys, *_FIGURES), rows)]
  if len(points) > 1:
    page.append(
      f'The first of {len(points)} points is chosen by these very figures, so its mean is too good:'
      ' report what other seeds give.'
    )
  if left_out:
    page.append(f'Left out, not finished or without all seeds: {_list(left_out)}.')
  return [*page, *notes(metric, points, [])]


def make_form(metric: Metric, summaries: Sequence[Summary]) -> Form:
  """Writes figures with two digits of the median standard deviation."""
  scale = 100 if metric.percent else 1
  spreads = [s.std * scale for s in summaries if s.std]
  digits = 4 - 2 * metric.percent
  if spreads:
    digits = min(max(1 - math.floor(math.log10(np.median(spreads))), 0), 8)
  return lambda x: '-' if x is None else f'{x * scale:z.{digits}f}'


def as_json(metric: Metric, sides: Sequence[Measured], matches: Sequence[Match]) -> dict[str, Any]:
  """The report as JSON has it: figures as they were written, nothing rounded."""
  form = make_form(metric, [s.summary for s in sides] + [m.found.difference for m in matches])
  keys = ('seed', 'step', 'finished', 'value')
  return {
    'metric': metric.name,
    'better': 'higher' if metric.higher else 'lower',
    'confidence': 1 - statistics.ALPHA,
    'sides': [
      {
        'name': s.side.name,
        **s.summary._asdict(),
        'binomial_error': s.binomial_error,
        'runs': [
          {'workdir': run.directory, **{key: getattr(run, key) for key in keys}}
          for run in s.side.runs
        ],
      }
      for s in sides
    ],
    'comparisons': [
      {
        'one': m.one.name,
        'other': m.other.name,
        'seeds': m.seeds,
        'alone': m.alone,
        **m.found._asdict(),
        'difference': m.found.difference._asdict(),
        'adjusted_p': m.adjusted_p,
        'adjusted_permutation_p': m.adjusted_permutation_p,
        'verdict': verdict(m, metric, form, comparisons=len(matches)),
      }
      for m in matches
    ],
    'notes': notes(metric, sides, matches),
  }


def _figures(summary: Summary, form: Form) -> tuple[str, ...]:
  n, *figures, t, bca = summary
  intervals = (' to '.join(map(form, interval)) if interval else '-' for interval in (t, bca))
  return str(n), *map(form, figures), *intervals


def _p(p: float | None) -> str:
  return '-' if p is None else '<0.0001' if p < 1e-4 else f'{p:.2g}'


def _value(value: Any) -> str:
  return f'{value:.4g}' if isinstance(value, float) else str(value) or '-'


def _list(things: Iterable[Any]) -> str:
  return ', '.join(map(str, things))


def main() -> None:
  """Prints the report that the flags ask for."""
  if (_RUNS.value is None) == (_SWEEP.value is None) or (_AGAINST.value and _SWEEP.value):
    raise UserError('--runs=PATTERN, perhaps with --against=PATTERN, or --sweep=DIR must be given')
  metric = make_metric(_METRIC.value, _BETTER.value)
  matches, left_out = [], {}
  if _SWEEP.value is not None:
    points, left_out = runs.points(_SWEEP.value, metric.name, unfinished=_UNFINISHED.value)
    sides = [measure(point, metric) for point in best_first(points, metric)]
    page = sweep_page(metric, sides, left_out)
  else:
    given = [('--runs', _RUNS.value), *(('--against', text) for text in _AGAINST.value)]
    one, *others = [
      runs.side(text, metric.name, flag=flag, unfinished=_UNFINISHED.value) for flag, text in given
    ]
    sides, matches = [measure(side, metric) for side in (one, *others)], match(one, others)
    page = compare_page(metric, sides, matches)
  if _FORMAT.value == 'json':
    print(json.dumps({**as_json(metric, sides, matches), 'left_out': left_out}, indent=2))
  else:
    print(getattr(tables, _FORMAT.value)(page))


if __name__ == '__main__':
  cli.run(main)
