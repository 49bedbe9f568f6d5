"""Convolution with explicit padding conventions.

`conv` is what models take as their `conv` field. A variant is a partial of it: another primitive
(`conv_general_dilated=fn`), another layer (`layer=nn.ConvLocal`, untied weights), another padding.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

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
