"""ShuffleNet v2: Ma et al. 2018, "ShuffleNet V2: Practical Guidelines for Efficient CNN
Architecture Design", arXiv:1807.11164, table 5. Conventions are torchvision's.

The stem is the paper's stage 1, so our `stage1` is its stage 2.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers import init
from cnnjax.layers.conv import channel_shuffle, conv
from cnnjax.layers.norm import BatchNorm, bind
from cnnjax.models.entry import Entry, check_images
from cnnjax.models.mobile import Activation, ConvNorm, Depthwise, Factory, Head, Stage
from cnnjax.models.resnet import Stem

SIZES = (4, 8, 4)


class Right(nn.Module):
  """The branch that every block computes: 1 x 1, depthwise 3 x 3, 1 x 1."""

  features: int
  strides: int
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    pair: dict[str, Any] = {'conv': self.conv, 'norm': self.norm}
    x = ConvNorm(self.features, 1, **pair, act=self.act, name='expand')(x)
    x = Depthwise(3, **pair, strides=self.strides, name='depthwise')(x)
    return ConvNorm(self.features, 1, **pair, act=self.act, name='project')(x)


class Left(nn.Module):
  """The other branch of a strided block: depthwise 3 x 3, 1 x 1."""

  features: int
  strides: int
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    pair: dict[str, Any] = {'conv': self.conv, 'norm': self.norm}
    x = Depthwise(3, **pair, strides=self.strides, name='depthwise')(x)
    return ConvNorm(self.features, 1, **pair, act=self.act, name='project')(x)


class Block(nn.Module):
  """Half of the channels pass, half are computed (figure 3c); strided, both are (3d); shuffled."""

  features: int
  strides: int
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    branch = (self.features // 2, self.strides, self.conv, self.norm, self.act)
    if self.strides == 1:
      left, right = jnp.split(x, 2, -1)
    else:
      left, right = Left(*branch, name='left')(x), x
    right = Right(*branch, name='right')(right)
    return channel_shuffle(jnp.concatenate([left, right], -1), groups=2)


class ShuffleNetV2(nn.Module):
  """See the module's docstring. The image may have any size.

  Attributes:
    features: width of each stage.
    last: width of the last convolution.
    num_classes: number of logits.
    dtype: compute type; parameters, statistics and logits are float32.
    conv, norm, act: see `cnnjax.models.resnet.ResNet`.
  """

  features: tuple[int, ...]
  last: int = 1024
  num_classes: int = 1000
  dtype: Any = jnp.float32
  conv: Factory = partial(conv, kernel_init=init.torch_uniform)
  norm: Factory | None = BatchNorm
  act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self)
    layers: dict[str, Any] = {
      'conv': partial(self.conv, dtype=self.dtype),
      'norm': bind(self.norm, train=train, dtype=self.dtype),
      'act': self.act,
    }
    x = Stem(24, **layers, kernel_size=3, name='stem')(images)
    for i, (features, size) in enumerate(zip(self.features, SIZES, strict=True), 1):
      blocks = [partial(Block, features, 2 if j == 0 else 1, **layers) for j in range(size)]
      x = Stage(tuple(blocks), name=f'stage{i}')(x)
    last = partial(ConvNorm, self.last, 1, **layers)
    dense: dict[str, Any] = {
      'kernel_init': init.torch_uniform,
      'bias_init': init.torch_bias(self.last),
    }
    return Head(self.num_classes, last, **dense, name='head')(x, train)


def _variant(*features: int, last: int = 1024) -> Entry:
  build = partial(ShuffleNetV2, features=features, last=last)
  return Entry(build, paper='Ma et al. 2018, arXiv:1807.11164')


VARIANTS = {
  'shufflenet_v2_x0_5': _variant(48, 96, 192),
  'shufflenet_v2_x1_0': _variant(116, 232, 464),
  'shufflenet_v2_x1_5': _variant(176, 352, 704),
  'shufflenet_v2_x2_0': _variant(244, 488, 976, last=2048),
}
