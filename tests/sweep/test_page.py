"""The page: its marks stand where they were computed by hand; it is whole, escaped, closed to
the network whatever the sweep found; and a real browser shows it."""

import math
import random
import re
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest

from cnnjax.sweep import page, plots, space
from tests import browser, pages

RATE, NAME, MOMENTUM = 'optimizer.learning_rate', 'optimizer.name', 'optimizer.momentum'
PARAMETERS = {
  RATE: space.log_uniform(1e-4, 1e-1),
  NAME: space.choice('adamw', 'nesterov'),
  MOMENTUM: space.uniform(0.8, 0.9, when={NAME: 'nesterov'}),
}
ACCURACY, MACS = space.maximize('test/accuracy'), space.minimize('macs')
EVIL = '</style><script>alert(1)</script>" onload="x'


class Trial(NamedTuple):
  slot: int
  state: str
  values: dict[str, Any]
  objectives: tuple[float, ...] | None = None
  reports: dict[int, float] = {}  # noqa: RUF012
  attempt: int = 0
  started: float | None = 100.0
  finished: float | None = 160.0
  reason: str = ''
  owner: str = ''


FIVE = [
  Trial(0, 'complete', {RATE: 1e-2, NAME: 'adamw'}, (0.5,), {1: 0.3, 2: 0.5}, finished=110.0),
  Trial(1, 'pruned', {RATE: 1e-3, NAME: 'nesterov', MOMENTUM: 0.85}, None, {1: 0.6},
        finished=120.0),
  Trial(2, 'complete', {RATE: 1e-2, NAME: 'nesterov', MOMENTUM: 0.8}, (0.7,), {2: 0.7},
        finished=150.0),
  Trial(3, 'complete', {RATE: 1e-1, NAME: 'adamw'}, (0.9,), {1: 0.1, 2: 0.9}, finished=130.0),
  Trial(4, 'diverged', {RATE: 1e-4, NAME: 'adamw'}, reason='loss is nan', finished=140.0),
]  # fmt: skip


def render(trials, best=(), parameters=PARAMETERS, shares=None, **fields):
  fields = {'objectives': (ACCURACY,), **fields}
  return page.render(
    space.Space(parameters, **fields),
    trials,
    {RATE: 0.75, NAME: 0.25} if shares is None else shares,
    best,
    title='digits',
    commands={'Best trial': 'python -m cnnjax.main --workdir="a b"'},
  )


def figures(html):
  """Each SVG by what its figure says, after tests of what holds for all of them."""
  read = pages.Reader(html)
  pages.is_closed(read, html)
  found = {}
  for caption, svg in re.findall(r'aria-label="([^"]*)">(<svg.*?</svg>)', html, flags=re.DOTALL):
    root = found[caption] = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.get('viewBox').split())
    for path in root.iter('path'):
      assert not re.search('nan|inf|None', ElementTree.tostring(path, 'unicode').split('<title')[0])
      for x, y in re.findall(r'translate\((\S+) (\S+)\)', path.get('transform', '')):
        assert 0 <= float(x) <= width
        assert 0 <= float(y) <= height
  assert len(found) == html.count('<svg')
  return found


def named(found, start):
  (svg,) = (svg for caption, svg in found.items() if caption.startswith(start))
  return svg


def marks(svg):
  """(kind, x, y) of each mark that has a tooltip."""
  return [
    (path.get('class'), *map(float, re.findall(r'[\d.]+', path.get('transform'))))
    for path in svg.iter('path')
    if path.get('transform') and path.find('title') is not None
  ]


def lines(svg, kind):
  return [path.get('d') for path in svg.iter('path') if path.get('class') == f'line {kind}']


def test_history():
  svg = named(figures(render(FIVE, [FIVE[3]])), 'test/accuracy of each trial')
  # In the order 0, 1, 3, 4, 2. Across: 1 to 5 and 3 % of 4 at both ends over 270 units from 50. Up:
  # 0.5 to 0.9 and 5 % of 0.4 at both ends over 160 units from 190.
  assert sorted(marks(svg), key=lambda mark: mark[1]) == [
    ('complete', 57.6, 182.7),
    ('pruned', 121.3, 146.4),
    ('best', 185.0, 37.3),
    ('diverged', 248.7, 190.0),
    ('complete', 312.4, 110.0),
  ]
  assert lines(svg, 'best') == [
    'M57.6 182.7L121.3 182.7L185.0 182.7L185.0 37.3L248.7 37.3L312.4 37.3'
  ]
  texts = [text.text for text in svg.iter('text')]
  assert [text for text in texts if text[0].isdigit()] == [
    '0.5', '0.6', '0.7', '0.8', '0.9', '1', '2', '3', '4', '5'
  ]  # fmt: skip
  assert texts[-4:] == ['complete', 'best', 'pruned', 'diverged']


