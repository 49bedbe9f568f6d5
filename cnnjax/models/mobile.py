"""What the families of mobile networks share: their block, head and rule for widths.

The inverted residual is Sandler et al. 2018's (MobileNet v2, arXiv:1801.04381, figure 4b); MnasNet
changes its kernel, MobileNet v3 adds squeeze-excitation and v4 a depthwise convolution in front.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers.pool import global_avg_pool
from cnnjax.layers.stochastic import Dropout, DropPath

Factory = Callable[..., Any]
Activation = Callable[[jax.Array], jax.Array]
Initializer = nn.initializers.Initializer


def round_width(width: float, *, divisor: int = 8) -> int:
  """The multiple of `divisor` nearest to a scaled width, never below 90 % of it.

  The rule of the authors' TensorFlow code, common to all MobileNets, MnasNet and GhostNet.
  """
  rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
  return rounded + divisor if rounded < 0.9 * width else rounded


class ConvNorm(nn.Module):
  """Convolution, normalisation and, unless `act` is None, activation.

  Attributes:
    features: output channels.
    kernel_size: height and width of the kernel.
    conv, norm: factories, bound to training mode and compute type.
    act: activation, or None.
    strides: of the convolution.
    options: other options of the convolution, as pairs.
  """

  features: int
  kernel_size: int
  conv: Factory
  norm: Factory
  act: Activation | None = None
  strides: int = 1
  options: Any = ()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    options: dict[str, Any] = {'strides': self.strides, **dict(self.options)}
    x = self.conv(self.features, self.kernel_size, **options, name='conv')(x)
    x = self.norm(name='norm')(x)
    return x if self.act is None else self.act(x)


class Depthwise(nn.Module):
  """`ConvNorm` of every channel by itself.

  Attributes:
    kernel_init: initialiser of the kernel, or None for the convolution's. PyTorch's fan_out
      ignores groups; TensorFlow's, of one channel, equals the fan_in.
    For the others see `ConvNorm`.
  """

  kernel_size: int
  conv: Factory
  norm: Factory
  act: Activation | None = None
  strides: int = 1
  kernel_init: Initializer | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    options: dict[str, Any] = {'strides': self.strides, 'groups': x.shape[-1]}
    if self.kernel_init is not None:
      options['kernel_init'] = self.kernel_init
    x = self.conv(x.shape[-1], self.kernel_size, **options, name='conv')(x)
    x = self.norm(name='norm')(x)
    return x if self.act is None else self.act(x)


class InvertedResidual(nn.Module):
  """Expands by a 1 x 1 convolution, filters depthwise, projects linearly; adds the input.

  Where `expanded` equals the input's channels there is no expansion.

  Attributes:
    features: output channels.
    expanded: channels of the depthwise convolution.
    kernel_size: of the depthwise convolution; 0 for none.
    strides: of the depthwise convolution, or of `start` where there is none.
    conv, norm, act: factories and activation, bound to training mode and compute type.
    depthwise_init: see `Depthwise.kernel_init`.
    se: module between depthwise convolution and projection, or None.
    skip: add the input where the shape allows.
    start: kernel size of a depthwise convolution in front, without activation (v4); 0 for none.
    drop_path: probability that an example skips the branch.
    train: whether it may.
  """

  features: int
  expanded: int
  kernel_size: int
  strides: int
  conv: Factory
  norm: Factory
  act: Activation
  depthwise_init: Initializer | None = None
  se: Factory | None = None
  skip: bool = True
  start: int = 0
  drop_path: float = 0.0
  train: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    layers: dict[str, Any] = {'conv': self.conv, 'norm': self.norm}
    depthwise = partial(Depthwise, **layers, kernel_init=self.depthwise_init)
    y = x
    if self.start:
      strides = 1 if self.kernel_size else self.strides
      y = depthwise(self.start, strides=strides, name='start')(y)
    if self.expanded != channels:
      y = ConvNorm(self.expanded, 1, **layers, act=self.act, name='expand')(y)
    if self.kernel_size:
      options: dict[str, Any] = {'strides': self.strides, 'act': self.act}
      y = depthwise(self.kernel_size, **options, name='depthwise')(y)
    if self.se is not None:
      y = self.se(name='se')(y)
    y = ConvNorm(self.features, 1, **layers, name='project')(y)
    if not self.skip or self.strides != 1 or channels != self.features:
      return y
    return x + DropPath(self.drop_path, name='drop_path')(y, self.train)


class Head(nn.Module):
  """An optional 1 x 1 `last` convolution, global average pooling, dropout, logits in float32.

  Attributes:
    num_classes: number of logits.
    last: module of the last convolution, or None.
    dropout: rate before the logits.
    hidden: module after the pooling, [N, C] -> [N, C'], or None.
    act: activation after it.
    kernel_init, bias_init: initialisers of the logits.
  """

  num_classes: int
  last: Factory | None = None
  dropout: float = 0.0
  hidden: Factory | None = None
  act: Activation = nn.relu
  kernel_init: Initializer = nn.initializers.normal(0.01)
  bias_init: Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    if self.last is not None:
      x = self.last(name='last')(x)
    x = global_avg_pool(x.astype(jnp.float32))  # (N, C)
    if self.hidden is not None:
      x = self.act(self.hidden(name='hidden')(x))
    x = Dropout(self.dropout, name='dropout')(x, train).astype(jnp.float32)
    options: dict[str, Any] = {'kernel_init': self.kernel_init, 'bias_init': self.bias_init}
    return nn.Dense(self.num_classes, **options, name='logits')(x)


class Stage(nn.Module):
  """Modules one after the other, as `block1`, `block2`, ..."""

  blocks: tuple[Factory, ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i, block in enumerate(self.blocks, 1):
      x = block(name=f'block{i}')(x)
    return x
