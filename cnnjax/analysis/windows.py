"""Where a window's taps meet an image, along one side: the integers behind every convolution."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cnnjax.errors import UserError

Padding = str | Sequence[tuple[int, int]]


class Meetings(NamedTuple):
  """The (output, tap, input) triples in which a tap lies on the image, in order of outputs.

  Attributes:
    outputs: how many positions the window has.
    output: `[n]` of each triple.
    tap: `[n]`.
    input: `[n]`.
  """

  outputs: int
  output: np.ndarray
  tap: np.ndarray
  input: np.ndarray


def meetings(
  size: int, taps: int, *, stride: int, dilation: int, padding: str | tuple[int, int]
) -> Meetings:
  """Slides a window along one side of an image.

  Args:
    size: pixels.
    taps: of the window.
    stride: pixels from one position to the next.
    dilation: pixels from one tap to the next.
    padding: 'SAME', 'VALID', 'CIRCULAR' as in flax, or pixels (before, after), cut off if negative.

  Raises:
    UserError: no position is left, or a padding of another name.
  """
  reach, circular = dilation * (taps - 1), padding == 'CIRCULAR'
  if padding == 'SAME':
    total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
    before, after = total // 2, total - total // 2
  elif padding == 'CIRCULAR':
    before, after = reach // 2, reach - reach // 2
  elif padding == 'VALID':
    before, after = 0, 0
  elif isinstance(padding, str):
    raise UserError(f"padding={padding!r}, allowed 'SAME', 'VALID', 'CIRCULAR' or (before, after)")
  else:
    before, after = padding
  outputs = (size + before + after - reach - 1) // stride + 1
  if outputs < 1 or min(stride, dilation, taps) < 1:
    raise UserError(
      f'a window of {taps} taps, stride {stride}, dilation {dilation} and padding {before},'
      f' {after} has no place on {size} pixels'
    )
  places = stride * np.arange(outputs)[:, None] - before + dilation * np.arange(taps)
  if circular:
    places %= size
  output, tap = np.nonzero((places >= 0) & (places < size))
  return Meetings(outputs, output, tap, places[output, tap])


def sides(padding: Padding) -> tuple[Any, Any]:
  """What a padding is for rows and for columns."""
  if isinstance(padding, str):
    return padding, padding
  rows, columns = padding
  return tuple(rows), tuple(columns)