def test_less_is_better():
  html = render(FIVE, [FIVE[0]], objectives=(space.minimize('test/loss'),))
  svg = named(figures(html), 'test/loss of each trial')
  assert lines(svg, 'best') == ['M57.6 182.7L121.3 182.7L185.0 182.7L248.7 182.7L312.4 182.7']
  assert ('diverged', 248.7, 30.0) in marks(svg)  # above all values
  assert rows(html) == ['0000', '0002', '0003', '0001', '0004']
  assert 'lower is better' in html


def rows(html):
  return re.findall(r'<tr><th scope="row">(\d{4}.*?)</th>', html)


def test_curves_go_on_where_an_attempt_was_taken_up():
  first = Trial(5, 'retried', {RATE: 1e-2}, None, {1: 0.2, 2: 0.4}, reason='its process ended')
  again = Trial(5, 'complete', {RATE: 1e-2}, (0.8,), {3: 0.8}, attempt=1)
  html = render([*FIVE, first, again], [FIVE[3]])
  svg = named(figures(html), 'test/accuracy at each evaluation')
  # Across: 1 to 3 and 3 % of 2 at both ends; up: 0.1 to 0.9 and 5 % of 0.8.
  assert lines(svg, 'complete')[-1] == 'M57.6 164.5L185.0 128.2L312.4 55.5'
  assert lines(svg, 'open') == ['M57.6 91.8']
  assert [mark for mark in marks(svg) if mark[0] == 'pruned'] == [('pruned', 57.6, 91.8)]
  assert lines(svg, 'best') == ['M57.6 182.7L185.0 37.3']
  text = ''.join(pages.Reader(html).text)
  assert '0005, attempt 2' in text
  assert '4 of 6' in text
  assert 'its process ended' in text


def test_slices():
  found = figures(render(FIVE, [FIVE[3]]))
  # Logarithms from -4 to -1 and 3 % of 3 at both ends over 270 units from 50.
  assert marks(named(found, f'test/accuracy by {RATE}')) == [
    ('complete', 227.5, 110.0),
    ('complete', 227.5, 182.7),
    ('best', 312.4, 37.3),
  ]
  assert marks(named(found, f'test/accuracy by {NAME}')) == [
    ('complete', 252.5, 110.0),
    ('complete', 117.5, 182.7),
    ('best', 117.5, 37.3),
  ]
  assert marks(named(found, f'test/accuracy by {MOMENTUM}')) == [('complete', 57.6, 110.0)]
  assert 'Not used by 2 of 3 trials.' in str([*found])


def test_parallel_coordinates():
  html = render(FIVE, [FIVE[3]])
  svg = named(figures(html), 'Each line is a trial')
  paths = {
    path.find('title').text[:10]: (path.get('class'), path.get('style'), path.get('d'))
    for path in svg.iter('path')
    if path.find('title') is not None
  }
  # Axes 118 units apart from 12, over 210 units from 258 up; 292 is the place of what isn't used.
  assert paths['trial 0000'] == (
    'line shade', 'stroke:rgb(47, 128, 200)', 'M12 120.0L130 205.5L248 292.0L366 248.5'
  )  # fmt: skip
  assert paths['trial 0002'] == (
    'line shade', 'stroke:rgb(132, 116, 114)', 'M12 120.0L130 100.5L248 252.1L366 153.0'
  )  # fmt: skip
  kind, style, path = paths['trial 0003']
  assert (kind, style) == ('line best', 'stroke:rgb(217, 104, 29)')
  assert path.endswith('L248 292.0L366 57.5')
  assert paths['trial 0001'] == ('line open', None, 'M12 186.0L130 100.5L248 153.0')
  texts = [text.text for text in svg.iter('text')]
  assert texts.count('not used') == 1
  for words in ('optimizer.', 'learning_rate', 'adamw', 'nesterov', '0.0001', 'higher is better'):
    assert words in texts


def test_importance():
  svg = named(figures(render(FIVE, [FIVE[3]])), 'How much each parameter')
  widths = [re.search(r'h([\d.]+)v', path.get('d')).group(1) for path in svg.iter('path')]
  assert widths == ['280.0', '93.3']
  assert [text.text for text in svg.iter('text')] == [RATE, '0.750', NAME, '0.250']
  assert f'Not estimated: {MOMENTUM}.' in render(FIVE, [FIVE[3]])
  for shares in ({}, {RATE: math.nan}):
    assert 'Complete trials are too few, 3,' in render(FIVE, [FIVE[3]], shares=shares)


