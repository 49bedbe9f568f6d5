"""Augmentation: a recipe as a pure function of a key and an image [H, W, C] in [0, 1], for `vmap`.

A recipe is a string, e.g. 'random_crop(padding=4)|flip_horizontal'. The operation at position i
draws from fold_in(key, i): one added at the end leaves the draws before it as they were, one put
in between moves those after it.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from cnnjax import errors
from cnnjax.data import color, erasing, geometry, policy, recipe

Augment = Callable[..., Array]  # (key, image) or, where an operation asks, (key, image, *, visit)

AUGMENTATIONS: dict[str, Callable[..., Array]] = {
  'random_crop': geometry.random_crop,
  'random_resized_crop': geometry.random_resized_crop,
  'flip_horizontal': geometry.flip_horizontal,
  'flip_alternating': geometry.flip_alternating,
  'translate': geometry.translate,
  'rotate': geometry.rotate,
  'affine': geometry.affine,
  'color_jitter': color.color_jitter,
  'rand_augment': policy.rand_augment,
  'trivial_augment': policy.trivial_augment,
  'cutout': erasing.cutout,
  'random_erasing': erasing.random_erasing,
}

_EXAMPLE = 'random_crop(padding=4)|flip_horizontal'


def parse(spec: str) -> Augment:
  """A recipe as a function of a key and an image; nothing in it is evaluated but literals.

  Args:
    spec: names from AUGMENTATIONS, with keyword options in parentheses, joined by `|`; '' is the
      identity.

  Returns:
    `f(key, image) -> image`; with an operation that wants to know how often the example was
    shown, `f(key, image, *, visit) -> image`, `visit` an int32 scalar.

  Raises:
    UserError: wrong syntax, an unknown name or option, or a value out of range.
  """
  augment = compose(operations(spec))
  # Traces once, without computing, so that a value out of range is reported before training.
  shape = jax.ShapeDtypeStruct((256, 256, 3), jnp.float32)
  shown = {'visit': jnp.int32(0)} if recipe.takes_visit(augment) else {}
  jax.eval_shape(lambda k, x: augment(k, x, **shown), jax.random.key(0), shape)
  return augment


def operations(spec: str) -> list[Callable[..., Array]]:
  """The operations of a recipe, in order, with their options bound; `compose` puts them together.

  Raises:
    UserError: wrong syntax, an unknown name or option.
  """
  return recipe.parse('augment', spec, AUGMENTATIONS, _EXAMPLE)


def compose(operations: Sequence[Callable[..., Array]]) -> Augment:
  """One function, as `parse` describes it, of operations that may have options of their own."""

  def apply(key: Array, image: Array, shown: dict[str, Array]) -> Array:
    for position, operation in enumerate(operations):
      wanted = shown if recipe.takes_visit(operation) else {}
      image = operation(jax.random.fold_in(key, position), image, **wanted)
    return image

  def augment(key: Array, image: Array) -> Array:
    return apply(key, image, {})

  def augment_visit(key: Array, image: Array, *, visit: Array | None = None) -> Array:
    if visit is None:
      raise errors.UserError('augment: this recipe needs batches with `epoch`, as in training')
    return apply(key, image, {'visit': visit})

  return augment_visit if any(map(recipe.takes_visit, operations)) else augment
