"""What excites a unit: found among images, or made from noise or a photo by gradients.

Inversion is Mahendran & Vedaldi 2015, arXiv:1412.0035: an image whose features are given. An image
that raises an activation is Erhan et al. 2009's ("Visualizing higher-layer features of a deep
network", section 4); started from a photo, with jitter, it is DeepDream (Mordvintsev, Olah & Tyka
2015, "Inceptionism").

Functions of images are pure and take `[N, H, W, C]`, e.g.
`lambda x: models.features(model, variables, x, ['stage3'])['stage3']`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnjax.analysis.receptive_field import Field
from cnnjax.errors import UserError


class Strongest(NamedTuple):
  """Where each channel is most active; arrays `[F, count]`, the strongest first.

  Attributes:
    image: index.
    row, column: of the map.
    value: of the activation.
  """

  image: np.ndarray
  row: np.ndarray
  column: np.ndarray
  value: np.ndarray


def strongest(maps: Any, count: int) -> Strongest:
  """Finds each channel's strongest activations, at most one of each image.

  Args:
    maps: `[N, H, W, F]`.
    count: how many, at most N.

  Raises:
    UserError: fewer images than `count`.
  """
  maps = np.asarray(maps)
  n, _, width, channels = maps.shape
  if not 1 <= count <= n:
    raise UserError(f'count={count} must be between 1 and the number of images, {n}')
  flat = maps.reshape(n, -1, channels)
  place = flat.argmax(1)  # [N, F]
  value = flat.max(1)
  image = np.argsort(-value, axis=0, kind='stable')[:count]  # [count, F]
  place, value = (np.take_along_axis(x, image, 0).T for x in (place, value))
  return Strongest(image.T, place // width, place % width, value)


def patches(images: Any, found: Strongest, field: Field) -> np.ndarray:
  """What the strongest activations saw: their receptive fields, cut from the images.

  Args:
    images: `[N, H, W, C]`.
    found: by `strongest`, on the maps of these images.
    field: the layer's, by `cnnjax.analysis.fields` for images of this size. One larger than the
      image is cut to it; one that reaches over its border is moved inside.

  Returns:
    `[F, count, h, w, C]`.
  """
  images = np.asarray(images)
  size = [min(int(a), b) for a, b in zip(field.size, images.shape[1:3], strict=True)]
  starts = []
  for i, place in enumerate((found.row, found.column)):
    first = field.offset[i] + field.stride[i] * place - (size[i] - 1) / 2
    starts.append(np.clip(np.round(first).astype(int), 0, images.shape[1 + i] - size[i]))
  rows, columns = (s[..., None] + np.arange(n) for s, n in zip(starts, size, strict=True))
  return images[found.image[..., None, None], rows[..., :, None], columns[..., None, :]]


class Made(NamedTuple):
  """Images made by gradients.

  Attributes:
    images: `[N, H, W, C]`.
    values: `[steps]`, what was lowered or raised, before each step.
  """

  images: jax.Array
  values: jax.Array


def invert(
  key: jax.Array,
  fn: Callable[[jax.Array], jax.Array],
  target: Any,
  shape: tuple[int, int, int, int],
  *,
  steps: int = 400,
  learning_rate: float = 0.05,
  variation: float = 1e-2,
  energy: float = 1e-4,
) -> Made:
  """Images that have given features (Mahendran & Vedaldi 2015, equations 1, 2 and 4).

  Lowers |fn(x) - target|^2 / |target|^2 with two penalties on x, by Adam where the paper has
  gradient descent with momentum, its rate going to 0 by a cosine.

  Args:
    key: of the noise to start from.
    fn: images to features.
    target: the features, of `shape[0]` images.
    shape: of the images.
    steps: of the descent.
    learning_rate: at its start, in the images' units.
    variation: weight of `total_variation`.
    energy: weight of the mean of x^6, the paper's norm, which keeps x in the range of images.

  Returns:
    The images, and the costs.
  """
  target = jnp.asarray(target)
  start = 0.1 * jax.random.normal(key, shape)

  def cost(x: jax.Array) -> jax.Array:
    error = jnp.sum((fn(x) - target) ** 2) / jnp.sum(target**2)
    return error + variation * total_variation(x) + energy * jnp.mean(x**6)

  return _descend(key, cost, start, steps, learning_rate, 0, None)


def maximise(
  key: jax.Array,
  score: Callable[[jax.Array], jax.Array],
  start: Any,
  *,
  steps: int = 200,
  learning_rate: float = 0.05,
  jitter: int = 4,
  variation: float = 1e-2,
  bounds: tuple[float, float] | None = None,
) -> Made:
  """Changes images so that activations rise.

  Args:
    key: of the jitter.
    score: images to a number, e.g. the mean of a channel, or of a layer's squares (DeepDream).
    start: images: noise, or photos.
    steps: of the ascent, by Adam, its rate going to 0 by a cosine.
    learning_rate: at its start, in the images' units.
    jitter: each step sees the images rolled by up to so many pixels along both sides, which
      suppresses patterns that hang on one position.
    variation: weight of the penalty on `total_variation`.
    bounds: least and largest value of a pixel.

  Returns:
    The images, and what was raised: score - variation * total variation.
  """
  cost = lambda x: variation * total_variation(x) - score(x)
  made = _descend(key, cost, jnp.asarray(start), steps, learning_rate, jitter, bounds)
  return made._replace(values=-made.values)


def total_variation(images: jax.Array, beta: float = 2.0) -> jax.Array:
  """Mean over images, pixels and channels of |gradient|^beta (Mahendran & Vedaldi's equation 4,
  whose sum would make weights depend on the size).

  Args:
    images: `[N, H, W, C]`.
    beta: exponent.
  """
  down = jnp.diff(images, axis=1, append=images[:, -1:])  # 0 over the border
  right = jnp.diff(images, axis=2, append=images[:, :, -1:])
  squares = down**2 + right**2
  # The root's slope is infinite at 0.
  return jnp.mean(squares if beta == 2 else (squares + 1e-12) ** (beta / 2))


def _descend(
  key: jax.Array,
  cost: Callable[[jax.Array], jax.Array],
  start: jax.Array,
  steps: int,
  learning_rate: float,
  jitter: int,
  bounds: tuple[float, float] | None,
) -> Made:
  optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

  def step(carry: Any, i: jax.Array) -> tuple[Any, jax.Array]:
    images, state = carry
    shift = jax.random.randint(jax.random.fold_in(key, i), (2,), -jitter, jitter + 1)
    seen = lambda x: cost(jnp.roll(x, shift, (1, 2)) if jitter else x)
    value, gradient = jax.value_and_grad(seen)(images)
    updates, state = optimizer.update(gradient, state)
    images = jnp.asarray(optax.apply_updates(images, updates))
    return (images if bounds is None else jnp.clip(images, *bounds), state), value

  @jax.jit
  def run(images: jax.Array) -> Made:
    (images, _), values = jax.lax.scan(step, (images, optimizer.init(images)), jnp.arange(steps))
    return Made(images, values)

  return run(start)
