"""The pictures of a sweep's page: SVG written by hand, in the ink of the page around it.

Text stays text and every mark has a tooltip. Blue, orange and the ink, each at least 3 : 1 against
white and near-black, and shapes besides, are told apart by those too who see no red or green.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cnnjax.document import escape, plain
from cnnjax.sweep.space import Objective, Parameter

_BLUE, _ORANGE = (0x2F, 0x80, 0xC8), (0xD9, 0x68, 0x1D)
_MARKS = {  # what a trial became -> the shape that stands for it
  'complete': 'M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0',
  'best': 'M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0',
  'pruned': 'M-4-3h8l-4 7z',
  'diverged': 'M-4-4l8 8m0-8l-8 8',
  'failed': 'M-3.5-3.5h7v7h-7z',
}
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 50, 320, 30, 190  # of a plot, and of its frame in it
_STEP, _SCALE, _HEAD, _UNUSED = 118, 210, 48, 292  # parallel axes: apart, long; where they begin
_LETTER = 6.2  # width of one, about
_TICKS = 16  # categories named at most
_HUGE = 1e100
STYLE = f"""
.plot text {{ font-size: 11px; fill: currentColor }}
.plot path {{ fill: none; stroke: currentColor }}
.plot .grid {{ stroke-opacity: .15 }}
.plot .complete, .plot .bar {{ fill: rgb{_BLUE}; stroke: none }}
.plot .complete {{ fill-opacity: .9 }}
.plot .best {{ fill: rgb{_ORANGE} }}
.plot .line {{ fill: none; stroke-width: 1.2; stroke-opacity: .6 }}
.plot .line.complete {{ stroke: rgb{_BLUE} }}
.plot .line.best {{ stroke: rgb{_ORANGE}; stroke-width: 2.5; stroke-opacity: 1 }}
.plot .line.open {{ stroke-dasharray: 3 2; stroke-opacity: .4 }}
.plot .line.under {{ stroke-width: 5; stroke-opacity: 1 }}
.plot .over {{ paint-order: stroke; stroke: var(--page); stroke-width: 3px }}
"""


class Axis(NamedTuple):
  """Where values go on a line from 0 to 1.

  Attributes:
    name: what the values are.
    place: a value's; None if it has none: NaN, infinity, a category that isn't there.
    ticks: places, and what is written at them.
  """

  name: str
  place: Callable[[Any], float | None]
  ticks: list[tuple[float, str]]


class Point(NamedTuple):
  """A mark of a kind of _MARKS at a place of each axis."""

  kind: str
  x: float
  y: float
  title: str


class Line(NamedTuple):
  """A trial across parallel axes.

  Attributes:
    places: on the axes from the left; None where it doesn't use one; it ends with the list.
    rank: from 0, the worst, to 1, the best; None for one that wasn't completed.
    best: whether to emphasise it.
    title: of its tooltip.
  """

  places: Sequence[float | None]
  rank: float | None
  best: bool
  title: str


def is_number(value: Any) -> bool:
  """Whether it can be drawn: finite, and not so large that sums with it aren't."""
  return isinstance(value, int | float) and abs(value) < _HUGE


def word(value: Any) -> str:
  """A value as it is written on the page."""
  if isinstance(value, str):
    return value
  return f'{value:.6g}' if isinstance(value, float) else json.dumps(value, default=str)


def of_parameter(key: str, parameter: Parameter, values: Iterable[Any]) -> Axis:
  """All of a parameter's range or choices, whatever part of it the `values` took."""
  if parameter.values:
    return categories(key, parameter.values)
  log = parameter.kind == 'log_uniform' or parameter.log
  every = (parameter.low, parameter.high, *values)
  return numbers(key, every, log=log, whole=parameter.kind == 'integer', margin=0.03)


def of_objective(objective: Objective, values: Sequence[Any]) -> Axis:
  """Logarithmic if less is better and values are far apart, as losses and costs are."""
  low = objective.direction == 'minimize'
  found = [value for value in values if is_number(value)]
  log = low and bool(found) and 1 / _HUGE < 100 * min(found) < max(found)
  return numbers(f'{objective.name}, {better(objective)}', found, log=log, margin=0.05)


def better(objective: Objective) -> str:
  """The direction in words."""
  return 'higher is better' if objective.direction == 'maximize' else 'lower is better'


