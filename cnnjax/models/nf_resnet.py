"""Normaliser-free ResNets: Brock, De & Smith 2021, "Characterizing signal propagation to close the
performance gap in unnormalized ResNets", arXiv:2101.08692.

No normalisation: scaled weight standardisation keeps each branch's variance, a block's input is
divided by its expected standard deviation, and its branch enters with weight alpha (section 3).
`nf_resnet50` is timm's: pre-activation bottlenecks, mean-pooled shortcuts (ResNet-D), the
activation's gain within the convolutions, and the last gain of a branch starts at zero.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import unknown
from cnnjax.layers.conv import ScaledWSConv, conv
from cnnjax.layers.norm import bind
from cnnjax.layers.stochastic import DropPath
from cnnjax.models.entry import Entry, check_images
from cnnjax.models.resnet import (
  SIZES,
  STEMS,
  Activation,
  Factory,
  Head,
  Stage,
  drop,
  identity,
  rematerialise,
)
from cnnjax.models.resnet_d import AvgProjection
from cnnjax.models.resnetv2 import PreActStem

# 1 / (standard deviation of a rectified normal variable), as the authors' code has it: an estimate
# 0.06 % above section 4.3's sqrt(2 / (1 - 1 / pi)).
RELU_GAIN = 1.7139588594436646


class NFBottleneck(nn.Module):
  """x + alpha * f(beta * x), f being 1 x 1, 3 x 3, 1 x 1 convolutions, each after an activation.

  Attributes:
    features: 4 * features channels leave it.
    strides: of the 3 x 3 convolution.
    conv, act: factory and activation.
    alpha: weight of the branch.
    beta: of the input: 1 / its expected standard deviation.
    drop_path: stands at the branch's end.
  """

  features: int
  strides: int
  conv: Factory
  act: Activation
  alpha: float
  beta: float
  drop_path: Activation = identity

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.act(x) * self.beta
    if self.strides != 1 or x.shape[-1] != 4 * self.features:
      shortcut = AvgProjection(
        4 * self.features, self.strides, self.conv, bind(None), name='shortcut'
      )
      x = shortcut(y)
    y = self.act(self.conv(self.features, 1, name='conv1')(y))
    y = self.act(self.conv(self.features, 3, strides=self.strides, name='conv2')(y))
    y = self.conv(4 * self.features, 1, gain_init=nn.initializers.zeros, name='conv3')(y)
    return x + self.alpha * self.drop_path(y)


class NFResNet(nn.Module):
  """See the module's docstring. The image may have any size.

  Attributes:
    stage_sizes: blocks in each stage; every stage but the first halves the image.
    num_classes: number of logits.
    features: width of the stem and the first stage; doubles at every stage.
    alpha: growth of the variance: a block adds alpha² to it.
    stem: 'imagenet' (7 x 7, stride 2, max-pool) or 'cifar' (3 x 3).
    dtype: compute type; parameters and logits are float32.
    remat: compute each block's activations again in the backward pass instead of keeping them.
    drop_path_rate: of the last block; grows linearly from 0 at the first.
    conv: convolution factory, of `ScaledWSConv` with the gain of `act`.
    act: activation.
  """

  stage_sizes: Sequence[int]
  num_classes: int = 1000
  features: int = 64
  alpha: float = 0.2
  stem: str = 'imagenet'
  dtype: Any = jnp.float32
  remat: bool = False
  drop_path_rate: float = 0.0
  conv: Factory = partial(
    conv,
    layer=partial(ScaledWSConv, gamma=RELU_GAIN, epsilon=1e-5),
    use_bias=True,
    kernel_init=nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'),
  )
  act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self)
    if self.stem not in STEMS:
      raise unknown('model.stem', self.stem, STEMS)
    conv = partial(self.conv, dtype=self.dtype)
    block = rematerialise(NFBottleneck) if self.remat else NFBottleneck
    block = partial(block, conv=conv, act=self.act, alpha=self.alpha)
    stem = partial(PreActStem, **STEMS[self.stem])
    x = stem(self.features, conv, bind(None), self.act, name='stem')(images)
    count, variance = 0, 1.0
    for i, size in enumerate(self.stage_sizes):
      blocks = []
      for j in range(size):
        rate = self.drop_path_rate * count / max(sum(self.stage_sizes) - 1, 1)
        drop_path = drop(DropPath, rate, train=train)
        strides = 2 if i > 0 and j == 0 else 1
        options = {'beta': variance**-0.5, 'drop_path': drop_path}
        blocks.append(partial(block, self.features * 2**i, strides, **options))
        # A shortcut that is a convolution starts again at variance 1.
        variance = (1.0 if j == 0 else variance) + self.alpha**2
        count += 1
      x = Stage(blocks, name=f'stage{i + 1}')(x)
    return Head(self.num_classes, act=self.act, name='head')(x)


VARIANTS = {
  'nf_resnet50': Entry(
    partial(NFResNet, stage_sizes=SIZES[50]),
    image=(256, 256, 3),
    paper='Brock et al. 2021, arXiv:2101.08692',
  )
}
