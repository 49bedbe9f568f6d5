"""Crops as boxes in an image's own pixels, and the one resampling that all of them go through.

A box may lie between pixels, so it also fits an image that was decoded at a fraction of its size.
The filter is Pillow's: bilinear, as wide as the reduction, so that nothing aliases. With
`cnnjax[jpeg]` its SIMD form does the work; pixels then differ by at most 2 of 255.
"""

import functools
import importlib
import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cnnjax.errors import UserError

_LOGGER = logging.getLogger(__name__)

_PIXELS = {1: 'U8', 3: 'U8x3'}  # what resampling without Pillow knows; four need its alpha


class Box(NamedTuple):
  """A part of an image, in pixels from its top left corner.

  With `closed`, pixels outside don't count (cut first, then resize); otherwise the filter reaches
  over the edge (resize first, then cut).
  """

  top: float
  left: float
  height: float
  width: float
  closed: bool = False

  def reduced(self, factor: int) -> 'Box':
    """The same part of an image reduced by `factor`."""
    top, left, height, width = (side / factor for side in self[:4])
    return Box(top, left, height, width, self.closed)


@functools.cache
def optional(name: str) -> Any:
  """A module of the extra `jpeg`, or None where it isn't installed."""
  try:
    return importlib.import_module(name)
  except ImportError:
    _LOGGER.info("%s is not installed, Pillow does its work: pip install 'cnnjax[jpeg]'", name)
    return None


def whole(height: int, width: int) -> Box:
  """All of an image."""
  return Box(0, 0, height, width)


def center(height: int, width: int, size: Sequence[int], fraction: float) -> Box:
  """The central box of an image that is scaled until it just covers `size / fraction`."""
  scale = max(size[0] / fraction / height, size[1] / fraction / width)
  places = []
  for side, crop in zip((height, width), size, strict=True):
    scaled = max(crop, round(scale * side))
    places.append(((scaled - crop) // 2 * side / scaled, crop * side / scaled))
  (top, box_height), (left, box_width) = places
  return Box(top, left, box_height, box_width)


def random(
  rng: np.random.Generator,
  height: int,
  width: int,
  scale: tuple[float, float],
  ratio: tuple[float, float],
) -> Box:
  """A box of random area and aspect ratio; see `preprocess.random_resized_crop`."""
  for _ in range(10):
    area = height * width * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
    if 0 < h <= height and 0 < w <= width:
      top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
      return Box(int(top), int(left), h, w, closed=True)
  h = min(height, max(1, round(width / ratio[0])))
  w = min(width, max(1, round(height * ratio[1])))
  return Box((height - h) // 2, (width - w) // 2, h, w, closed=True)


def reduction(box: Box, size: Sequence[int]) -> int:
  """By how much (1, 2, 4 or 8) an image can be reduced before the box is smaller than `size`."""
  return max(
    d for d in (1, 2, 4, 8) if d == 1 or d <= min(box.height / size[0], box.width / size[1])
  )


def _span(start: float, length: float, target: int, side: int, closed: bool) -> tuple[int, int]:
  """First and last pixel that the filter sees along one axis."""
  margin = 0 if closed else math.ceil(max(1.0, length / target)) + 1
  first, last = math.floor(start) - margin, math.ceil(start + length) + margin
  return max(0, first), min(side, last)


def cut(image: np.ndarray, box: Box, size: Sequence[int]) -> np.ndarray:
  """The box of `image` `[H, W, C]`, resampled to `size` = (height, width); maybe a view."""
  (top, left, height, width, closed), (out_height, out_width) = box, size
  if (height, width) == (out_height, out_width) and top == int(top) and left == int(left):
    if image.shape[:2] == (height, width):
      return image
    return image[int(top) : int(top) + out_height, int(left) : int(left) + out_width]
  channels = image.shape[2]
  if channels not in (1, 3, 4):
    raise UserError(f'data.image_size: images of {channels} channels, allowed 1, 3 or 4')
  first_row, last_row = _span(top, height, out_height, image.shape[0], closed)
  first_column, last_column = _span(left, width, out_width, image.shape[1], closed)
  part = image[first_row:last_row, first_column:last_column]
  resampler = optional('cykooz_resizer') if channels in _PIXELS else None
  resample = _with_pillow if resampler is None else functools.partial(_with_simd, resampler)
  top, left = top - first_row, left - first_column
  # At the far edge, rounding must not lead out of the image.
  height, width = min(height, part.shape[0] - top), min(width, part.shape[1] - left)
  return resample(part, Box(top, left, height, width), size)


def _with_simd(module: Any, image: np.ndarray, box: Box, size: Sequence[int]) -> np.ndarray:
  kind = module.PixelType[_PIXELS[image.shape[2]]]
  result = module.ImageData(size[1], size[0], kind)
  module.Resizer().resize(
    module.ImageData(image.shape[1], image.shape[0], kind, image.tobytes()),
    result,
    module.ResizeOptions(
      module.ResizeAlg.convolution(module.FilterType.bilinear),
      crop_box=module.CropBox(box.left, box.top, box.width, box.height),
    ),
  )
  return np.frombuffer(result.get_buffer(), np.uint8).reshape(*size, image.shape[2])


def _with_pillow(image: np.ndarray, box: Box, size: Sequence[int]) -> np.ndarray:
  from PIL import Image

  squeezed = image[..., 0] if image.shape[2] == 1 else image
  corners = (box.left, box.top, box.left + box.width, box.top + box.height)
  resized = Image.fromarray(squeezed).resize(
    (size[1], size[0]), Image.Resampling.BILINEAR, box=corners
  )
  return np.asarray(resized).reshape(*size, image.shape[2])
