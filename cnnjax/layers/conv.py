"""Convolution with explicit padding conventions.

`conv` is what models take as their `conv` field. A variant is a partial of it: another primitive
(`conv_general_dilated=fn`), another layer (`layer=untied`: locally connected), another padding.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.layers import init
from cnnjax.layers.geometry import Padding, Pads, Pair, pair, sides


def conv(
  features: int,
  kernel_size: Pair,
  *,
  strides: Pair = 1,
  padding: Padding | str = 'SYMMETRIC',
  dilation: Pair = 1,
  groups: int = 1,
  use_bias: bool = False,
  kernel_init: nn.initializers.Initializer = init.he_fan_out,
  layer: Callable[..., nn.Module] = nn.Conv,
  **options: Any,
) -> nn.Module:
  """A 2-D convolution [N, H, W, C] -> [N, H', W', features], kernel [kh, kw, C / groups, features].

  Args:
    features: output channels.
    kernel_size: height and width; an int is square.
    strides: step in pixels.
    padding: see `pads`.
    dilation: distance between the kernel's taps.
    groups: channel groups that don't see one another; the input's channels make it depthwise.
    use_bias: add a learned bias (not before a normalisation).
    kernel_init: initialiser of the kernel.
    layer: the linen class that is built.
    **options: its other fields (`name`, `dtype`, `conv_general_dilated`, ...).
  """
  kernel_size, dilation = pair(kernel_size), pair(dilation)
  if isinstance(layer, type) and issubclass(layer, nn.Conv):
    options.setdefault('conv_general_dilated', ops.conv_general_dilated)
  return layer(
    features,
    kernel_size,
    strides=pair(strides),
    padding=pads(padding, kernel_size, dilation=dilation),
    kernel_dilation=dilation,
    feature_group_count=groups,
    use_bias=use_bias,
    kernel_init=kernel_init,
    **options,
  )


def depthwise(
  channels: int, kernel_size: Pair, *, multiplier: int = 1, **options: Any
) -> nn.Module:
  """A convolution of every channel by itself, kernel [kh, kw, 1, channels * multiplier].

  Args:
    channels: of the input.
    kernel_size: height and width; an int is square.
    multiplier: output channels for each input channel; they stand together.
    **options: see `conv`.
  """
  return conv(channels * multiplier, kernel_size, groups=channels, **options)


class SeparableConv(nn.Module):
  """A depthwise convolution, then a 1 x 1 (Sifre 2014; Chollet 2016, arXiv:1610.02357).

  Attributes:
    features: output channels.
    kernel_size: of the depthwise convolution.
    multiplier: see `depthwise`.
    use_bias: add a learned bias, after the 1 x 1.
    spatial: other options of the depthwise convolution, as pairs (`strides`, `padding`, ...).
    dtype: compute type; None keeps the input's.
  """

  features: int
  kernel_size: Pair
  multiplier: int = 1
  use_bias: bool = False
  spatial: Any = ()
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    options: dict[str, Any] = {
      'multiplier': self.multiplier,
      'dtype': self.dtype,
      **dict(self.spatial),
    }
    x = depthwise(x.shape[-1], self.kernel_size, **options, name='depthwise')(x)
    options = {'use_bias': self.use_bias, 'dtype': self.dtype}
    return conv(self.features, 1, **options, name='pointwise')(x)


def untied(
  features: int,
  kernel_size: Sequence[int],
  *,
  kernel_init: nn.initializers.Initializer = init.he_fan_out,
  **options: Any,
) -> nn.Module:
  """A locally connected layer: a kernel and a bias of its own at every pixel of the output.

  For `conv(..., layer=untied)`. linen's `ConvLocal`, whose kernel is [H', W', C kh kw, features],
  C slowest; but each pixel's kernel is initialised as the convolution's would be, where linen
  would take the image for a part of the fan.

  Args:
    features: output channels.
    kernel_size: height and width.
    kernel_init: initialiser of one pixel's kernel [kh, kw, C, features].
    **options: the other fields of `nn.ConvLocal`; it has no groups.
  """

  def initialise(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    *pixels, taps, out = shape
    kernel = (*kernel_size, taps // math.prod(kernel_size), out)
    keys = jax.random.split(key, math.prod(pixels))
    kernels = jax.vmap(lambda key: kernel_init(key, kernel, dtype))(keys)  # (H' W', kh, kw, C, F)
    return jnp.moveaxis(kernels, 3, 1).reshape(shape)

  return nn.ConvLocal(features, kernel_size, kernel_init=initialise, **options)


def standardise(kernel: jax.Array, *, epsilon: float = 1e-6) -> jax.Array:
  """A kernel [kh, kw, in, out] with mean 0 and variance 1 over the taps of each output (Qiao et
  al. 2019, arXiv:1903.10520, equations 6 to 8): (w - mean) / sqrt(variance + epsilon), biased.
  """
  centred = kernel - kernel.mean((0, 1, 2), keepdims=True)
  variance = jnp.square(centred).mean((0, 1, 2), keepdims=True)
  return centred * lax.rsqrt(variance + epsilon)


class WSConv(nn.Conv):
  """`nn.Conv` whose kernel is standardised where it is used; for `conv(..., layer=WSConv)`.

  Attributes:
    epsilon: see `standardise`; 1e-6 as in timm.
  """

  epsilon: float = 1e-6

  def param(self, name: str, init_fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    value = super().param(name, init_fn, *args, **options)
    return standardise(value, epsilon=self.epsilon) if name == 'kernel' else value


class ScaledWSConv(WSConv):
  """Scaled weight standardisation (Brock et al. 2021, arXiv:2101.08692, equation 6): the
  standardised kernel times gamma * gain / sqrt(taps), the gain learned per output.

  As in timm, epsilon is added to the variance of the taps; the authors bound taps * variance.

  Attributes:
    gamma: of the activation before it: 1 / (standard deviation of act(normal)).
    gain_init: initialiser of the parameter `gain`, float32 [features].
  """

  gamma: float = 1.0
  gain_init: nn.initializers.Initializer = nn.initializers.ones

  def param(self, name: str, init_fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
    value = super().param(name, init_fn, *args, **options)
    if name != 'kernel':
      return value
    gain = super().param('gain', self.gain_init, (self.features,), self.param_dtype)
    return value * (gain * (self.gamma * math.prod(value.shape[:-1]) ** -0.5))[None, None, None]


def pads(padding: Padding | str, kernel_size: Pair, *, dilation: Pair = 1) -> str | Pads:
  """Explicit padding ((top, bottom), (left, right)) from one of the conventions.

  Args:
    padding: 'SYMMETRIC': `dilation * (kernel - 1) // 2` on every side whatever the stride, as
      PyTorch's models have it. 'SAME': TensorFlow's, output = ceil(input / stride), the odd pixel
      at the end; it depends on the input's size, so it stays a string. 'VALID': none. An int or
      a pair (height, width): as much on both sides. A pair of pairs: as it stands.
    kernel_size: height and width of the kernel.
    dilation: distance between the kernel's taps.
  """
  if not isinstance(padding, str):
    return sides(padding)
  if padding == 'SYMMETRIC':
    sizes = zip(pair(kernel_size), pair(dilation), strict=True)
    return sides([d * (k - 1) // 2 for k, d in sizes])
  if padding in ('SAME', 'VALID'):
    return padding
  raise UserError(f"padding={padding!r} is unknown. Allowed: 'SYMMETRIC', 'SAME', 'VALID', pixels")


def channel_shuffle(x: jax.Array, *, groups: int) -> jax.Array:
  """Deals the channels of `groups` equal groups out in turn: group 1's first, group 2's first, ...

  Zhang et al. 2017 (ShuffleNet), arXiv:1707.01083, section 3.1.

  Args:
    x: [..., C].
    groups: divides C.
  """
  if x.shape[-1] % groups:
    raise UserError(f'channel_shuffle groups={groups} must divide the {x.shape[-1]} channels')
  split = x.reshape(*x.shape[:-1], groups, -1)
  return split.swapaxes(-1, -2).reshape(x.shape)
