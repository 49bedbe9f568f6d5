"""What every model file shares: how it is listed, and the check of its input."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import UserError


class Entry(NamedTuple):
  """One named model of the zoo.

  Attributes:
    build: a module class or a partial of one; takes `num_classes` and the module's fields.
    image: height, width and channels that the paper has.
    num_classes: classes that the paper has.
    paper: authors, year and where to find it.
  """

  build: Callable[..., nn.Module]
  image: tuple[int, int, int] = (224, 224, 3)
  num_classes: int = 1000
  paper: str = ''


def check_images(images: jax.Array, *, model: nn.Module, smallest: int = 1) -> None:
  """Refuses what isn't a batch of normalised images, or is too small for an architecture.

  Args:
    images: [N, H, W, C], floating point.
    model: whose class the error names.
    smallest: least height and width at which no feature map is empty.

  Raises:
    UserError: names the shape or type and what is allowed.
  """
  name = type(model).__name__
  if images.ndim != 4:
    raise UserError(f'{name} takes images [N, H, W, C], got shape {tuple(images.shape)}')
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise UserError(f'{name} takes normalised floating-point images, got {images.dtype}')
  height, width = images.shape[1:3]
  if min(height, width) < smallest:
    raise UserError(
      f'images of {height}x{width} are too small for this {name}: '
      f'the smallest that works is {smallest}x{smallest}'
    )
