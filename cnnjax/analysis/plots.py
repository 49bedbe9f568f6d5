"""The report's pictures: matplotlib figures as SVG that takes its ink from the page around it, so
that they are readable on light and on dark, and images as data URIs.

Figures are 3.6 inches wide, with type that is still large enough where a phone shows them.
"""

import base64
import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cnnjax.analysis.evaluation import Calibration
from cnnjax.analysis.receptive_field import Field
from cnnjax.document import plain

_INK = '#010203'  # stands for the page's colour of text
_BLUE, _ORANGE = '#2f80c8', '#d9681d'  # at least 3 : 1 against white and against near-black
_WIDTH = 3.6  # inches
_STYLE: Any = {
  'axes.edgecolor': _INK,
  'axes.axisbelow': True,
  'axes.grid': True,
  'axes.labelcolor': _INK,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'figure.constrained_layout.use': True,
  'font.size': 9,
  'grid.alpha': 0.15,
  'grid.color': _INK,
  'legend.frameon': False,
  'svg.fonttype': 'none',  # text stays text
  'svg.hashsalt': 'cnnjax',  # the same picture is the same file
  'text.color': _INK,
  'text.parse_math': False,  # a class may be called '$'
  'xtick.color': _INK,
  'ytick.color': _INK,
}
_NUMBERS = 20  # classes up to which counts are written into the confusion matrix
_NAMED = 30  # classes up to which each has its name there
FILTERS = 64  # shown at most
_BOXES = 6  # receptive fields drawn at most
_PIXELS = 160  # longest side of an image in the page


class _Drawing:
  """A figure to draw in, and its SVG afterwards."""

  def __init__(self, height: float):
    from matplotlib.figure import Figure

    self.figure, self.svg = Figure(figsize=(_WIDTH, height)), ''


@contextlib.contextmanager
def _drawing(name: str, height: float) -> Iterator[_Drawing]:
  import matplotlib

  with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'Glyph .* missing')  # the browser has more fonts
    drawing, file = _Drawing(height), io.StringIO()
    yield drawing
    drawing.figure.savefig(file, format='svg', transparent=True, metadata={'Date': None})
  # For the midst of a page: no prolog, ids that no other figure has, the size that CSS gives.
  text = file.getvalue()
  text = text[text.index('<svg') :]
  for unwanted in ('<metadata>.*?</metadata>', '<style.*?</style>', '<!--.*?-->'):
    text = re.sub(unwanted, '', text, flags=re.DOTALL)
  head, rest = text.split('>', 1)
  head = re.sub(r' (width|height|version|xmlns(:\w+)?)="[^"]*"', '', head)
  rest = re.sub(r'((?: id="|url\(#|href="#))', rf'\1{name}-', rest)
  drawing.svg = f'{head} aria-hidden="true">{rest}'.replace(_INK, 'currentColor')


def curves(
  rows: Sequence[Mapping[str, Any]],
  figure: str,
  label: str,
  *,
  log: bool = False,
  zero: bool = False,
) -> str:
  """A figure of metrics.jsonl over steps, training and test.

  Args:
    rows: of metrics.jsonl.
    figure: its key, such as 'loss'; rows without it are passed over.
    label: of the axis, with the unit.
    log: a logarithmic axis, if all values are positive.
    zero: an axis that begins at 0.
  """
  from matplotlib import ticker

  with _drawing(figure, 2.3) as drawing:
    axes = drawing.figure.add_subplot(xlabel='step', ylabel=label)
    everything = []
    for split, color, style in (('train', _ORANGE, '--'), ('test', _BLUE, '-')):
      found = [r for r in rows if r['split'] == split and isinstance(r.get(figure), int | float)]
      values = [r[figure] for r in found]
      if values:
        mark = {'marker': 'o', 'markersize': 3} if len(values) < 50 else {}
        axes.plot(
          [r['step'] for r in found], values, style, color=color, lw=1.3, label=split, **mark
        )
      everything += values
    if log and everything and min(everything) > 0:
      axes.set_yscale('log')
      axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
      axes.yaxis.set_major_formatter('{x:g}')
      axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlim(left=0)
    if zero:
      axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
      axes.legend()
  return drawing.svg


