"""Windows and padding of the two spatial axes, as convolution and pooling take them."""

from collections.abc import Sequence

Pair = int | Sequence[int]
Padding = int | Sequence[int] | Sequence[Sequence[int]]
Pads = tuple[tuple[int, int], tuple[int, int]]


def pair(value: Pair) -> tuple[int, int]:
  """(height, width); an int stands for both."""
  height, width = (value, value) if isinstance(value, int) else value
  return height, width


def sides(padding: Padding) -> Pads:
  """((top, bottom), (left, right)) from an int, a pair (height, width), or just that."""
  height, width = (padding, padding) if isinstance(padding, int) else padding
  (top, bottom), (left, right) = pair(height), pair(width)
  return (top, bottom), (left, right)
