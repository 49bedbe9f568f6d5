"""What a network makes of moved images: how far its maps move along, and its answers stay.

A layer f is equivariant under a movement T of the image where f(T x) = T' f(x), T' the same
movement on f's own grid; it is invariant where f(T x) = f(x). Both are measured as distances. How
often the answer stays is what Zhang 2019, "Making Convolutional Networks Shift-Invariant Again",
arXiv:1904.11486, calls consistency.

    moves = [shift(0, pixels) for pixels in range(9)]
    errors(model, variables, images, moves)['stage1']  # at each of the moves
    answers = responses(lambda x: model.apply(variables, x), images, moves)
    accuracy(answers, labels), consistency(answers)
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cnnjax import models
from cnnjax.analysis import receptive_field
from cnnjax.data import geometry
from cnnjax.errors import UserError, unknown

Mode = Literal['constant', 'wrap']
Number = float | Array
Maps = dict[str, Array]


@flax.struct.dataclass
class Transform:
  """An affine movement about the centre: result[p] = image[matrix (p - centre) + centre + offset].

  Attributes:
    matrix: 2x2, row by row, from the result's (row, column) to the image's.
    offset: (rows, columns) in the image, pixels.
    mode: what comes in at the sides: 'constant' black (0), 'wrap' what went out on the other side.
  """

  matrix: tuple[Number, Number, Number, Number] = (1.0, 0.0, 0.0, 1.0)
  offset: tuple[Number, Number] = (0.0, 0.0)
  mode: Mode = flax.struct.field(pytree_node=False, default='constant')


def shift(down: float, right: float, *, mode: Mode = 'constant') -> Transform:
  """Moves what the image shows by so many pixels; parts of a pixel are interpolated."""
  return Transform(offset=(-float(down), -float(right)), mode=mode)


def rotation(degrees: float, *, mode: Mode = 'constant') -> Transform:
  """Turns counter-clockwise about the centre."""
  sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
  return Transform((cos, sin, -sin, cos), mode=mode)


def scaling(factor: float, *, mode: Mode = 'constant') -> Transform:
  """Magnifies about the centre, where the factor is above 1."""
  if not factor > 0:
    raise UserError(f'scaling factor={factor!r} must be above 0')
  return Transform((1 / factor, 0.0, 0.0, 1 / factor), mode=mode)


def flip(direction: Literal['horizontal', 'vertical']) -> Transform:
  """Mirrors left and right ('horizontal'), or top and bottom."""
  if direction not in ('horizontal', 'vertical'):
    raise unknown('flip direction', direction, ('horizontal', 'vertical'))
  across = direction == 'horizontal'
  return Transform((1.0, 0.0, 0.0, -1.0) if across else (-1.0, 0.0, 0.0, 1.0))


@jax.jit
def apply(transform: Transform, images: Any) -> Array:
  """The moved images `[N, H, W, C]`, float: exact where whole pixels move, else bilinear."""
  move = lambda image: geometry.warp(image, transform.matrix, transform.offset, mode=transform.mode)
  return jax.vmap(move)(jnp.asarray(images, jnp.float32))


class Grid(NamedTuple):
  """Where a feature map lies in the image.

  Attributes:
    stride: image pixels from one element of the map to the next, (rows, columns).
    centre: of the map, from the image's, (rows, columns) in image pixels.
  """

  stride: tuple[float, float]
  centre: tuple[float, float] = (0.0, 0.0)


def on_map(transform: Transform, grid: Grid) -> Transform:
  """T' of T: the same movement of the image's plane, in the elements of a map.

  A shift by s pixels is one by s / stride elements. Where that isn't whole, the map is interpolated
  bilinearly: then also an exact layer, read on a coarser grid, has an error.
  """
  (a, b, c, d), (down, right) = transform.matrix, transform.offset
  (rows, columns), (y, x) = grid
  return dataclasses.replace(  # S^-1 A S, and what A does to a centre that isn't the image's
    transform,
    matrix=(a, b * columns / rows, c * rows / columns, d),
    offset=((a * y + b * x - y + down) / rows, (c * y + d * x - x + right) / columns),
  )


def grids(
  model: nn.Module, image_shape: tuple[int, int, int], shapes: dict[str, tuple[int, ...]]
) -> dict[str, Grid | None]:
  """Where each of a model's maps lies, from its receptive field; in the order of computation.

  Behind a gate that sees the whole image receptive fields don't move; there the map is taken to
  cover the image evenly.

  Args:
    model: called as `model.apply(variables, images)`.
    image_shape: (H, W, C).
    shapes: of the modules' outputs, by name; '' is the model itself.

  Returns:
    None for what isn't a map of more than one element: it can only be invariant.
  """
  fields = {field.name: field for field in receptive_field.fields(model, image_shape)}
  found: dict[str, Grid | None] = {}
  for name in sorted(shapes, key=lambda n: list(fields).index(n) if n in fields else len(fields)):
    size, field = shapes[name][1:3], fields.get(name)
    if len(shapes[name]) != 4 or size == (1, 1):
      found[name] = None
    elif field and field.output[1:3] == size and all(field.stride):
      (height, width), (rows, columns) = field.stride, field.offset
      found[name] = Grid(
        (height, width),
        (
          rows + (height * (size[0] - 1) - image_shape[0] + 1) / 2,
          columns + (width * (size[1] - 1) - image_shape[1] + 1) / 2,
        ),
      )
    else:
      found[name] = Grid((image_shape[0] / size[0], image_shape[1] / size[1]))
  return found


def errors(
  model: nn.Module,
  variables: Any,
  images: Any,
  transforms: Sequence[Transform],
  *,
  names: Iterable[str] | None = None,
  preprocess: Callable[[Array], Array] = lambda images: images,
) -> dict[str, np.ndarray]:
  """The relative equivariance error |f(T x) - T' f(x)| / |f(x)| of every layer f.

  Norms are over all images and elements; what T' brings in from outside a map counts for nothing,
  in the numerator and in the denominator. Of what isn't a map (dense layers, global pooling, the
  logits) it is the error of invariance, |f(T x) - f(x)| / |f(x)|.

  Args:
    model: called as `model.apply(variables, images, train=False)`; without `train` it evaluates.
    variables: its variables.
    images: `[N, H, W, C]`, black being 0.
    transforms: the movements.
    names: of submodules, see `models.features`; None for all.
    preprocess: moved images to what the model takes (a finished run's, `Trained.preprocess`).

  Returns:
    By name, in the order of computation, ending with '', the model's output: float `[T]`.
  """
  images = jnp.asarray(images, jnp.float32)
  wanted = None if names is None else tuple(names)

  @jax.jit
  def look(variables: Any, images: Array) -> Maps:
    x = preprocess(images)
    maps = models.features(model, variables, x, wanted)
    maps = {name: y for name, y in maps.items() if isinstance(y, Array) and y.ndim > 1}
    return maps | {'': jnp.asarray(model.apply(variables, x, train=False))}

  still = look(variables, images)
  height, width, channels = images.shape[1:]
  places = grids(model, (height, width, channels), {name: y.shape for name, y in still.items()})

  @jax.jit
  def compare(still: Maps, moved: Maps, transform: Transform) -> Maps:
    return {
      name: _distance(moved[name], still[name], grid and on_map(transform, grid))
      for name, grid in places.items()
    }

  results = [
    jax.device_get(compare(still, look(variables, apply(transform, images)), transform))
    for transform in transforms
  ]
  return {name: np.array([result[name] for result in results], float) for name in places}


def _distance(moved: Array, still: Array, transform: Transform | None) -> Array:
  if transform is None:
    return jnp.sqrt(jnp.square(moved - still).sum() / jnp.square(still).sum())
  inside = apply(transform, jnp.ones((1, *still.shape[1:3], 1))) > 0.999  # but for rounding
  error = jnp.where(inside, jnp.square(moved - apply(transform, still)), 0).sum()
  return jnp.sqrt(error / jnp.where(inside, apply(transform, jnp.square(still)), 0).sum())


def responses(
  fn: Callable[[Array], Array],
  images: Any,
  transforms: Sequence[Transform],
  *,
  batch_size: int = 256,
) -> np.ndarray:
  """What a classifier answers to every image after every movement.

  Args:
    fn: moved float images `[batch_size, H, W, C]` to logits `[batch_size, K]`; is jitted.
    images: `[N, H, W, C]`, black being 0.
    transforms: the movements.
    batch_size: images at a time.

  Returns:
    Logits `[T, N, K]`.
  """
  step = jax.jit(lambda transform, images: fn(apply(transform, images)))
  count, size = len(images), min(batch_size, len(images))
  rows = np.arange(-(-count // size) * size) % count  # the last batch goes round
  parts = [
    [np.asarray(step(transform, jnp.asarray(np.asarray(images)[part]))) for transform in transforms]
    for part in rows.reshape(-1, size)
  ]
  return np.concatenate(parts, axis=1)[:, :count]


def accuracy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """The share of images `[N]` that is recognised after each movement: `[T, N, K]` -> `[T]`."""
  return (logits.argmax(-1) == np.asarray(labels)[None]).mean(1)


def consistency(logits: np.ndarray) -> float:
  """How likely one image gets the same answer after two different ones of the movements.

  Zhang 2019, section 4, over all pairs of movements instead of drawn ones, and over all images.

  Args:
    logits: `[T, N, K]`, T at least 2.
  """
  count = len(logits)
  if count < 2:
    raise UserError(f'consistency compares at least 2 movements, got logits of {count}')
  votes = np.eye(logits.shape[-1])[logits.argmax(-1)].sum(0)  # [N, K]
  return float((votes * (votes - 1)).sum(-1).mean() / (count * (count - 1)))


class Change(NamedTuple):
  """Of an output after each movement, `[T]`.

  Attributes:
    logits: |moved - still| / |still|, norms over all images.
    probabilities: total variation between the softmax of both, in [0, 1], the images' mean.
    answers: the share of images whose answer is another one.
  """

  logits: np.ndarray
  probabilities: np.ndarray
  answers: np.ndarray


def change(logits: np.ndarray, still: np.ndarray) -> Change:
  """How far a classifier is from invariant: `logits` `[T, N, K]` against `still` `[N, K]`."""
  moved, still = np.asarray(logits), np.asarray(still)[None]
  difference = np.asarray(jax.nn.softmax(moved) - jax.nn.softmax(still))
  return Change(
    np.linalg.norm(moved - still, axis=(1, 2)) / np.linalg.norm(still, axis=(1, 2)),
    np.abs(difference).sum(-1).mean(1) / 2,
    (moved.argmax(-1) != still.argmax(-1)).mean(1),
  )
