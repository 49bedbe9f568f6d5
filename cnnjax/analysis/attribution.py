"""Which pixels a class score comes from: gradients, class activation maps and occlusion.

Every map explains one number per image, the logit of its label. The functions are pure, work on any
linen module called as `model.apply(variables, images, train=False) -> logits` and run under
`jax.jit`, which is much faster than calling them as they are. A label that the model doesn't have
gives NaN.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.analysis.guided import guided
from cnnjax.errors import UserError, unknown


def saliency(model: nn.Module, variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
  """The gradient's largest absolute value over the channels of each pixel.

  Simonyan, Vedaldi & Zisserman 2014, arXiv:1312.6034, section 3.1.

  Args:
    model, variables: the network.
    images: `[N, H, W, C]`, floating point, normalised.
    labels: `[N]`, integers: the classes whose logits are explained.

  Returns:
    `[N, H, W]`, nonnegative, in logits per unit of a pixel.
  """
  return jnp.abs(_gradient(_scorer(model, variables, labels), images)).max(-1)


def guided_backprop(
  model: nn.Module, variables: Any, images: jax.Array, labels: jax.Array
) -> jax.Array:
  """The gradient of which every ReLU passes back only what is positive.

  Springenberg, Dosovitskiy, Brox & Riedmiller 2015, arXiv:1412.6806, section 3.4.

  Args:
    model, variables, images, labels: as for `saliency`. Its ReLUs are those that are `nn.relu` or
      `nn.relu6`.

  Returns:
    `[N, H, W, C]`.

  Raises:
    UserError: the model has no ReLU.
  """
  return _gradient(guided(_scorer(model, variables, labels)), images)


def integrated_gradients(
  model: nn.Module,
  variables: Any,
  images: jax.Array,
  labels: jax.Array,
  *,
  steps: int = 50,
  baseline: jax.Array | float = 0.0,
) -> jax.Array:
  """The pixel's distance from a baseline times the mean gradient on the way from there.

  Sundararajan, Taly & Yan 2017, arXiv:1703.01365, equation 1; the integral as a sum over the
  midpoints of `steps` equal parts. An image's attributions add up to its score minus the
  baseline's (completeness), the closer the more steps.

  Args:
    model, variables, images, labels: as for `saliency`.
    steps: gradients to take.
    baseline: an image without information, broadcast to `images`; 0 is the data's mean colour.

  Returns:
    `[N, H, W, C]`, in logits.

  Raises:
    UserError: fewer than one step.
  """
  _check_at_least_one('steps', steps)
  score = _scorer(model, variables, labels)
  start = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)
  along = lambda t: _gradient(score, start + t * (images - start))
  parts = ((jnp.arange(steps) + 0.5) / steps).astype(images.dtype)
  return (images - start) * _mean(along, parts, images)


def smooth_grad(
  key: jax.Array,
  model: nn.Module,
  variables: Any,
  images: jax.Array,
  labels: jax.Array,
  *,
  samples: int = 50,
  noise: float = 0.15,
) -> jax.Array:
  """The mean gradient over noisy copies of the image.

  Smilkov, Thorat, Kim, Viégas & Wattenberg 2017, arXiv:1706.03825, section 3.

  Args:
    key: of the noise.
    model, variables, images, labels: as for `saliency`.
    samples: noisy copies.
    noise: the standard deviation of the noise as a share of the image's range, largest value
      minus least.

  Returns:
    `[N, H, W, C]`, in logits per unit of a pixel.

  Raises:
    UserError: fewer than one sample.
  """
  _check_at_least_one('samples', samples)
  score = _scorer(model, variables, labels)
  axes = (1, 2, 3)
  deviation = noise * (images.max(axes, keepdims=True) - images.min(axes, keepdims=True))
  draw = lambda key: jax.random.normal(key, images.shape, images.dtype)
  noisy = lambda key: _gradient(score, images + deviation * draw(key))
  return _mean(noisy, jax.random.split(key, samples), images)


def grad_cam(
  model: nn.Module,
  variables: Any,
  images: jax.Array,
  labels: jax.Array,
  *,
  layer: str | None = None,
  plus_plus: bool = False,
) -> jax.Array:
  """Where a layer's channels are active, each weighted by what the score gains from it.

  Grad-CAM: Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2. Grad-CAM++: Chattopadhay,
  Sarkar, Howlader & Balasubramanian 2018, arXiv:1710.11063, with equation 19 (Y = exp(score)) for
  the weights of a channel's pixels; the factor exp(score), one number per image, is left out.

  Args:
    model, variables, images, labels: as for `saliency`.
    layer: path of a submodule whose output is a map `[N, h, w, c]`, e.g. 'stage4/block2'; its last
      call, if it has several. None: the last submodule to return a map larger than one pixel.
    plus_plus: Grad-CAM++ instead of Grad-CAM.

  Returns:
    `[N, H, W]`, nonnegative, float32: the layer's heat map, bilinearly resized to the image.

  Raises:
    UserError: there is no such layer, or its output isn't a map.
  """
  path, calls, shape = _find_map(model, variables, images, layer)
  capture = lambda module, method: method == '__call__' and '/'.join(module.path) == path

  def score(offset: jax.Array) -> tuple[jax.Array, Any]:
    seen: list[str] = []

    def add(name: str, output: Any) -> Any:
      seen.append(name)
      return output + offset if name == path and seen.count(path) == calls else output

    with nn.intercept_methods(_after_each(add)):
      logits, state = model.apply(
        variables, images, train=False, capture_intermediates=capture, mutable=['intermediates']
      )
    module = functools.reduce(operator.getitem, path.split('/'), state['intermediates'])
    return _pick(logits, labels).sum(), module['__call__'][-1]

  offset = jnp.zeros(shape.shape, shape.dtype)
  gradient, activation = jax.grad(score, has_aux=True)(offset)
  gradient, activation = (x.astype(jnp.float32) for x in (gradient, activation))
  if plus_plus:
    # Equation 19, g^2 / (2 g^2 + sum(A) g^3), without g^2, which would underflow.
    denominator = 2 + activation.sum((1, 2), keepdims=True) * gradient
    counts = (gradient > 0) & (denominator != 0)
    weights = jnp.where(counts, gradient / jnp.where(counts, denominator, 1), 0).sum((1, 2))
  else:
    weights = gradient.mean((1, 2))
  heat = nn.relu(jnp.einsum('nhwc,nc->nhw', activation, weights))
  return jax.image.resize(heat, images.shape[:3], 'bilinear')


def occlusion(
  model: nn.Module,
  variables: Any,
  images: jax.Array,
  labels: jax.Array,
  *,
  window: int,
  stride: int,
  fill: float = 0.0,
  batch_size: int = 8,
) -> jax.Array:
  """How far the score drops when a square of the image is covered.

  Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2; a pixel has the mean over the squares that
  cover it. The last square of a row or column ends with the image, whatever the stride.

  Args:
    model, variables, images, labels: as for `saliency`.
    window: side of the square, in pixels.
    stride: from one square to the next, in pixels; at most the window, so that none is left out.
    fill: what covers; 0 is the data's mean colour.
    batch_size: squares at a time, each a copy of all images.

  Returns:
    `[N, H, W]`, in logits; negative where the score rises.

  Raises:
    UserError: a window that doesn't fit into the image, or a stride not in 1 to the window.
  """
  _, height, width, _ = images.shape
  if not 1 <= window <= min(height, width):
    raise UserError(f'window={window} must be in 1 to {min(height, width)}, the shorter side')
  if not 1 <= stride <= window:
    raise UserError(f'stride={stride} must be in 1 to {window}, the window')
  score = _scorer(model, variables, labels)

  def spans(size: int) -> jax.Array:
    """[squares, size]: what each covers along one side."""
    starts = jnp.array([*range(0, size - window, stride), size - window])[:, None]
    return (jnp.arange(size)[None] >= starts) & (jnp.arange(size)[None] < starts + window)

  down, across = spans(height), spans(width)
  before = score(images)

  def drop(square: jax.Array) -> jax.Array:
    covered = (down[square[0]][:, None] & across[square[1]][None])[None, :, :, None]
    return before - score(jnp.where(covered, jnp.asarray(fill, images.dtype), images))

  squares = jnp.stack(jnp.divmod(jnp.arange(len(down) * len(across)), len(across)), 1)
  drops = lax.map(drop, squares, batch_size=batch_size).reshape(len(down), len(across), -1)
  total = jnp.einsum('pqn,ph,qw->nhw', drops, down.astype(drops.dtype), across.astype(drops.dtype))
  return total / (down.sum(0)[:, None] * across.sum(0)[None])[None]


def _scorer(model: nn.Module, variables: Any, labels: jax.Array) -> Callable:
  """Images [N, H, W, C] -> the logits [N] of the labels."""
  return lambda images: _pick(model.apply(variables, images, train=False), labels)


def _pick(logits: Any, labels: jax.Array) -> jax.Array:
  if jnp.shape(labels) != logits.shape[:1]:
    raise UserError(f'labels of shape {jnp.shape(labels)} must be {logits.shape[:1]}, one an image')
  return jnp.take_along_axis(logits, jnp.asarray(labels)[:, None], axis=1)[:, 0]


def _gradient(score: Callable, images: jax.Array) -> jax.Array:
  """Of each image's score: in evaluation mode no image changes another's."""
  return jax.grad(lambda x: score(x).sum())(images)


def _mean(fn: Callable, values: jax.Array, like: jax.Array) -> jax.Array:
  """The mean of fn over values, with the memory of one."""
  total, _ = lax.scan(lambda sum_, v: (sum_ + fn(v), None), jnp.zeros_like(like), values)
  return total / len(values)


def _check_at_least_one(name: str, value: int) -> None:
  if value < 1:
    raise UserError(f'{name}={value} must be at least 1')


def _after_each(then: Callable[[str, Any], Any]) -> Callable:
  """An interceptor for linen: `then(path, output)` gives what a submodule returns instead."""

  def intercept(call: Callable, args: Any, kwargs: Any, context: Any) -> Any:
    output = call(*args, **kwargs)
    if context.method_name != '__call__' or not context.module.path:
      return output
    return then('/'.join(context.module.path), output)

  return intercept


def _find_map(
  model: nn.Module, variables: Any, images: jax.Array, layer: str | None
) -> tuple[str, int, jax.ShapeDtypeStruct]:
  """A layer's path, how often it is called, and the shape of its last output; see `grad_cam`."""
  outputs: list[tuple[str, Any]] = []

  def record(name: str, output: Any) -> Any:
    outputs.append((name, output))
    return output

  with nn.intercept_methods(_after_each(record)):
    jax.eval_shape(lambda x: model.apply(variables, x, train=False), images)
  shapes = {name: output for name, output in outputs if jnp.ndim(output) == 4}
  if layer is None:
    larger = [name for name, output in outputs if name in shapes and max(output.shape[1:3]) > 1]
    if not larger:
      raise UserError(f'model={type(model).__name__} has no submodule that returns a map')
    layer = larger[-1]
  if layer not in shapes:
    raise unknown('layer', layer, shapes)
  calls = [name for name, _ in outputs].count(layer)
  return layer, calls, jax.ShapeDtypeStruct(shapes[layer].shape, shapes[layer].dtype)
