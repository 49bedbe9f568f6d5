"""EfficientNets: Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks", arXiv:1905.11946, as torchvision has them.

Stages of inverted residuals with squeeze-and-excitation; B1 to B7 scale B0's widths and depths
(section 3.3). B5 to B7 have TensorFlow's epsilon and momentum in their normalisation. Stochastic
depth (Huang et al. 2016) rises linearly over the blocks, from 0.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import unknown
from cnnjax.layers import init
from cnnjax.layers.attention import SqueezeExcite
from cnnjax.layers.conv import conv
from cnnjax.layers.norm import BatchNorm, bind
from cnnjax.models.entry import Entry, check_images
from cnnjax.models.mobile import (
  Activation,
  ConvNorm,
  Factory,
  Head,
  InvertedResidual,
  Stage,
  round_width,
)
from cnnjax.models.resnet import rematerialise


class Spec(NamedTuple):
  """One stage: `size` blocks, the first of them strided.

  Attributes:
    expansion: a block's inner width, in units of its input's.
    kernel_size: of the convolution that filters.
    strides: of the first block.
    features: output channels.
    size: number of blocks.
    squeeze: the attention's hidden width is the block's input divided by this; 0: no attention.
    block: `InvertedResidual`, or a module or partial with its fields.
  """

  expansion: int
  kernel_size: int
  strides: int
  features: int
  size: int
  squeeze: int = 4
  block: Factory = InvertedResidual


STEMS = {'imagenet': 2, 'cifar': 1}


class EfficientNet(nn.Module):
  """See the module's docstring. The image may have any size.

  Attributes:
    stages: what each consists of.
    num_classes: number of logits.
    features: width of the stem.
    last_features: width of the last 1 x 1 convolution.
    stem: 'imagenet' (3 x 3, stride 2) or 'cifar' (stride 1).
    padding: 'SYMMETRIC', or TensorFlow's 'SAME'.
    dropout: rate before the logits.
    drop_path_rate: probability of dropping a branch that a block after the last would have.
    dtype: compute type; parameters, statistics and logits are float32.
    remat: compute each block's activations again in the backward pass instead of keeping them.
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory; see `cnnjax.layers.norm.bind`.
    act: activation.
  """

  stages: Sequence[Spec]
  num_classes: int = 1000
  features: int = 32
  last_features: int = 1280
  stem: str = 'imagenet'
  padding: str = 'SYMMETRIC'
  dropout: float = 0.2
  drop_path_rate: float = 0.2
  dtype: Any = jnp.float32
  remat: bool = False
  conv: Factory = conv
  norm: Factory | None = BatchNorm
  act: Activation = nn.silu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self)
    if self.stem not in STEMS:
      raise unknown('model.stem', self.stem, STEMS)
    layers = {
      'conv': partial(self.conv, padding=self.padding, dtype=self.dtype),
      'norm': bind(self.norm, train=train, dtype=self.dtype),
      'act': self.act,
    }
    x = ConvNorm(self.features, 3, **layers, strides=STEMS[self.stem], name='stem')(images)
    rate = self.drop_path_rate / sum(spec.size for spec in self.stages)
    done, width = 0, self.features
    for i, spec in enumerate(self.stages, 1):
      block = rematerialise(spec.block) if self.remat else spec.block
      blocks = []
      for j in range(spec.size):
        strides = spec.strides if j == 0 else 1
        shape = (spec.features, spec.expansion * width, spec.kernel_size, strides)
        options = {**layers, 'drop_path': rate * done, 'train': train}
        if spec.squeeze:
          reduced = max(1, width // spec.squeeze)
          options['se'] = partial(SqueezeExcite, reduced, act=self.act, dtype=self.dtype)
        blocks.append(partial(block, *shape, **options))
        done, width = done + 1, spec.features
      x = Stage(tuple(blocks), name=f'stage{i}')(x)
    last = partial(ConvNorm, self.last_features, 1, **layers)
    options = {'kernel_init': init.uniform_fan_out, 'name': 'head'}
    return Head(self.num_classes, last, self.dropout, **options)(x, train)


# B0, table 1: expansion, kernel size, stride, width and depth of each stage.
STAGES = (
  Spec(1, 3, 1, 16, 1),
  Spec(6, 3, 2, 24, 2),
  Spec(6, 5, 2, 40, 2),
  Spec(6, 3, 2, 80, 3),
  Spec(6, 5, 1, 112, 3),
  Spec(6, 5, 2, 192, 4),
  Spec(6, 3, 1, 320, 1),
)


def scale(stages: Sequence[Spec], *, width: float, depth: float) -> tuple[Spec, ...]:
  """The stages with their widths (rounded to multiples of 8) and depths (rounded up) multiplied."""
  return tuple(
    spec._replace(features=round_width(width * spec.features), size=math.ceil(depth * spec.size))
    for spec in stages
  )


def _variant(image: int, width: float, depth: float, dropout: float, **options: Any) -> Entry:
  stages = scale(STAGES, width=width, depth=depth)
  options = {
    'features': round_width(32 * width),
    'last_features': 4 * stages[-1].features,
    'dropout': dropout,
    **options,
  }
  build = partial(EfficientNet, stages=stages, **options)
  return Entry(build, (image, image, 3), paper='Tan & Le 2019, arXiv:1905.11946')


_TENSORFLOW = partial(BatchNorm, epsilon=1e-3, momentum=0.99)

VARIANTS = {
  'efficientnet_b0': _variant(224, 1.0, 1.0, 0.2),
  'efficientnet_b1': _variant(240, 1.0, 1.1, 0.2),
  'efficientnet_b2': _variant(260, 1.1, 1.2, 0.3),
  'efficientnet_b3': _variant(300, 1.2, 1.4, 0.3),
  'efficientnet_b4': _variant(380, 1.4, 1.8, 0.4),
  'efficientnet_b5': _variant(456, 1.6, 2.2, 0.4, norm=_TENSORFLOW),
  'efficientnet_b6': _variant(528, 1.8, 2.6, 0.5, norm=_TENSORFLOW),
  'efficientnet_b7': _variant(600, 2.0, 3.1, 0.5, norm=_TENSORFLOW),
}
