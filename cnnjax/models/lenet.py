"""LeNet-5: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-Based Learning Applied to Document
Recognition", section II.B, in the form of most modern retellings: average pooling without
parameters, C3 connected to every map of S2, tanh, and logits in place of the RBF layer.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers import init
from cnnjax.layers.conv import conv
from cnnjax.layers.pool import avg_pool
from cnnjax.models.entry import Entry, check_images


class Stage(nn.Module):
  """Convolution, activation, pooling: C1 and S2, then C3 and S4."""

  features: int
  conv: Callable[..., Any]
  act: Callable[[jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(self.features, 5, padding='VALID', use_bias=True, name='conv')(x)
    return avg_pool(self.act(x), 2)


class Head(nn.Module):
  """Fully connected layers C5 and F6, then the logits; C5 adapts to the size of its input."""

  num_classes: int
  act: Callable[[jax.Array], jax.Array]
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = partial(nn.Dense, kernel_init=init.lecun_tanh)
    x = x.reshape(x.shape[0], -1)  # (N, 5 * 5 * 16) for 32 x 32
    x = self.act(dense(120, dtype=self.dtype, name='dense1')(x))
    x = self.act(dense(84, dtype=self.dtype, name='dense2')(x))
    return dense(self.num_classes, dtype=jnp.float32, name='logits')(x)


class LeNet5(nn.Module):
  """See the module's docstring.

  Images below 32 x 32 are centred on 32 x 32 zeros, as the paper centres its 20 x 20 digits.

  Attributes:
    num_classes: number of logits.
    dtype: compute type; parameters and logits are float32.
    act: activation.
    conv: convolution factory; see `cnnjax.layers.conv`.
  """

  num_classes: int = 10
  dtype: Any = jnp.float32
  act: Callable[[jax.Array], jax.Array] = jnp.tanh
  conv: Callable[..., Any] = conv

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    del train  # nothing here depends on it
    check_images(images, model=self)
    conv = partial(self.conv, dtype=self.dtype, kernel_init=init.lecun_tanh)
    missing = [max(32 - size, 0) for size in images.shape[1:3]]
    x = jnp.pad(images, ((0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)))
    x = Stage(6, conv, self.act, name='stage1')(x)  # (N, 14, 14, 6)
    x = Stage(16, conv, self.act, name='stage2')(x)  # (N, 5, 5, 16)
    return Head(self.num_classes, self.act, self.dtype, name='head')(x)


VARIANTS = {
  'lenet5': Entry(LeNet5, (32, 32, 1), 10, 'LeCun et al. 1998, Proc. IEEE 86(11)'),
}
