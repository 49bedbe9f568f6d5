"""Attention over channels and positions: gates in (0, 1) that multiply the input.

Each layer maps [N, H, W, C] to the same shape, and ends a block's branch or stands inside it.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import UserError
from cnnjax.layers import init
from cnnjax.layers.conv import conv
from cnnjax.layers.pool import global_avg_pool

Activation = Callable[[jax.Array], jax.Array]


class SqueezeExcite(nn.Module):
  """Squeeze-and-excitation (Hu, Shen & Sun 2018, arXiv:1709.01507, equations 2 to 4).

  The mean of each channel passes two dense layers, `reduce` and `expand`, whose gates scale the
  channels. (Public PyTorch models write the dense layers as 1 x 1 convolutions.)

  Attributes:
    reduced: channels between the two layers; None for C / `reduction`.
    reduction: the paper's r.
    act: activation between them.
    gate: what makes gates of the outputs, `nn.hard_sigmoid` for MobileNetV3.
    dtype: compute type; None keeps the input's.
  """

  reduced: int | None = None
  reduction: int = 16
  act: Activation = nn.relu
  gate: Activation = nn.sigmoid
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels, dtype = x.shape[-1], self.dtype or x.dtype
    reduced = self.reduced or max(channels // self.reduction, 1)
    dense = {'dtype': dtype, 'kernel_init': init.he_fan_out}
    y = global_avg_pool(x)  # (N, C)
    y = self.act(nn.Dense(reduced, name='reduce', **dense)(y))
    y = self.gate(nn.Dense(channels, name='expand', **dense)(y))
    return x.astype(dtype) * y[:, None, None, :]


class ECA(nn.Module):
  """Efficient channel attention (Wang et al. 2020, arXiv:1910.03151, equations 8, 9 and 12).

  One 1-D convolution over the sequence of the channels' means, zero-padded at its ends, in place
  of the dense layers of `SqueezeExcite`.

  Attributes:
    kernel_size: odd; None for the odd number near (log2 C + b) / gamma, at least 3. The authors'
      code rounds that down, and an even number up; so do we.
    gamma, b: of that rule.
    gate: what makes gates of the outputs.
    dtype: compute type; None keeps the input's.
  """

  kernel_size: int | None = None
  gamma: float = 2.0
  b: float = 1.0
  gate: Activation = nn.sigmoid
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtype = self.dtype or x.dtype
    size = self.kernel_size
    if size is None:
      size = max(int((math.log2(x.shape[-1]) + self.b) / self.gamma) | 1, 3)
    if size % 2 == 0:
      raise UserError(f'ECA kernel_size={size!r} must be odd')
    window = {'kernel_size': (size,), 'padding': size // 2, 'use_bias': False}
    y = global_avg_pool(x)[:, :, None]  # (N, C, 1)
    y = nn.Conv(1, **window, dtype=dtype, kernel_init=init.torch_uniform, name='conv')(y)
    return x.astype(dtype) * self.gate(y)[:, None, None, :, 0]


class CBAM(nn.Module):
  """Convolutional block attention: channels, then positions (Woo et al. 2018, arXiv:1807.06521).

  Channels (equation 2): `reduce` and `expand`, shared by the channel's mean and maximum. Positions
  (equation 3): a convolution `spatial` over the mean and maximum of the channels. Neither has
  biases, as the equations have it.

  Attributes:
    reduction: the paper's r.
    kernel_size: of the spatial convolution.
    act: activation between the dense layers.
    gate: what makes gates of the outputs.
    norm: normalisation after the spatial convolution, bound to training mode; the authors' code
      has a batch normalisation there, the paper none.
    dtype: compute type; None keeps the input's.
  """

  reduction: int = 16
  kernel_size: int = 7
  act: Activation = nn.relu
  gate: Activation = nn.sigmoid
  norm: Callable[..., Any] | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels, dtype = x.shape[-1], self.dtype or x.dtype
    x = x.astype(dtype)
    dense = {'dtype': dtype, 'use_bias': False, 'kernel_init': init.he_fan_out}
    reduce = nn.Dense(max(channels // self.reduction, 1), name='reduce', **dense)
    expand = nn.Dense(channels, name='expand', **dense)
    mlp = lambda y: expand(self.act(reduce(y)))
    y = self.gate(mlp(global_avg_pool(x)) + mlp(x.max((1, 2))))  # (N, C)
    x = x * y[:, None, None, :]

    y = jnp.stack([x.mean(-1), x.max(-1)], -1)  # (N, H, W, 2)
    y = conv(1, self.kernel_size, dtype=dtype, name='spatial')(y)
    if self.norm is not None:
      y = self.norm(name='norm')(y)
    return x * self.gate(y)