@pytest.mark.parametrize(
  ('objectives', 'front', 'line'),
  [  # Across 0.48 to 0.92, up 90 to 310.
    ((ACCURACY, MACS), (0, 1, 2), 'M50.0 182.7L62.3 182.7L62.3 110.0L185.0 110.0L185.0 37.3'
                                  'L307.7 37.3L307.7 30.0'),
    ((ACCURACY, space.maximize('images')), (2,), 'M50.0 37.3L307.7 37.3L307.7 190.0'),
    ((space.minimize('error'), MACS), (0,), 'M320.0 182.7L62.3 182.7L62.3 30.0'),
    ((space.minimize('error'), space.maximize('images')), (2, 1, 0), 
     'M320.0 37.3L307.7 37.3L307.7 110.0L185.0 110.0L185.0 182.7L62.3 182.7L62.3 190.0'),
  ],
)  # fmt: skip
def test_the_pareto_front(objectives, front, line):
  points = ((0.5, 100.0), (0.7, 200.0), (0.9, 300.0))
  trials = [Trial(i, 'complete', {RATE: 1e-2}, point) for i, point in enumerate(points)]
  html = render(trials, [trials[i] for i in front], objectives=objectives)
  names = [objective.name for objective in objectives]
  svg = named(figures(html), f'{names[0]} and {names[1]}')
  places = [(62.3, 182.7), (185.0, 110.0), (307.7, 37.3)]
  assert {(x, y) for _, x, y in marks(svg)} == set(places)
  assert {(x, y) for kind, x, y in marks(svg) if kind == 'best'} == {places[i] for i in front}
  assert lines(svg, 'best') == [line]
  assert 'on the Pareto front' in html


def test_three_objectives_in_three_pairs():
  objectives = (ACCURACY, MACS, space.minimize('seconds'))
  points = ((0.5, 1e4, 3.0), (0.7, 1e7, 2.0), (0.6, 1e8, math.inf))
  trials = [Trial(i, 'complete', {RATE: 1e-2}, point) for i, point in enumerate(points)]
  html = render(trials, trials, objectives=objectives)
  assert '<dt>on the Pareto front</dt><dd>2</dd>' in html  # the third has no place there
  found = figures(html)
  pairs = [svg for caption, svg in found.items() if 'orange: the Pareto front' in caption]
  assert [len(marks(svg)) for svg in pairs] == [2, 2, 2]
  assert not any(lines(svg, 'best') for svg in pairs)
  # Far apart: logarithmic, of 1e4 to 1e7 and 5 % at both ends.
  texts = [text.text for text in pairs[0].iter('text')]
  assert [text for text in texts if text.startswith('1')] == ['10000', '100000', '1e+06', '1e+07']


def test_the_table_and_the_summary():
  html = render(FIVE, [FIVE[3]])
  assert rows(html) == ['0003', '0002', '0000', '0001', '0004']
  text = ''.join(pages.Reader(html).text)
  assert 'loss is nan' in text
  assert 'python -m cnnjax.main --workdir="a b"' in text
  assert '<dt>best test/accuracy</dt><dd>0.9</dd>' in html
  assert '<dt>complete</dt><dd>3 of 5</dd>' in html
  assert '<dt>pruned</dt><dd>1</dd>' in html
  assert '<dt>seconds, summed over trials</dt><dd>150</dd>' in html  # 10 + 20 + 50 + 30 + 40
  assert '0.8 to 0.9, where optimizer.name is nesterov' in text
  assert '0.0001 to 0.1, logarithmic' in text


def test_no_more_rows_than_can_be_read():
  values = [(i * 37 % 601) / 601 for i in range(601)]
  trials = [Trial(i, 'complete', {RATE: 1e-2}, (value,)) for i, value in enumerate(values)]
  best = max(trials, key=lambda trial: trial.objectives)
  html = render(trials, [best], parameters={RATE: PARAMETERS[RATE]})
  assert len(rows(html)) == 500
  assert rows(html)[0] == f'{best.slot:04d}'
  assert '500 of 601 rows' in html
  found = figures(html)
  assert len(marks(named(found, f'test/accuracy by {RATE}'))) == 500
  assert html.count('The best 500 of 601 complete trials are drawn.') > 1


