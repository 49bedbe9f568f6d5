"""Layers that are random in training.

What is drawn for an example depends on the 'dropout' key and on that example's id alone: not on
its place in the batch, not on the number of devices, not on the other examples. The ids come from
the collection 'examples': a leaf `id`, int32 [N], at the path of each random layer. Where there is
none, the place in the batch serves. To learn which leaves a model wants, apply it once with
`mutable=['examples']` (under `jax.eval_shape`, say): each random layer then writes its ids there.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.errors import UserError


class Dropout(nn.Module):
  """Zeroes elements with probability `rate` and scales the others by 1 / (1 - rate).

  Srivastava et al. 2014. The identity when not training or at rate 0.

  Attributes:
    rate: probability of zero, in [0, 1].
    train: whether to drop; here or in the call.
    shared_axes: axes of the input along which one draw serves; (1, 2) drops whole feature maps of
      [N, H, W, C] (Tompson et al. 2015).
  """

  rate: float
  train: bool | None = None
  shared_axes: Sequence[int] = ()

  @nn.compact
  def __call__(self, x: jax.Array, train: bool | None = None) -> jax.Array:
    train = nn.merge_param('train', self.train, train)
    return _drop(self, x, rate=self.rate, shared_axes=self.shared_axes, train=train)


class DropPath(nn.Module):
  """Stochastic depth: zeroes the whole of an example (Huang et al. 2016), to end a residual branch.

  Survivors are scaled by 1 / (1 - rate), as everyone does since; the paper scales in evaluation.

  Attributes:
    rate: probability of zero, in [0, 1].
    train: whether to drop; here or in the call.
  """

  rate: float
  train: bool | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool | None = None) -> jax.Array:
    train = nn.merge_param('train', self.train, train)
    return _drop(self, x, rate=self.rate, shared_axes=range(1, x.ndim), train=train)


class DropBlock(nn.Module):
  """Zeroes square patches of every channel (Ghiasi, Lin & Le 2018, arXiv:1810.12890, algorithm 1).

  The seeds of patches are drawn where a whole patch fits, with the probability (equation 1) that
  would zero `rate` of the pixels if none overlapped. What is left is scaled to make up for what
  was zeroed; for each example by itself, where the paper has the whole batch.

  Attributes:
    rate: share of the pixels to zero, in [0, 1].
    block_size: side of a patch; at most the map's own sides are used.
    train: whether to drop; here or in the call.
  """

  rate: float
  block_size: int = 7
  train: bool | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool | None = None) -> jax.Array:
    train = nn.merge_param('train', self.train, train)
    if not 0 <= self.rate <= 1:
      raise UserError(f'dropout rate={self.rate!r} must be from 0 to 1')
    if self.rate == 0:
      return x
    count, *shape = x.shape  # (N, H, W, C)
    ids = example_ids(self, count)
    if not train:
      return x
    key = self.make_rng('dropout')
    height, width, channels = shape
    block = min(self.block_size, height), min(self.block_size, width)
    valid = (height - block[0] + 1, width - block[1] + 1, channels)
    probability = self.rate * height * width / math.prod(block) / (valid[0] * valid[1])
    draw = lambda i: jax.random.bernoulli(jax.random.fold_in(key, i), min(probability, 1.0), valid)
    seeds = jax.vmap(draw)(ids)
    sides = [(0, 0), *((b - 1, b - 1) for b in block), (0, 0)]
    zeroed = lax.reduce_window(seeds, False, lax.bitwise_or, (1, *block, 1), (1,) * 4, sides)
    kept = (~zeroed).sum((1, 2, 3), keepdims=True)
    scale = math.prod(shape) / jnp.maximum(kept, 1).astype(x.dtype)
    return jnp.where(zeroed, jnp.zeros_like(x), x * scale)


def example_ids(module: nn.Module, count: int) -> jax.Array:
  """The ids [count] of the examples that a layer is applied to; see the module's docstring."""
  if module.has_variable('examples', 'id'):
    return module.get_variable('examples', 'id')
  ids = jnp.arange(count, dtype=jnp.int32)
  if module.is_mutable_collection('examples') and not module.is_initializing():
    module.put_variable('examples', 'id', ids)
  return ids


def _drop(
  module: nn.Module, x: jax.Array, *, rate: float, shared_axes: Sequence[int], train: bool
) -> jax.Array:
  if not 0 <= rate <= 1:
    raise UserError(f'dropout rate={rate!r} must be from 0 to 1')
  if rate == 0:
    return x
  ids = example_ids(module, x.shape[0])
  if not train:
    return x
  key = module.make_rng('dropout')
  shared = {axis % x.ndim for axis in shared_axes}
  shape = tuple(1 if axis in shared else size for axis, size in enumerate(x.shape))[1:]
  draw = lambda i: jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rate, shape)
  keep = jax.vmap(draw)(ids)
  scale = 1 / (1 - rate) if rate < 1 else 0.0
  return jnp.where(keep, x * scale, jnp.zeros_like(x))