def numbers(
  name: str, values: Iterable[Any], *, log: bool = False, whole: bool = False, margin: float = 0.0
) -> Axis:
  """An axis that holds all finite ones of the values, with ticks at round numbers.

  Args:
    name: what they are.
    values: numbers; what is none is passed over.
    log: equal ratios are equally long; 0 and less has no place.
    whole: no ticks between integers.
    margin: free at both ends, in parts of what the values span.
  """
  drawn = lambda value: is_number(value) and (value > 1 / _HUGE or not log)
  scale = math.log10 if log else float
  found = [scale(value) for value in values if drawn(value)]
  low, high = (min(found), max(found)) if found else (0.0, 1.0)
  if high - low <= max(1e-9 * max(abs(low), abs(high)), 1 / _HUGE):  # a constant: in the middle
    half = max(abs(low), abs(high)) / 10
    half = half if half > 1 / _HUGE else 1.0
    low, high = low - half, high + half
  low, high = low - margin * (high - low), high + margin * (high - low)
  place = lambda value: (scale(value) - low) / (high - low) if drawn(value) else None
  rounds = _rounds(low, high, log=log, whole=whole)
  texts = [f'{value:.6g}' for value in rounds]
  if len(set(texts)) < len(texts):
    texts = [f'{value:.12g}' for value in rounds]
  return Axis(name, place, [(place(v) or 0.0, text) for v, text in zip(rounds, texts, strict=True)])