def test_what_comes_from_outside_is_escaped():
  parameters = {EVIL: space.choice(EVIL, '猫\udce4\x07', None, (1, 2)), RATE: PARAMETERS[RATE]}
  values = {EVIL: EVIL, RATE: 0.01}
  trials = [
    Trial(0, 'complete', values, (0.5, 1.0), {1: 0.5}),
    Trial(1, 'failed', {EVIL: '猫\udce4\x07', RATE: 0.01}, reason=EVIL, owner=EVIL),
    Trial(2, 'complete', {EVIL: [1, 2], RATE: 0.02}, (0.6, 2.0)),
    Trial(3, 'complete', {EVIL: None, RATE: 0.02}, (0.6, 2.0)),
  ]
  html = page.render(
    space.Space(parameters, (space.maximize(EVIL), MACS), fixed={EVIL: EVIL}),
    trials,
    {EVIL: 1.0},
    trials[:1],
    title=EVIL,
    commands={EVIL: EVIL},
  )
  read = pages.Reader(html.encode('utf-8', 'strict').decode())
  assert not any('onload' in attributes for _, attributes in read.elements)
  assert html.count('&lt;script&gt;') > 20
  assert '猫' in html
  found = figures(html)
  values = [svg for caption, svg in found.items() if ' by &lt;' in caption]
  assert [len(marks(svg)) for svg in values] == [3, 3]


def many(count, *, seed=0):
  """A sweep as they are: twelve parameters, 200 trials of all states, some long names."""
  draw = random.Random(seed)
  long = 'cnnjax.layers.an_activation_with_a_name_that_nobody_would_want_to_read_in_a_figure'
  parameters = {
    RATE: space.log_uniform(1e-4, 1e-1),
    NAME: space.choice('adamw', 'nesterov', 'lion'),
    MOMENTUM: space.uniform(0.8, 0.99, when={NAME: 'nesterov'}),
    'model.width': space.integer(8, 256, log=True),
    'model.depth': space.integer(1, 4),
    'model.activation': space.choice('relu', 'gelu', long),
    'batch_size': space.grid(16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
    'loss.label_smoothing': space.uniform(0.0, 0.2),
    'augment.flip': space.choice(True, False),
    'augment.crop': space.choice(None, (2, 2), (4, 4)),
    'ema.decay': space.uniform(0.9, 0.9999),
    'schedule.warmup_fraction': space.uniform(0.0, 0.3),
  }
  trials = []
  for slot in range(count):
    values: dict[str, Any] = {}
    for key, p in parameters.items():
      if space.active(p, values):
        ends = (math.log(p.low or 1), math.log(p.high or 1))
        values[key] = (
          draw.choice(p.values) if p.values
          else draw.randint(p.low, p.high) if p.kind == 'integer'
          else math.exp(draw.uniform(*ends)) if p.kind == 'log_uniform'
          else draw.uniform(p.low, p.high)
        )  # fmt: skip
    worth = 0.98 - 0.05 * (math.log10(values[RATE]) + 2.2) ** 2 - draw.random() / 20
    reports = {n: worth - 0.5 * math.exp(-n / 2) - draw.random() / 50 for n in range(1, 9)}
    state = draw.choices(page._STATES[:5], (70, 20, 4, 3, 3))[0]
    if state != 'complete':
      reports = {n: reports[n] for n in range(1, 1 + draw.randint(0, 4))}
    objectives = (reports[8], 1e5 * values['model.width']) if state == 'complete' else None
    ended = None if state == 'running' else 100.0 + 60 * slot + draw.random() * 200
    reason = {'pruned': 'below the median of others', 'diverged': 'loss is nan at step 120',
              'failed': 'exit status 1: out of memory'}.get(state, '')  # fmt: skip
    trials.append(Trial(slot, state, values, objectives, reports, 0, 60.0 * slot, ended, reason))
  return parameters, trials


def front(trials):
  ended = [trial for trial in trials if trial.objectives]
  better = lambda a, b: (
    a.objectives != b.objectives
    and (a.objectives[0] >= b.objectives[0] and a.objectives[1] <= b.objectives[1])
  )
  return [trial for trial in ended if not any(better(other, trial) for other in ended)]


X = {'x': space.uniform(0.0, 1.0)}
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
  'trials',
  [
    [],
    [Trial(0, 'waiting', {}, started=None, finished=None)],
    [Trial(0, 'running', {'x': 0.5}, None, {1: 0.5}, finished=None)],
    [Trial(0, 'pruned', {'x': 0.5}, None, {}), Trial(1, 'failed', {}), Trial(2, 'retried', {})],
    [Trial(0, 'pruned', {'x': 0.5}, None, {1: NAN, 2: INF})],
    [Trial(0, 'complete', {'x': 0.5}, (0.5,))],
    [Trial(i, 'complete', {'x': 0.5}, (0.5,), {1: 0.5}) for i in range(3)],
    [Trial(i, 'complete', {'x': 1.0}, (0.0,), {1: 0.0}) for i in range(3)],
    [Trial(i, 'complete', {'x': i / 4}, (x,), {1: x}) for i, x in enumerate((NAN, INF, -INF))],
    [Trial(i, 'complete', {'x': 0.5}, (x,), {1: x}) for i, x in enumerate((NAN, INF, 0.5))],
    [Trial(i, 'complete', {}, (x,), {1: x}) for i, x in enumerate((-9e99, 9e99, 1e308, 5e-324))],
    [Trial(i, 'complete', {'x': x}, (x,)) for i, x in enumerate((0.1 + 0.2, 0.3, 5e-324))],
  ],
)  # fmt: skip
def test_degenerate_sweeps(trials):
  ended = [t for t in trials if t.state == 'complete' and math.isfinite(t.objectives[0])]
  for objective in (ACCURACY, space.minimize('test/loss')):
    found = render(trials, ended[:1], parameters=X, shares={}, objectives=(objective,))
    figures(found)
    assert len(rows(found)) == len(trials)


