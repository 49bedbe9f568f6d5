"""The effective receptive field: how much of its theoretical field a unit makes use of.

Luo, Li, Urtasun & Zemel 2016, "Understanding the Effective Receptive Field in Deep Convolutional
Neural Networks", https://arxiv.org/abs/1701.04128: the gradient of the central unit of a map with
respect to the image's pixels, over images. Many layers of convolution make a Gaussian of it
(section 2), which grows with the square root of their number, where the theoretical field grows
with the number.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.analysis import receptive_field
from cnnjax.errors import UserError, unknown


class EffectiveField(NamedTuple):
  """What the central unit of a map sees; pixel i has its centre at i.

  Attributes:
    theoretical: of the whole map.
    box: (top, left, bottom, right), the central unit's theoretical field within the image, its
      last row and column included.
    mass: `[H, W]` float64, each pixel's share of the gradient; sums to 1.
    mean: (row, column) of the Gaussian of greatest likelihood: the mean of the mass.
    sigma: its standard deviations, (along height, along width), in pixels.
    misfit: share of the mass (0 to 1) that lies elsewhere than the Gaussian's: total variation.
    area95: the fewest pixels that hold 95 % of the mass, as a share of the box's.
  """

  theoretical: receptive_field.Field
  box: tuple[int, int, int, int]
  mass: np.ndarray
  mean: tuple[float, float]
  sigma: tuple[float, float]
  misfit: float
  area95: float


def measure(
  key: jax.Array,
  model: nn.Module,
  variables: Any,
  images: jax.Array,
  *,
  name: str = '',
  signals: int = 1,
  power: int = 2,
  chunk: int = 8,
) -> EffectiveField:
  """Measures the effective field of the central unit of one module's output.

  A signal weighs the unit's channels by independent normal numbers. The mass of a pixel is the
  mean over images, signals and the pixel's channels of |d signal / d pixel|^power.

  Args:
    key: of the signals.
    model: called as `model.apply(variables, images, train=False)`.
    variables: its variables.
    images: [N, H, W, C], normalised as the model takes them, or noise.
    name: path of the module, such as 'stage2/block1'; '' for the logits.
    signals: for each image.
    power: 2 for the mean square: what a stack of linear convolutions with random weights has of
      it, expected over the weights, one with uniform weights has of the magnitude (power 1): its
      kernels convolved with one another (sections 2.1, 2.2).
    chunk: images that are differentiated at once.

  Raises:
    UserError: an unknown name, an option below 1, or a gradient that is zero for every image.
  """
  from cnnjax import models

  _, height, width, channels = images.shape
  fields = receptive_field.fields(model, (height, width, channels))
  found = {field.name: field for field in fields}
  if name not in found:
    raise unknown('name', name, found)

  def fn(images: jax.Array, variables: Any) -> Any:
    if name:
      return models.features(model, variables, images, [name])[name]
    return model.apply(variables, images, train=False)

  options = {'signals': signals, 'power': power, 'chunk': chunk}
  return _mean(key, fn, images, (variables,), found[name], **options)


def measure_fn(
  key: jax.Array,
  fn: Callable[..., jax.Array],
  images: jax.Array,
  *args: Any,
  signals: int = 1,
  power: int = 2,
  chunk: int = 8,
) -> EffectiveField:
  """The effective field of any pure function's output; see `measure`.

  Args:
    key: of the signals.
    fn: called as `fn(images, *args)`; its output `[N, H', W', F]` or `[N, F]` is what it computes
      last.
    images: [N, H, W, C].
    *args: what else it takes: weights, say.
    signals, power, chunk: see `measure`.
  """
  field = receptive_field.fields_fn(fn, images[:1], *args)[-1]
  return _mean(key, fn, images, args, field, signals=signals, power=power, chunk=chunk)


def _mean(
  key: jax.Array,
  fn: Callable[..., Any],
  images: jax.Array,
  args: Any,
  field: receptive_field.Field,
  *,
  signals: int,
  power: int,
  chunk: int,
) -> EffectiveField:
  for option, value in {'signals': signals, 'power': power, 'chunk': chunk}.items():
    if value < 1:
      raise UserError(f'{option}={value} must be at least 1')
  middle = tuple(size // 2 for size in field.output[1:-1])

  def squares(key: jax.Array, image: jax.Array, args: Any) -> jax.Array:
    unit, backward = jax.vjp(lambda x: fn(x[None], *args)[(0, *middle)], image)
    one = lambda key: backward(jax.random.normal(key, unit.shape, unit.dtype))[0]
    gradients = jax.lax.map(one, jax.random.split(key, signals))  # (signals, H, W, C)
    return (jnp.abs(gradients.astype(jnp.float32)) ** power).sum((0, 3))

  @jax.jit
  def total(keys: jax.Array, images: jax.Array, args: Any) -> jax.Array:
    each = jax.lax.map(lambda x: squares(x[0], x[1], args), (keys, images), batch_size=chunk)
    return each.sum(0)

  mass = np.asarray(total(jax.random.split(key, len(images)), images, args), np.float64)
  if not 0 < mass.sum() < np.inf:
    raise UserError(f'name={field.name!r}: the gradient is zero, or not finite, for all images')
  return _describe(field, middle, mass / mass.sum())


def _describe(
  field: receptive_field.Field, middle: tuple[int, ...], mass: np.ndarray
) -> EffectiveField:
  low, high, means, sigmas, sides = [], [], [], [], []
  for axis, size in enumerate(mass.shape):
    centre = field.offset[axis] + field.stride[axis] * (middle[axis] if middle else 0)
    reach, pixels = (field.size[axis] - 1) / 2, np.arange(size)
    low.append(max(math.ceil(centre - reach), 0))
    high.append(min(math.floor(centre + reach), size - 1))
    along = mass.sum(1 - axis)
    mean = along @ pixels
    sigma = math.sqrt(along @ (pixels - mean) ** 2)
    means.append(float(mean))
    sigmas.append(sigma)
    side = np.exp(-(((pixels - mean) / max(sigma, 1e-6)) ** 2) / 2)
    sides.append(side / max(side.sum(), 1e-300))
  pixels95 = int(np.searchsorted(np.cumsum(np.sort(mass, axis=None)[::-1]), 0.95)) + 1
  box_pixels = math.prod(b - a + 1 for a, b in zip(low, high, strict=True))
  return EffectiveField(
    field,
    (*low, *high),
    mass,
    (means[0], means[1]),
    (sigmas[0], sigmas[1]),
    misfit=float(np.abs(mass - np.outer(*sides)).sum() / 2),
    area95=pixels95 / box_pixels,
  )
