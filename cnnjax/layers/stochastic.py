"""Layers that are random in training.

What is drawn for an example depends on the 'dropout' key and on that example's id alone: not on
its place in the batch, not on the number of devices, not on the other examples. The ids come from
the collection 'examples': a leaf `id`, int32 [N], at the path of each random layer. Where there is
none, the place in the batch serves. To learn which leaves a model wants, apply it once with
`mutable=['examples']` (under `jax.eval_shape`, say): each random layer then writes its ids there.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

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