def test_axes():
  axis = plots.numbers('x', (1e-4, 1e-1), log=True)
  assert [text for _, text in axis.ticks] == ['0.0001', '0.001', '0.01', '0.1']
  assert [place for place, _ in axis.ticks] == pytest.approx([0, 1 / 3, 2 / 3, 1])
  assert axis.place(0) is axis.place(NAN) is axis.place('a') is None
  ticks = lambda *values, **options: [
    text for _, text in plots.numbers('x', values, **options).ticks
  ]
  assert ticks(0.02, 0.3, log=True) == ['0.02', '0.05', '0.1', '0.2']
  assert ticks(0.011, 0.014, log=True) == ['0.011', '0.012', '0.013', '0.014']
  assert ticks(0.1, 0.3) == ['0.1', '0.15', '0.2', '0.25', '0.3']
  assert ticks(1, 3, whole=True) == ['1', '2', '3']
  assert ticks(3, 3, whole=True) == ['3']
  assert ticks(1e6, 1e6 + 1)[:3] == ['1000000', '1000000.2', '1000000.4']
  assert ticks(-1, 1) == ['-1', '-0.5', '0', '0.5', '1']
  assert plots.numbers('x', (5.0,)).place(5.0) == 0.5
  categories = plots.categories('x', (1, '1', True, 1.5))
  assert [categories.place(v) for v in (1, '1', True, 1.5, 2)] == [0.125, 0.375, 0.625, 0.875, None]
  assert len(plots.categories('x', range(100)).ticks) <= 16


@pytest.mark.skipif(not browser.CHROMIUM, reason='there is no Chromium')
def test_in_a_browser(tmp_path):
  parameters, trials = many(200)
  path = tmp_path / 'sweep.html'
  html = render(trials, front(trials), parameters=parameters, objectives=(ACCURACY, MACS),
                shares={key: 1 / (n + 1) for n, key in enumerate(parameters)})  # fmt: skip
  figures(html)
  assert len(html) < 3_000_000
  path.write_text(html)
  outside = """[...document.querySelectorAll('svg.plot')].flatMap(svg => {
    const all = svg.getBoundingClientRect()
    return [...svg.querySelectorAll('text')].filter(text => {
      const box = text.getBoundingClientRect()
      return box.left < all.left - 1 || box.right > all.right + 1 || box.top < all.top - 1
        || box.bottom > all.bottom + 1
    }).map(text => text.textContent)
  })"""
  with browser.page() as shown:
    for width, height, scheme, ink in (
      (360, 800, 'dark', 'rgb(230, 232, 235)'),
      (1200, 900, 'light', 'rgb(27, 31, 36)'),
    ):
      shown.show(path, width=width, height=height, scheme=scheme)
      assert shown.evaluate('innerWidth') == width
      assert shown.evaluate('document.documentElement.scrollWidth') <= width
      assert shown.evaluate("getComputedStyle(document.querySelector('svg text')).fill") == ink
      assert shown.evaluate(outside) == []
    assert shown.complaints == []
