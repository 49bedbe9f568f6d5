"""What filters look like, what they answer, and how much they care for an orientation.

Orientation selectivity is 1 minus the circular variance of the responses to gratings, the measure
of Ringach, Shapley & Hawken 2002, J. Neuroscience 22(13), 5639-5651: 0 where all orientations get
the same response, 1 where only one gets any. A linear filter's response to a drifting grating is a
sinusoid whose amplitude is the filter's Fourier transform there.

Angles are those of the stripes as they are seen: 0 lies, pi / 2 stands, counter-clockwise.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cnnjax.errors import UserError

FREQUENCIES = tuple(i / 16 for i in range(1, 9))  # cycles for each pixel, to the limit 1 / 2
ANGLES = tuple(np.pi * i / 36 for i in range(36))  # every 5 degrees


class Orientation(NamedTuple):
  """How filters are tuned.

  Attributes:
    selectivity: `[F]`, in [0, 1], at the frequency with the greatest response of all, as
      physiologists choose it.
    angle: `[F]`, of the edges that each answers to, in [0, pi): that of the mean response.
    frequency: `[F]`, cycles for each pixel.
  """

  selectivity: np.ndarray
  angle: np.ndarray
  frequency: np.ndarray


def orientation(
  kernel: Any, *, frequencies: Sequence[float] = FREQUENCIES, angles: Sequence[float] = ANGLES
) -> Orientation:
  """The orientations that a layer's filters are tuned to.

  Args:
    kernel: `[kh, kw, C, F]`.
    frequencies: of the gratings, cycles for each pixel.
    angles: of their stripes, at equal distances over half a turn.
  """
  responses = spectrum(kernel, frequencies=frequencies, angles=angles)
  best = responses.max(-1).argmax(-1)  # [F]
  tuned = responses[np.arange(len(best)), best]  # [F, angles]
  mean = _mean(tuned, np.asarray(angles))
  return Orientation(
    np.abs(mean), np.angle(mean) / 2 % np.pi, np.asarray(frequencies, np.float64)[best]
  )


def spectrum(
  kernel: Any, *, frequencies: Sequence[float] = FREQUENCIES, angles: Sequence[float] = ANGLES
) -> np.ndarray:
  """The amplitude of each filter's response to gratings of contrast 1 over the whole plane.

  Args:
    kernel: `[kh, kw, C, F]`. Each channel is shown a grating by itself; the amplitudes' root of
      the sum of squares counts, so that coloured edges are edges.
    frequencies: cycles for each pixel.
    angles: of the stripes.

  Returns:
    float64 `[F, len(frequencies), len(angles)]`.

  Raises:
    UserError: not a kernel of an image.
  """
  weights = np.asarray(kernel, np.float64)
  if weights.ndim != 4:
    raise UserError(f'kernel of shape {weights.shape} must be [kh, kw, C, F]')
  frequency, angle = np.asarray(frequencies)[:, None], np.asarray(angles)
  down, right = frequency * np.cos(angle), frequency * np.sin(angle)  # across the stripes
  rows, columns = (np.arange(side) for side in weights.shape[:2])
  waves = lambda places, step: np.exp(2j * np.pi * places * step[..., None])
  transform = np.einsum('yxcf,kay,kax->cfka', weights, waves(rows, down), waves(columns, right))
  return np.sqrt((np.abs(transform) ** 2).sum(0))


def selectivity(responses: Any) -> np.ndarray:
  """1 minus the circular variance of responses, of filters or of any layer to `gratings`.

  Args:
    responses: `[..., A]`, not negative, to A angles at equal distances over half a turn.

  Returns:
    `[...]`, in [0, 1]; 0 where there is no response at all.
  """
  responses = np.asarray(responses, np.float64)
  return np.abs(_mean(responses, np.pi * np.arange(responses.shape[-1]) / responses.shape[-1]))


def _mean(responses: np.ndarray, angles: np.ndarray) -> np.ndarray:
  """The mean response on the circle of doubled angles (half a turn brings a grating back)."""
  total = responses.sum(-1)
  return (responses * np.exp(2j * angles)).sum(-1) / np.where(total > 0, total, 1)


def gratings(
  size: int, *, frequency: float, angles: Sequence[float] = ANGLES, phases: int = 4
) -> np.ndarray:
  """Pictures of sinusoidal gratings, for layers that aren't linear in the image.

  Args:
    size: height and width.
    frequency: cycles for each pixel.
    angles: of the stripes.
    phases: how many, over a whole turn.

  Returns:
    float32 `[len(angles), phases, size, size, 1]`, from -1 to 1.
  """
  angle = np.asarray(angles)[:, None, None, None]
  phase = 2 * np.pi * np.arange(phases)[:, None, None] / phases
  rows, columns = np.arange(size)[:, None], np.arange(size)
  across = rows * np.cos(angle) + columns * np.sin(angle)
  return np.cos(2 * np.pi * frequency * across + phase)[..., None].astype(np.float32)


def pictures(kernel: Any) -> np.ndarray:
  """Filters as pictures: grey is 0, and a filter's largest weight black or white (or coloured).

  Args:
    kernel: `[kh, kw, C, F]`, C being 1 or 3: filters on images.

  Returns:
    float64 `[F, kh, kw, C]` in [0, 1].

  Raises:
    UserError: filters on something else than images.
  """
  weights = np.asarray(kernel, np.float64)
  if weights.ndim != 4 or weights.shape[2] not in (1, 3):
    raise UserError(f'kernel of shape {weights.shape} must be [kh, kw, C, F], C 1 or 3')
  largest = np.abs(weights).max((0, 1, 2))
  return np.moveaxis(0.5 + 0.5 * weights / np.where(largest > 0, largest, 1), -1, 0)


def maps(features: Any) -> np.ndarray:
  """Activation maps as pictures, each from its least (black) to its greatest value (white).

  Args:
    features: of one image, `[H, W, F]`, e.g. `cnnjax.models.features(...)['stage1'][0]`.

  Returns:
    float64 `[F, H, W, 1]` in [0, 1].
  """
  values = np.moveaxis(np.asarray(features, np.float64), -1, 0)[..., None]
  low, high = (f(values, (1, 2, 3), keepdims=True) for f in (np.min, np.max))
  return (values - low) / np.where(high > low, high - low, 1)


def sheet(images: Any, *, columns: int | None = None, gap: int = 1) -> np.ndarray:
  """Pictures side by side on white.

  Args:
    images: `[N, H, W, C]` in [0, 1].
    columns: how many in a row; as many as make it nearly square if None.
    gap: pixels between them.

  Returns:
    `[H', W', C]`, for `imshow`.
  """
  images = np.asarray(images)
  n, height, width, channels = images.shape
  columns = columns or int(np.ceil(np.sqrt(n)))
  rows = -(-n // columns)
  page = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, channels))
  for i, image in enumerate(images):
    top, left = i // columns * (height + gap), i % columns * (width + gap)
    page[top : top + height, left : left + width] = image
  return page
