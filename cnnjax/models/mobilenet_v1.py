"""MobileNet v1: Howard et al. 2017, "MobileNets: Efficient Convolutional Neural Networks for Mobile
Vision Applications", arXiv:1704.04861, table 1.

As timm's `mobilenetv1_100` has it: ReLU6 (the authors' code; the paper says ReLU), padding on
every side by half a kernel, the last block's stride 1 (a slip in the paper's table says 2), and no
normalisation's scale frozen. Dropout is off, as there.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers import init
from cnnjax.layers.conv import conv
from cnnjax.layers.norm import BatchNorm, bind
from cnnjax.models.entry import Entry, check_images
from cnnjax.models.mobile import Activation, ConvNorm, Depthwise, Factory, Head, Stage, round_width

# Width and number of each stage's blocks; every stage but the first halves the image.
STAGES = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))


class Separable(nn.Module):
  """Depthwise 3 x 3 and pointwise convolution, each normalised and activated (figure 3, right)."""

  features: int
  strides: int
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    layers: dict[str, Any] = {'conv': self.conv, 'norm': self.norm, 'act': self.act}
    options: dict[str, Any] = {'strides': self.strides, 'kernel_init': init.he_fan_in}
    x = Depthwise(3, **layers, **options, name='depthwise')(x)
    return ConvNorm(self.features, 1, **layers, name='pointwise')(x)


class MobileNetV1(nn.Module):
  """See the module's docstring. The image may have any size.

  Attributes:
    num_classes: number of logits.
    width: multiplier of every layer's channels (section 3.3).
    dropout: rate before the logits.
    dtype: compute type; parameters, statistics and logits are float32.
    conv, norm, act: see `cnnjax.models.resnet.ResNet`.
  """

  num_classes: int = 1000
  width: float = 1.0
  dropout: float = 0.0
  dtype: Any = jnp.float32
  conv: Factory = conv
  norm: Factory | None = BatchNorm
  act: Activation = nn.relu6

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self)
    layers: dict[str, Any] = {
      'conv': partial(self.conv, dtype=self.dtype),
      'norm': bind(self.norm, train=train, dtype=self.dtype),
      'act': self.act,
    }
    x = ConvNorm(round_width(32 * self.width), 3, **layers, strides=2, name='stem')(images)
    for i, (channels, size) in enumerate(STAGES, 1):
      block = partial(Separable, round_width(channels * self.width), **layers)
      strides = (1 if i == 1 else 2, *(1,) * (size - 1))
      x = Stage(tuple(partial(block, strides=s) for s in strides), name=f'stage{i}')(x)
    head = partial(Head, self.num_classes, dropout=self.dropout, kernel_init=init.uniform_fan_out)
    return head(name='head')(x, train)


VARIANTS = {'mobilenetv1_100': Entry(MobileNetV1, paper='Howard et al. 2017, arXiv:1704.04861')}
