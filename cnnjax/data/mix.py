"""Mixing of examples: mixup and CutMix, as pure functions of a batch.

The partner of an example is the one before it in the global batch, whose order is random already,
so on several devices only the boundary rows travel. How much is mixed, and where, is drawn for
each example by its id. So the number of devices doesn't change what is computed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from cnnjax.data import recipe

Batch = dict[str, Array]
Mix = Callable[..., Batch]  # (key, batch, *, axis_name) -> batch

_EXAMPLE = 'mixup(alpha=0.2)|cutmix(alpha=1.0)'


def mixup(key: Array, height: int, width: int, *, alpha: float) -> tuple[Array, Array]:
  """The same weight everywhere, from Beta(alpha, alpha).

  Zhang et al. 2018, https://arxiv.org/abs/1710.09412; a weight per example, not per batch.

  Args:
    key: random key.
    height: of the image.
    width: of the image.
    alpha: above 0; the larger, the more is mixed.

  Returns:
    The example's own weight in its image `[H, W]` and in its label, in [0, 1].
  """
  _check_alpha('mixup', alpha)
  share = _beta(key, alpha)
  return jnp.full((height, width), share), share


def cutmix(key: Array, height: int, width: int, *, alpha: float) -> tuple[Array, Array]:
  """A box of the partner's: 1 - Beta(alpha, alpha) of the area, before the sides cut it off.

  Yun et al. 2019, https://arxiv.org/abs/1905.04899. The box has the image's shape and a uniform
  centre; labels are mixed by the area that is left. Arguments and result as of `mixup`.
  """
  _check_alpha('cutmix', alpha)
  share_key, row_key, column_key = jax.random.split(key, 3)
  side = jnp.sqrt(1 - _beta(share_key, alpha))

  def outside(key: Array, length: int) -> Array:
    half = jnp.floor(length * side).astype(jnp.int32) // 2
    center = jax.random.randint(key, (), 0, length)
    place = jnp.arange(length)
    return (place < center - half) | (place >= center + half)

  own = outside(row_key, height)[:, None] | outside(column_key, width)[None, :]
  return own.astype(jnp.float32), own.sum() / (height * width)


MIXES: dict[str, Callable[..., tuple[Array, Array]]] = {'mixup': mixup, 'cutmix': cutmix}


def parse(spec: str, *, num_classes: int) -> Mix | None:
  """A recipe as a function of a key and a batch.

  Args:
    spec: names from MIXES with options, joined by `|`: each example draws one of them.
    num_classes: C.

  Returns:
    None for '', else `f(key, batch, *, axis_name=None) -> batch`: `image` float `[N, H, W, C]` and
    `label` (integer `[N]`, or soft `[N, C]`) mixed with the row before, in the whole batch of all
    devices on `axis_name`; labels become `[N, C]`. Draws are those of `fold_in(key, id)`. What has
    mask 0 isn't mixed into anything. An index outside [0, C) becomes a row of NaN.

  Raises:
    UserError: wrong syntax, an unknown name or option, or a value out of range.
  """
  found = operations(spec)
  # Traces once, without computing, so that a value out of range is reported before training.
  for operation in found:
    jax.eval_shape(lambda key, draw=operation: draw(key, 8, 8), jax.random.key(0))
  return compose(found, num_classes=num_classes) if found else None


def operations(spec: str) -> list[Callable[..., tuple[Array, Array]]]:
  """The operations of a recipe, in order, with their options bound; `compose` puts them together.

  Raises:
    UserError: wrong syntax, an unknown name or option.
  """
  return recipe.parse('mix', spec, MIXES, _EXAMPLE)


def compose(operations: Sequence[Callable[..., tuple[Array, Array]]], *, num_classes: int) -> Mix:
  """One function, as `parse` describes it, of operations that may have options of their own."""

  def draw(key: Array, height: int, width: int) -> tuple[Array, Array]:
    choice_key, *keys = jax.random.split(key, len(operations) + 1)
    drawn = [f(k, height, width) for f, k in zip(operations, keys, strict=True)]
    choice = jax.random.randint(choice_key, (), 0, len(operations))
    return jax.tree.map(lambda *x: jnp.select([choice == i for i in range(len(x))], x), *drawn)

  def mix(key: Array, batch: Batch, *, axis_name: str | None = None) -> Batch:
    images, labels = batch['image'], _soft(batch['label'], num_classes)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch['id'])
    own, share = jax.vmap(lambda k: draw(k, *images.shape[1:3]))(keys)
    partner = _rows_before({'x': images, 'y': labels, 'mask': batch['mask']}, axis_name)
    valid = partner['mask'] > 0

    def blend(x: Array, other: Array, weight: Array) -> Array:
      over = (-1,) + (1,) * (x.ndim - 1)
      return jnp.where(valid.reshape(over), weight * x + (1 - weight) * other, x)

    mixed = {
      'image': blend(images, partner['x'], own[..., None].astype(images.dtype)),
      'label': blend(labels, partner['y'], share[:, None]),
    }
    return {**batch, **mixed}

  return mix


def _beta(key: Array, alpha: float) -> Array:
  """Beta(alpha, alpha) from one draw of two gammas; jax.random.beta compiles twice as long."""
  one, other = jax.random.loggamma(key, alpha, (2,))
  return jax.nn.sigmoid(one - other)


def _check_alpha(name: str, alpha: Any) -> None:
  recipe.check_number(f'mix: {name}', 'alpha', alpha, 0.01, 100)


def _soft(labels: Array, num_classes: int) -> Array:
  if labels.ndim == 2:
    return labels.astype(jnp.float32)
  known = (labels >= 0) & (labels < num_classes)
  return jnp.where(known[:, None], jax.nn.one_hot(labels, num_classes), jnp.nan)


def _rows_before(tree: Mapping[str, Array], axis_name: str | None) -> dict[str, Array]:
  """Row j - 1 of the global batch in place of row j; the last one before the first."""

  def before(x: Array) -> Array:
    last = x[-1:]
    if axis_name is not None:
      count = lax.psum(1, axis_name)
      last = lax.ppermute(last, axis_name, [(i, (i + 1) % count) for i in range(count)])
    return jnp.concatenate([last, x[:-1]])

  return {name: before(x) for name, x in tree.items()}
