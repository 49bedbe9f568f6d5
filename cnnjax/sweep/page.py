"""What a sweep found as one HTML page, sweep.html, without network or script."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnjax import document
from cnnjax.document import escape
from cnnjax.sweep import plots
from cnnjax.sweep.space import Objective, Parameter, Space

if TYPE_CHECKING:
  from cnnjax.sweep.search import Trial

_STATES = ('complete', 'pruned', 'diverged', 'failed', 'running', 'waiting', 'retried')
_ENDED = _STATES[:4]
_MOST = 500  # rows of the table, and trials drawn over parameters
_STYLE = f"""
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; user-select: all; margin: .25rem 0 1rem;
  padding: .75rem; background: var(--band); border: 1px solid var(--line); font-size: .875rem }}
h3 {{ font-size: 1rem; margin: 1.25rem 0 .5rem }}
.half {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr));
  gap: 1rem; align-items: start }}
.scroll figure {{ padding: .5rem }}
{plots.STYLE}"""


class _Sweep(NamedTuple):
  """What all sections are made of.

  Attributes:
    space: what was searched.
    trials: every attempt, by slot and attempt.
    ranked: those that can be compared: complete, every objective finite; the best first.
    front: slot and attempt of the best one, or of those on the Pareto front.
    results: an axis for each objective, which holds the values of those ranked.
  """

  space: Space
  trials: 'Sequence[Trial]'
  ranked: 'Sequence[Trial]'
  front: set[tuple[int, int]]
  results: list[plots.Axis]


def render(
  space: Space,
  trials: 'Sequence[Trial]',
  importances: Mapping[str, float],
  pareto: 'Sequence[Trial]',
  *,
  title: str,
  commands: Mapping[str, str],
) -> str:
  """The page; a pure function. A sweep that still runs, or found nothing, has one too.

  Args:
    space: what was searched.
    trials: every attempt at every trial, by slot and attempt.
    importances: of parameters for the first objective; empty where too few trials are complete.
    pareto: the best trial; of several objectives, those that no other is better than in all.
    title: what the sweep is called.
    commands: what each is for, such as 'Best trial', to the command line, in order.
  """
  compared = [trial for trial in trials if trial.state == 'complete' and _finite(trial)]
  front = {_id(trial) for trial in pareto} & {_id(trial) for trial in compared}
  sign = -1 if space.objectives[0].direction == 'maximize' else 1
  compared.sort(key=lambda t: (_id(t) not in front, sign * _objectives(t)[0], _id(t)))
  results = [
    plots.of_objective(objective, [_objectives(trial)[i] for trial in compared])
    for i, objective in enumerate(space.objectives)
  ]
  sweep = _Sweep(space, trials, compared, front, results)
  sections = {
    'Summary': _summary(sweep, commands),
    'History': _history(sweep),
    'Parallel coordinates': _parallel(sweep),
    'Slices': _slices(sweep),
    'Importance': _importance(sweep, importances),
    'Pareto front': _fronts(sweep),
    'Trials': _trials(sweep),
  }
  if len(space.objectives) == 1:
    del sections['Pareto front']
  return document.page(title, sections, kind='sweep', style=_STYLE)


def _summary(sweep: _Sweep, commands: Mapping[str, str]) -> str:
  space, trials = sweep.space, sweep.trials
  figures = {}
  for i, objective in enumerate(space.objectives):
    values = [_objectives(trial)[i] for trial in sweep.ranked]
    figures[f'best {objective.name}'] = _number(_best(objective)(values)) if values else '-'
  if len(space.objectives) > 1:
    figures['on the Pareto front'] = str(len(sweep.front))
  last = {trial.slot: trial for trial in trials}  # attempt of each slot
  counts = {state: sum(t.state == state for t in last.values()) for state in _STATES}
  figures |= {state: str(count) for state, count in counts.items() if count}
  figures['complete'] = f'{counts["complete"]} of {len(last)}'
  if again := sum(trial.attempt > 0 for trial in trials):
    figures['taken up again'] = str(again)
  figures['seconds, summed over trials'] = f'{sum(_seconds(trial) or 0 for trial in trials):,.0f}'
  big = ''.join(f'<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in figures.items())
  lines = ''.join(
    f'<p>{escape(name)}</p>\n<pre tabindex="0">{escape(command)}</pre>\n'
    for name, command in commands.items()
  )
  rows = [
    *((key, _range(parameter)) for key, parameter in space.parameters.items()),
    *((key, f'always {plots.word(value)}') for key, value in space.fixed.items()),
    *((o.name, f'objective, {plots.better(o)}') for o in space.objectives),
    *((field, str(getattr(space, field))) for field in ('sampler', 'pruner', 'seeds')),
  ]
  return f'<dl class="big">{big}</dl>\n{lines}' + document.table(
    'What was searched', (), rows, words=True
  )


def _history(sweep: _Sweep) -> str:
  drawn = []
  if any(trial.state in _ENDED for trial in sweep.trials):
    drawn = [_progress(sweep, i) for i in range(len(sweep.space.objectives))]
  if any(trial.reports for trial in sweep.trials):
    drawn.append(_evaluations(sweep))
  return f'<div class="half">{"".join(drawn)}</div>' if drawn else '<p>No trial has ended.</p>'


def _progress(sweep: _Sweep, i: int) -> str:
  objective = sweep.space.objectives[i]
  ended = [trial for trial in sweep.trials if trial.state in _ENDED]
  ended.sort(key=lambda trial: (trial.finished or 0, _id(trial)))
  values: list[float | None] = []
  for trial in ended:
    last = trial.reports[max(trial.reports)] if trial.reports else None
    pruned = last if trial.state == 'pruned' and i == 0 else None
    values.append(_objectives(trial)[i] if trial.state == 'complete' else pruned)
  x = plots.numbers('trials, as they ended', (1, len(ended)), whole=True, margin=0.03)
  y = plots.of_objective(objective, values)
  points: list[plots.Point] = []
  line: list[tuple[float, float]] = []
  for n, (trial, value) in enumerate(zip(ended, values, strict=True), 1):
    left, up = x.place(n) or 0.0, y.place(value)
    told = {} if value is None else {objective.name: value}
    at = _worst(objective) if up is None else up
    points.append(plots.Point(_kind(sweep, trial), left, at, _about(trial, told)))
    line += [(left, best) for _, best in line[-1:]]
    if trial.state == 'complete' and up is not None:
      best = _best(objective)([up, *(best for _, best in line[-1:])])
      line += [(left, best)] if (left, best) not in line[-1:] else []
  caption = f'{objective.name} of each trial; the line is the best so far.'
  if i == 0:
    caption += ' Pruned trials stand at their last report.'
  if any(y.place(value) is None for value in values):
    edge = 'lower' if _worst(objective) == 0 else 'upper'
    caption += f' What has no finite value stands at the {edge} edge.'
  return document.figure(plots.scatter(x, y, points, line=line, legend=True), caption)


def _evaluations(sweep: _Sweep) -> str:
  last = {trial.slot: trial for trial in sweep.trials}
  reports: dict[int, dict[int, float]] = {}
  for trial in sweep.trials:  # what an attempt reported still holds for the next, which goes on
    reports[trial.slot] = {**reports.get(trial.slot, {}), **trial.reports}
  name = sweep.space.objectives[0].name
  values = [value for found in reports.values() for value in found.values()]
  most = max(n for found in reports.values() for n in found)
  x = plots.numbers('evaluation', (1, most), whole=True, margin=0.03)
  y = plots.of_objective(sweep.space.objectives[0], values)
  lines = [(_kind(sweep, t), reports[slot], _about(t)) for slot, t in sorted(last.items())]
  return document.figure(
    plots.curves(x, y, lines),
    f'{name} at each evaluation. Dashed: trials that were ended early, up to their mark, and those'
    ' that run.',
  )


def _parallel(sweep: _Sweep) -> str:
  space, shown = sweep.space, sweep.ranked[:_MOST]
  compared = {_id(trial) for trial in sweep.ranked}
  others = [
    trial for trial in sweep.trials
    if trial.state in _ENDED and trial.values and _id(trial) not in compared
  ][:_MOST]  # fmt: skip
  if not shown and not others:
    return '<p>No trial has ended.</p>'
  parameters = {k: _axis(k, p, [*shown, *others]) for k, p in space.parameters.items()}

  def line(trial: 'Trial', rank: float | None) -> plots.Line:
    values = dict(trial.values)
    places = [axis.place(values[k]) if k in values else None for k, axis in parameters.items()]
    if rank is not None:
      for axis, objective, value in zip(
        sweep.results, space.objectives, _objectives(trial), strict=True
      ):
        places.append(axis.place(value))
        values[objective.name] = value
    return plots.Line(places, rank, _id(trial) in sweep.front, _about(trial, values))

  first = space.objectives[0]
  rising = sorted(
    shown, key=lambda trial: _objectives(trial)[0], reverse=first.direction == 'minimize'
  )
  ranks = {_id(trial): n / max(len(shown) - 1, 1) for n, trial in enumerate(rising)}
  lines = [line(trial, None) for trial in others]
  lines += [line(trial, ranks[_id(trial)]) for trial in reversed(shown)]
  heads = [(*_split(key), axis) for key, axis in parameters.items()] + [
    (o.name, plots.better(o), axis) for o, axis in zip(space.objectives, sweep.results, strict=True)
  ]
  best = 'the best' if len(space.objectives) == 1 else 'those on the Pareto front'
  caption = (
    f'Each line is a trial, from blue, the worst, to orange, the best, by the rank of'
    f' {first.name}; thick: {best}. Dashed: trials that were ended early.'
    f'{_left_out(sweep)}'
  )
  picture = document.figure(plots.parallel(heads, lines), caption)
  label = 'Parallel coordinates, which scroll sideways'
  return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{picture}</div>\n'


def _slices(sweep: _Sweep) -> str:
  if not sweep.ranked:
    return '<p>No trial is complete.</p>'
  text = f'<p>{_left_out(sweep).strip()}</p>\n' if _left_out(sweep) else ''
  for i, objective in enumerate(sweep.space.objectives):
    if len(sweep.space.objectives) > 1:
      text += f'<h3>{escape(objective.name)}</h3>\n'
    drawn = ''.join(_slice(sweep, i, key) for key in sweep.space.parameters)
    text += f'<div class="row">{drawn}</div>\n'
  return text


def _slice(sweep: _Sweep, i: int, key: str) -> str:
  """An objective over one parameter."""
  shown, name = sweep.ranked[:_MOST], sweep.space.objectives[i].name
  x, points = _axis(key, sweep.space.parameters[key], shown), []
  for trial in shown:
    left = x.place(trial.values[key]) if key in trial.values else None
    if left is not None:
      value = _objectives(trial)[i]
      told = _about(trial, {key: trial.values[key], name: value})
      up = sweep.results[i].place(value) or 0.0
      points.append(plots.Point(_kind(sweep, trial), left, up, told))
  caption = f'{name} by {key}.'
  if len(points) < len(shown):
    caption += f' Not used by {len(shown) - len(points)} of {len(shown)} trials.'
  return document.figure(plots.scatter(x, sweep.results[i], points), caption)


def _importance(sweep: _Sweep, importances: Mapping[str, float]) -> str:
  shares = {key: share for key, share in importances.items() if plots.is_number(share)}
  if not shares:
    return (
      f'<p>Complete trials are too few, {len(sweep.ranked)}, or too alike to tell how much each'
      ' parameter matters.</p>'
    )
  caption = (
    f'How much each parameter matters to {sweep.space.objectives[0].name}: shares, estimated from'
    f' {len(sweep.ranked)} complete trials.'
  )
  if missing := [key for key in sweep.space.parameters if key not in shares]:
    caption += f' Not estimated: {", ".join(missing)}.'
  return f'<div class="row">{document.figure(plots.bars(shares), caption)}</div>'


def _fronts(sweep: _Sweep) -> str:
  objectives = sweep.space.objectives
  if not sweep.ranked:
    return '<p>No trial is complete.</p>'
  axes, drawn = sweep.results, ''
  for i, j in itertools.combinations(range(len(objectives)), 2):
    names = objectives[i].name, objectives[j].name
    points, front = [], []
    for trial in sweep.ranked:
      found = _objectives(trial)[i], _objectives(trial)[j]
      x, y = axes[i].place(found[0]) or 0.0, axes[j].place(found[1]) or 0.0
      told = _about(trial, dict(zip(names, found, strict=True)))
      points.append(plots.Point(_kind(sweep, trial), x, y, told))
      front += [(x, y)] if _id(trial) in sweep.front else []
    caption = f'{names[0]} and {names[1]} of the complete trials; orange: the Pareto front.'
    line = _staircase(front, objectives[i], objectives[j]) if len(objectives) == 2 else []
    drawn += document.figure(plots.scatter(axes[i], axes[j], points, line=line), caption)
  return f'<div class="half">{drawn}</div>'


def _staircase(
  front: list[tuple[float, float]], across: Objective, upward: Objective
) -> list[tuple[float, float]]:
  """The edge of what some trial of the front is at least as good as in both objectives."""
  if not front:
    return []
  front = sorted(front, reverse=across.direction == 'minimize')  # to the better, and upward worse
  edge = [(_worst(across), front[0][1])]
  for (x, y), (_, following) in zip(front, [*front[1:], (0.0, _worst(upward))], strict=True):
    edge += [(x, y), (x, following)]
  return edge


def _trials(sweep: _Sweep) -> str:
  place = {_id(trial): n for n, trial in enumerate(sweep.ranked)}
  rest = len(place)
  order = sorted(
    sweep.trials, key=lambda t: (place.get(_id(t), rest), _STATES.index(t.state), _id(t))
  )
  names = [objective.name for objective in sweep.space.objectives]
  rows = [
    (
      _name(trial),
      trial.state,
      *(map(_number, trial.objectives or [None] * len(names))),
      *(plots.word(trial.values[k]) if k in trial.values else '' for k in sweep.space.parameters),
      _number(_seconds(trial), 1),
      document.plain(trial.reason, 120),
    )
    for trial in order[:_MOST]
  ]
  caption = 'Every attempt, the best first'
  if len(order) > _MOST:
    caption += f'; {_MOST} of {len(order):,} rows'
  head = ('trial', 'state', *names, *sweep.space.parameters, 'seconds', 'why it ended')
  return document.table(caption, head, rows)


def _axis(key: str, parameter: Parameter, trials: 'Iterable[Trial]') -> plots.Axis:
  return plots.of_parameter(key, parameter, [t.values[key] for t in trials if key in t.values])


def _id(trial: 'Trial') -> tuple[int, int]:
  return trial.slot, trial.attempt


def _name(trial: 'Trial') -> str:
  return f'{trial.slot:04d}' + (f', attempt {trial.attempt + 1}' if trial.attempt else '')


def _about(trial: 'Trial', told: Mapping[str, Any] | None = None) -> str:
  """A trial in words, with some of its figures."""
  state = '' if trial.state == 'complete' else f', {trial.state}'
  figures = ', '.join(f'{key} {plots.word(value)}' for key, value in (told or {}).items())
  return f'trial {_name(trial)}{state}{figures and ": "}{figures}'


def _kind(sweep: _Sweep, trial: 'Trial') -> str:
  """The mark of a trial. One that is complete with a NaN diverged, whoever noticed it."""
  if _id(trial) in sweep.front:
    return 'best'
  return 'diverged' if trial.state == 'complete' and not _finite(trial) else trial.state


def _objectives(trial: 'Trial') -> tuple[float, ...]:
  assert trial.objectives is not None  # of a complete trial
  return trial.objectives


def _finite(trial: 'Trial') -> bool:
  return all(map(plots.is_number, _objectives(trial)))


def _best(objective: Objective) -> Any:
  return max if objective.direction == 'maximize' else min


def _worst(objective: Objective) -> float:
  """The end of its axis that is worse than all values."""
  return 0.0 if objective.direction == 'maximize' else 1.0


def _seconds(trial: 'Trial') -> float | None:
  if trial.started is None or trial.finished is None:
    return None
  return trial.finished - trial.started


def _split(key: str) -> tuple[str, str]:
  """The groups of a config key, and its own name."""
  group, dot, name = key.rpartition('.')
  return group + dot, name


def _range(parameter: Parameter) -> str:
  """How a parameter varies, in words."""
  if parameter.values:
    text = f'{parameter.kind}: {", ".join(map(plots.word, parameter.values))}'
  else:
    log = ', logarithmic' if parameter.log or parameter.kind == 'log_uniform' else ''
    kind = 'integer, ' if parameter.kind == 'integer' else ''
    text = f'{kind}{plots.word(parameter.low)} to {plots.word(parameter.high)}{log}'
  conditions = (f'{k} is {" or ".join(map(plots.word, v))}' for k, v in parameter.when.items())
  return text + ''.join(f', where {condition}' for condition in conditions)


def _left_out(sweep: _Sweep) -> str:
  number = len(sweep.ranked)
  return f' The best {_MOST} of {number:,} complete trials are drawn.' if number > _MOST else ''


def _number(value: float | None, digits: int | None = None) -> str:
  if value is None:
    return ''
  if digits is not None:
    return f'{value:,.{digits}f}'
  whole = plots.is_number(value) and value == int(value) and abs(value) < 1e15
  return f'{value:,.0f}' if whole else f'{value:.6g}'