def _rounds(low: float, high: float, *, log: bool, whole: bool) -> list[float]:
  """A few round numbers, seven at most; with `log`, the ends are logarithms, the numbers aren't."""
  if log:
    for digits in ((1,), (1, 2, 5)):
      every = [d * 10.0**k for k in range(math.floor(low), math.floor(high) + 1) for d in digits]
      found = [value for value in every if low <= math.log10(value) <= high]
      if len(found) > 2:
        return found[:: -(-len(found) // 6)]
    low, high = 10**low, 10**high
  step = 10.0 ** math.floor(math.log10((high - low) / 5))
  step *= next(m for m in (1, 2, 5, 10) if 5 * m * step >= high - low or m == 10)
  step = max(step, 1.0) if whole else step
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [k * step for k in range(first, last + 1)]


def categories(name: str, values: Sequence[Any]) -> Axis:
  """An axis of values at equal distances, in their order."""
  text = lambda value: json.dumps(value, default=str)  # which tells 1 from '1' and from True
  places = {text(value): (i + 0.5) / len(values) for i, value in enumerate(values)}
  named = values[:: -(-len(values) // _TICKS)]
  ticks = [(places[text(value)], plain(word(value), 18)) for value in named]
  return Axis(name, lambda value: places.get(text(value)), ticks)


def scatter(
  x: Axis,
  y: Axis,
  points: Iterable[Point],
  *,
  line: Sequence[tuple[float, float]] = (),
  legend: bool = False,
) -> str:
  """Marks at places of two axes, the best above the others, over a line through other places.

  Args:
    x: from the left to the right.
    y: from the bottom to the top.
    points: where they are, as places on these axes.
    line: vertices, as places.
    legend: whether the kinds of marks are named.
  """
  points = sorted(points, key=lambda point: point.kind == 'best')
  marks = f'<path class="line best" d="{_path(line)}"/>' if line else ''
  marks += ''.join(_mark(p.kind, _x(p.x), _y(p.y), p.title) for p in points)
  return _plot(x, y, marks, {point.kind for point in points} if legend else set())


def curves(x: Axis, y: Axis, lines: Iterable[tuple[str, Mapping[int, float], str]]) -> str:
  """Values over evaluations, the best trials' above the others'.

  Args:
    x: evaluations.
    y: values.
    lines: of each trial its kind (of _MARKS, or another), values by evaluation, and its tooltip.
      One that was ended early ends with its mark.
  """
  drawn, kinds = '', set()
  for kind, values, title in sorted(lines, key=lambda line: line[0] == 'best'):
    places = [(x.place(n), y.place(value)) for n, value in sorted(values.items())]
    places = [(left, up) for left, up in places if left is not None and up is not None]
    if not places:
      continue
    name = kind if kind in ('complete', 'best') else 'open'
    drawn += f'<path class="line {name}" d="{_path(places)}">{_title(title)}</path>'
    if kind in _MARKS and (name == 'open' or len(places) == 1):
      drawn += _mark(kind, _x(places[-1][0]), _y(places[-1][1]), title)
    kinds.add(kind)
  return _plot(x, y, drawn, kinds)


def parallel(axes: Sequence[tuple[str, str, Axis]], lines: Sequence[Line]) -> str:
  """Each trial as a line across upright axes, from blue for the worst to orange for the best.

  Args:
    axes: two lines of a heading, and the axis.
    lines: the ones to be seen best come last.
  """
  left = lambda i: 12 + _STEP * i
  height = lambda place: _UNUSED if place is None else _HEAD + _SCALE * (1 - place)
  drawn = ''
  for line in lines:
    path = 'M' + 'L'.join(f'{left(i)} {height(p):.1f}' for i, p in enumerate(line.places))
    if line.best:
      drawn += f'<path class="line under" d="{path}"/>'
    style, name = '', 'open'
    if line.rank is not None:
      style, name = f' style="stroke:rgb{_between(line.rank)}"', 'best' if line.best else 'shade'
    drawn += f'<path class="line {name}"{style} d="{path}">{_title(line.title)}</path>'
  for i, (first, second, axis) in enumerate(axes):
    drawn += f'<path class="axis" d="M{left(i)} {_HEAD}v{_SCALE}"/>'
    ticks = [(height(place), text) for place, text in axis.ticks]
    if any(i < len(line.places) and line.places[i] is None for line in lines):
      ticks.append((_UNUSED, 'not used'))
    for y, text in ticks:
      drawn += (
        f'<path class="axis" d="M{left(i) - 3} {y:.1f}h6"/>'
        f'<text class="over" x="{left(i) + 6}" y="{y + 4:.1f}">{escape(text)}</text>'
      )
    for y, text in ((14, first), (30, second)):
      drawn += f'<text x="{left(i) - 3}" y="{y}">{escape(plain(text, 18))}{_title(text)}</text>'
  width = left(len(axes)) - 12
  return (
    f'<svg class="plot" viewBox="0 0 {width} 306" style="width:{width}px;max-width:none"'
    f' aria-hidden="true">{drawn}</svg>'
  )


def bars(shares: Mapping[str, float]) -> str:
  """A bar for each name, the longest first, with its number."""
  most = max(shares.values()) or 1.0
  drawn = ''
  for i, (name, share) in enumerate(sorted(shares.items(), key=lambda item: -item[1])):
    y, width = 40 * i, 280 * max(share, 0) / most
    drawn += (
      f'<text x="0" y="{y + 12}">{escape(plain(name, 50))}</text>'
      f'<path class="bar" d="M0 {y + 18}h{width:.1f}v12h-{width:.1f}z"/>'
      f'<text x="{width + 6:.1f}" y="{y + 28}">{share:.3f}</text>'
    )
  height = 40 * len(shares)
  return f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" aria-hidden="true">{drawn}</svg>'


def _plot(x: Axis, y: Axis, marks: str, kinds: Iterable[str]) -> str:
  """A frame with its axes, what is in it, and what the kinds of marks stand for."""
  longest = max((len(text) for _, text in x.ticks), default=0)
  upright = _LETTER * (longest + 1) * len(x.ticks) > _RIGHT - _LEFT
  drawn = ''
  for place, text in y.ticks:
    drawn += (
      f'<path class="grid" d="M{_LEFT} {_y(place):.1f}H{_RIGHT}"/>'
      f'<text x="{_LEFT - 5}" y="{_y(place) + 4:.1f}" text-anchor="end">{escape(text)}</text>'
    )
  for place, text in x.ticks:
    drawn += f'<path class="grid" d="M{_x(place):.1f} {_TOP}V{_BOTTOM}"/>'
    if upright:
      turn = f'transform="translate({_x(place) + 4:.1f} {_BOTTOM + 6}) rotate(-90)"'
      drawn += f'<text {turn} text-anchor="end">{escape(text)}</text>'
    else:
      at = f'x="{_x(place):.1f}" y="{_BOTTOM + 16}"'
      drawn += f'<text {at} text-anchor="middle">{escape(text)}</text>'
  below = _BOTTOM + (round(_LETTER * longest) + 24 if upright else 34)
  drawn += (
    f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>'
    f'<text x="0" y="14">{escape(plain(y.name, 52))}</text>'
    f'<text x="{(_LEFT + _RIGHT) // 2}" y="{below}" text-anchor="middle">'
    f'{escape(plain(x.name, 44))}</text>'
  )
  left, named = 14.0, [kind for kind in _MARKS if kind in kinds]
  for kind in named:
    drawn += _mark(kind, left, below + 16, '') + f'<text x="{left + 9}" y="{below + 20}">{kind}'
    drawn += '</text>'
    left += 26 + _LETTER * len(kind)
  height = below + (28 if named else 8)
  return (
    f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" aria-hidden="true">{drawn}{marks}</svg>'
  )


def _x(place: float) -> float:
  return _LEFT + (_RIGHT - _LEFT) * place


def _y(place: float) -> float:
  return _BOTTOM - (_BOTTOM - _TOP) * place


def _path(places: Iterable[tuple[float, float]]) -> str:
  return 'M' + 'L'.join(f'{_x(x):.1f} {_y(y):.1f}' for x, y in places)


def _mark(kind: str, x: float, y: float, title: str) -> str:
  at = f'transform="translate({x:.1f} {y:.1f})"'
  return f'<path class="{kind}" {at} d="{_MARKS[kind]}">{_title(title)}</path>'


def _title(text: str) -> str:
  return f'<title>{escape(text)}</title>' if text else ''


def _between(rank: float) -> tuple[int, ...]:
  """The colour of a rank: through gray, never lighter or darker than can be seen."""
  return tuple(round((1 - rank) * a + rank * b) for a, b in zip(_BLUE, _ORANGE, strict=True))
