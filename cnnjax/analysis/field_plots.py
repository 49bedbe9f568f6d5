"""Pictures of receptive fields, theoretical and effective, over a photo."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnjax.analysis.effective_field import EffectiveField
from cnnjax.errors import UserError


def over_photo(photo: np.ndarray, found: Sequence[EffectiveField]) -> Any:
  """Draws each field over the photo: one panel for each layer.

  The rectangle is the theoretical field; the photo is bright where the gradient is, by the root of
  its magnitude; the line is the ellipse within which 95 % of the fitted Gaussian lie.

  Args:
    photo: `[H, W, 3]` or `[H, W]`, uint8 or floats in [0, 1], of the size that was measured.
    found: by `effective_field.measure`.

  Returns:
    A `matplotlib.figure.Figure`; `figure.savefig(path)` writes it.

  Raises:
    UserError: a photo of another size than the fields'.
  """
  from matplotlib.figure import Figure
  from matplotlib.patches import Ellipse, Rectangle

  size = np.shape(photo)[:2]
  for field in found:
    if field.mass.shape != size:
      raise UserError(f'photo of {size} pixels: the field was measured on {field.mass.shape}')
  figure = Figure(figsize=(2.6 * len(found), 3.3), layout='compressed')
  for axes, field in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
    light = (field.mass / field.mass.max()) ** 0.25
    shade = np.zeros((*size, 4))
    shade[..., 3] = 0.7 * (1 - light)
    axes.imshow(photo, cmap='gray')
    axes.imshow(shade)
    top, left, bottom, right = field.box
    corner, height, width = (left - 0.5, top - 0.5), bottom - top + 1, right - left + 1
    axes.add_patch(Rectangle(corner, width, height, fill=False, color='tab:orange', lw=1.5))
    (y, x), (down, across) = field.mean, field.sigma
    reach = np.sqrt(-2 * np.log(0.05))  # in both directions at once: chi-squared, 2 degrees
    axes.add_patch(Ellipse((x, y), 2 * reach * across, 2 * reach * down, fill=False, color='cyan'))
    margin = 0.02 * max(size)  # for the rectangle of a field that is as large as the image
    axes.set_xlim(-margin, size[1] - 1 + margin)
    axes.set_ylim(size[0] - 1 + margin, -margin)
    axes.set_title(field.theoretical.name or 'logits', fontsize=9)
    sides = ' x '.join(map(str, field.theoretical.size))
    caption = (
      f'sees {sides} px\n95 % in {field.area95:.1%} of it\nsigma {down:.1f} x {across:.1f} px'
    )
    axes.set_xlabel(caption, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
  return figure