def confusion(matrix: np.ndarray, names: Sequence[str]) -> str:
  """The confusion matrix, coloured by the share of its row, with counts where there is room."""
  size = len(matrix)
  share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  with _drawing('confusion', 3.6) as drawing:
    axes = drawing.figure.add_subplot(xlabel='predicted class', ylabel='true class')
    axes.imshow(_tinted(0.75 * share), interpolation='none')
    axes.grid(visible=False)
    every = range(size) if size <= _NAMED else range(0, size, -(-size // 10))
    labels = [plain(names[i], 14) for i in every]
    small: Any = {'fontsize': 9 if size <= 12 else 6}
    upright = max(map(len, labels)) > 2
    axes.set_xticks(every, labels, rotation=90 if upright else 0, **small)
    axes.set_yticks(every, labels, **small)
    if size <= _NUMBERS:
      for (i, j), count in np.ndenumerate(matrix):
        if count:
          font = 8 if size <= 10 and count < 1000 else 5
          axes.text(j, i, f'{count}', ha='center', va='center', fontsize=font)
  return drawing.svg


def _tinted(alpha: np.ndarray) -> np.ndarray:
  """Blue of so much opacity: [..., 4], for a background of any colour."""
  from matplotlib import colors

  return np.concatenate(
    [np.broadcast_to(colors.to_rgb(_BLUE), (*alpha.shape, 3)), alpha[..., None]], -1
  )


def reliability(found: Calibration) -> str:
  """The reliability diagram: accuracy against confidence, above how many examples there are."""
  bins = len(found.count)
  left = np.arange(bins) / bins
  with _drawing('reliability', 3.6) as drawing:
    top, bottom = drawing.figure.subplots(2, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], ':', color=_INK, lw=1, label='perfect')
    top.bar(left, found.accuracy, 1 / bins, align='edge', color=_BLUE, alpha=0.7, label='accuracy')
    top.plot(found.confidence, found.accuracy, '.', color=_ORANGE, label='mean confidence')
    top.set(ylabel='accuracy', xlim=(0, 1), ylim=(0, 1.02))
    bottom.bar(left, found.count, 1 / bins, align='edge', color=_BLUE, alpha=0.7)
    bottom.set(xlabel='confidence', ylabel='examples')
    drawing.figure.legend(
      *top.get_legend_handles_labels(), loc='outside upper center', ncols=3, fontsize=8
    )
  return drawing.svg


def filters(kernel: np.ndarray) -> str:
  """Up to 64 filters of a kernel [kh, kw, C, F], on one scale.

  Three channels are shown as colours; of other numbers, the mean over the channels.
  """
  kernel = np.asarray(kernel, np.float32)[..., :FILTERS]
  kh, kw, channels, number = kernel.shape
  limit = float(np.abs(kernel).max()) or 1.0
  columns = min(8, number)
  lines = -(-number // columns)
  mosaic = np.full((lines * (kh + 1) - 1, columns * (kw + 1) - 1, 3), np.nan, np.float32)
  shown = kernel if channels == 3 else kernel.mean(2, keepdims=True)
  for i in range(number):
    top, left = i // columns * (kh + 1), i % columns * (kw + 1)
    mosaic[top : top + kh, left : left + kw] = shown[..., i]
  height = min(5.0, 0.6 + _WIDTH * mosaic.shape[0] / mosaic.shape[1])
  with _drawing('filters', height) as drawing:
    axes = drawing.figure.add_subplot()
    axes.set_axis_off()
    if channels == 3:
      opaque = np.isfinite(mosaic[..., :1])
      colors = np.where(opaque, 0.5 + np.nan_to_num(mosaic) / (2 * limit), 0)
      axes.imshow(np.concatenate([colors, opaque], -1), interpolation='none')
    else:
      limit = float(np.abs(shown).max()) or 1.0
      picture = axes.imshow(
        mosaic[..., 0], cmap='RdBu_r', vmin=-limit, vmax=limit, interpolation='none'
      )
      drawing.figure.colorbar(picture, label='weight', location='bottom', shrink=0.8, aspect=40)
  return drawing.svg


def receptive_fields(image: np.ndarray, fields: Sequence[Field]) -> str:
  """Over an image [H, W, C], what the middle output of some of the layers sees.

  Args:
    image: uint8.
    fields: of maps alone; at most six of different sizes are drawn.
  """
  import matplotlib
  from matplotlib import patches

  height, width = image.shape[:2]
  sizes = {field.size: field for field in reversed(fields)}  # of equals the first
  distinct = sorted(sizes.values(), key=lambda field: math.prod(field.size))
  places = np.linspace(0, len(distinct) - 1, min(_BOXES, len(distinct))).round().astype(int)
  colors = matplotlib.colormaps['turbo'](np.linspace(0.1, 0.9, _BOXES))
  with _drawing('fields', 4.6) as drawing:
    axes = drawing.figure.add_subplot(xlabel='pixels', ylabel='pixels')
    axes.imshow(_rgb(image), interpolation='none')
    axes.grid(visible=False)
    for color, place in zip(colors, places, strict=False):
      field = distinct[place]
      down, right = (
        offset + stride * (number // 2) - size / 2
        for offset, stride, number, size in zip(
          field.offset, field.stride, field.output[1:3], field.size, strict=True
        )
      )
      box: Any = {'xy': (right, down), 'width': field.size[1], 'height': field.size[0]}
      label = f'{field.size[0]} x {field.size[1]}: {plain(field.name, 24)}'
      axes.add_patch(patches.Rectangle(**box, fill=False, color='white', alpha=0.7, lw=4))
      axes.add_patch(patches.Rectangle(**box, fill=False, color=color, lw=2, label=label))
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    drawing.figure.legend(loc='outside lower center', ncols=1, fontsize=8)
  return drawing.svg


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """An image [H, W, C] uint8 under a heat map [H, W], nonnegative: [H, W, 3] uint8."""
  import matplotlib

  heat = heat / (heat.max() or 1)
  gray = _rgb(image).mean(-1, keepdims=True)
  colors = 255 * matplotlib.colormaps['inferno'](heat)[..., :3]
  return (0.4 * gray + 0.6 * colors).round().astype(np.uint8)


def data_uri(image: np.ndarray) -> str:
  """An image [H, W, C] uint8 as a data URI: PNG if it is small, else shrunk and JPEG."""
  from PIL import Image

  picture, file = Image.fromarray(_rgb(image)), io.BytesIO()
  kind = 'png' if max(picture.size) <= 64 else 'jpeg'
  picture.thumbnail((_PIXELS, _PIXELS))
  picture.save(file, kind)
  return f'data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}'


def _rgb(image: np.ndarray) -> np.ndarray:
  """The first three channels, or the first one thrice."""
  image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]
  return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
