"""Augmentation: pure functions of a key and one float image [H, W, C] in [0, 1], for `vmap`.

A recipe is a string, e.g. 'random_crop(padding=4)|flip_horizontal'. The operation at position i
draws from fold_in(key, i): one added at the end leaves the draws before it as they were, one put
in between moves those after it.
"""

import ast
import functools
import inspect
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from cnnjax import errors

Augment = Callable[[Array, Array], Array]


def random_crop(
  key: Array, image: Array, *, padding: int, mode: Literal['constant', 'reflect'] = 'constant'
) -> Array:
  """Pads every side and cuts a window of the original size at a uniform place.

  Args:
    key: random key.
    image: `[H, W, C]`.
    padding: pixels added to each side; with mode 'reflect', fewer than H and W.
    mode: 'constant' pads with zeros (black), 'reflect' mirrors without repeating the edge.

  Returns:
    `[H, W, C]`.
  """
  if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
    raise errors.UserError(f'augment: random_crop(padding={padding!r}) must be an integer >= 0')
  if mode not in ('constant', 'reflect'):
    raise errors.unknown('augment: random_crop mode', mode, ('constant', 'reflect'))
  height, width, _ = image.shape
  if mode == 'reflect' and padding >= min(height, width):
    raise errors.UserError(
      f'augment: random_crop(padding={padding}) must be below the size {height}x{width} to reflect'
    )
  top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
  padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
  # Under vmap this is a copy per image on the CPU: twice as fast as indexing, ten times as one-hot.
  return lax.dynamic_slice(padded, (top, left, 0), image.shape)


def flip_horizontal(key: Array, image: Array, *, probability: float = 0.5) -> Array:
  """Mirrors left and right with the given probability.

  Args:
    key: random key.
    image: `[H, W, C]`.
    probability: in [0, 1].

  Returns:
    `[H, W, C]`.
  """
  number = isinstance(probability, int | float) and not isinstance(probability, bool)
  if not (number and 0 <= probability <= 1):
    raise errors.UserError(
      f'augment: flip_horizontal(probability={probability!r}) must be a number in [0, 1]'
    )
  return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)


def cutout(key: Array, image: Array, *, size: int) -> Array:
  """Blackens a square whose centre is uniform over the image; what lies outside is cut off.

  DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552.

  Args:
    key: random key.
    image: `[H, W, C]`.
    size: side of the square, in pixels.

  Returns:
    `[H, W, C]`.
  """
  if isinstance(size, bool) or not isinstance(size, int) or size < 1:
    raise errors.UserError(f'augment: cutout(size={size!r}) must be an integer >= 1')
  height, width, _ = image.shape

  def covered(key: Array, length: int) -> Array:
    first = jax.random.randint(key, (), 0, length) - size // 2
    place = jnp.arange(length)
    return (place >= first) & (place < first + size)

  row_key, column_key = jax.random.split(key)
  hole = covered(row_key, height)[:, None, None] & covered(column_key, width)[None, :, None]
  return jnp.where(hole, 0.0, image)


AUGMENTATIONS: dict[str, Callable[..., Array]] = {
  'random_crop': random_crop,
  'flip_horizontal': flip_horizontal,
  'cutout': cutout,
}


def parse(spec: str) -> Augment:
  """A recipe as a function of a key and an image; nothing in it is evaluated but literals.

  Args:
    spec: names from AUGMENTATIONS, with keyword options in parentheses, joined by `|`; '' is the
      identity.

  Returns:
    `f(key, image) -> image`.

  Raises:
    UserError: wrong syntax, an unknown name or option, or a value out of range.
  """
  operations = [_operation(node, spec) for node in _nodes(spec)]

  def augment(key: Array, image: Array) -> Array:
    for position, operation in enumerate(operations):
      image = operation(jax.random.fold_in(key, position), image)
    return image

  # Traces once, without computing, so that a value out of range is reported before training.
  jax.eval_shape(augment, jax.random.key(0), jax.ShapeDtypeStruct((256, 256, 3), jnp.float32))
  return augment


def _nodes(spec: str) -> list[ast.expr]:
  """The operations' syntax trees, in order; Python's own grammar reads `a|b(c=1)`."""
  if not isinstance(spec, str):
    raise errors.UserError(f'augment={spec!r} must be a string such as {_EXAMPLE!r}')
  if not spec.strip():
    return []
  try:
    node = ast.parse(spec.strip(), mode='eval').body
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    raise errors.UserError(f'augment={spec!r} has wrong syntax; write e.g. {_EXAMPLE!r}') from error
  nodes = []
  while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
    nodes.append(node.right)
    node = node.left
  return [node, *reversed(nodes)]


def _operation(node: ast.expr, spec: str) -> Augment:
  call = node if isinstance(node, ast.Call) else ast.Call(func=node, args=[], keywords=[])
  if not isinstance(call.func, ast.Name) or call.args or any(k.arg is None for k in call.keywords):
    raise errors.UserError(
      f'augment={spec!r} must be names with keyword options, e.g. {_EXAMPLE!r}'
    )
  name = call.func.id
  if name not in AUGMENTATIONS:
    raise errors.unknown('augment', name, AUGMENTATIONS)
  function = AUGMENTATIONS[name]
  parameters = list(inspect.signature(function).parameters.values())[2:]  # after key, image
  try:
    options = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
  except (ValueError, TypeError, RecursionError, MemoryError) as error:
    raise errors.UserError(f'augment={spec!r}: options must be plain values') from error
  if len(options) < len(call.keywords):
    raise errors.UserError(f'augment={spec!r}: an option of {name} is given twice')
  for option in options:
    if option not in [p.name for p in parameters]:
      raise errors.unknown(f'augment: option of {name}', option, [p.name for p in parameters])
  for p in parameters:
    if p.default is p.empty and p.name not in options:
      raise errors.UserError(f'augment={spec!r}: {name} needs the option {p.name}')
  return functools.partial(function, **options)


_EXAMPLE = 'random_crop(padding=4)|flip_horizontal'
