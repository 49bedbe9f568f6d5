"""DenseNets: Huang, Liu, van der Maaten & Weinberger 2016, "Densely Connected Convolutional
Networks", arXiv:1608.06993.

The ImageNet form is torchvision's: bottlenecks and compression (BC), table 1. The CIFAR forms are
section 3's "implementation details": a 3 x 3 stem and three blocks, plain or BC. Normalisation and
activation precede each convolution.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import UserError, unknown
from cnnjax.layers import init
from cnnjax.layers.conv import conv
from cnnjax.layers.norm import BatchNorm, Part, bind, normalise_parts, part
from cnnjax.layers.pool import avg_pool, global_avg_pool
from cnnjax.layers.stochastic import Dropout
from cnnjax.models.entry import Entry, check_images
from cnnjax.models.resnet import Activation, Factory, Stem


class PlainStem(nn.Module):
  """A 3 x 3 convolution for small images; the first dense layer normalises."""

  features: int
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return self.conv(self.features, 3, name='conv')(x)


STEMS = {'imagenet': Stem, 'cifar': PlainStem}


class DenseLayer(nn.Module):
  """`growth` new channels from all that precede in the block.

  It takes them as separate arrays, so that with `nn.remat` no concatenation is kept for the
  backward pass (Pleiss et al. 2017, arXiv:1707.06990).

  Attributes:
    growth: output channels, the paper's k.
    bottleneck: the 1 x 1 convolution before the 3 x 3 has this times `growth` channels; 0: none.
    dropout: rate of the output.
    train: whether to drop.
    conv, norm, act: factories and activation, bound to training mode and compute type.
  """

  growth: int
  bottleneck: int
  dropout: float
  train: bool
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, *maps: Part) -> jax.Array:
    x = self.act(normalise_parts(self.norm(name='norm1'), maps))
    if self.bottleneck:
      x = self.conv(self.bottleneck * self.growth, 1, name='conv1')(x)
      x = self.act(self.norm(name='norm2')(x))
    x = self.conv(self.growth, 3, name='conv2' if self.bottleneck else 'conv1')(x)
    return Dropout(self.dropout, name='dropout')(x, self.train)


class Transition(nn.Module):
  """Normalisation, activation, 1 x 1 convolution; then 2 x 2 average pooling."""

  features: int
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.act(self.norm(name='norm')(x))
    return avg_pool(self.conv(self.features, 1, name='conv')(x), 2)


class Stage(nn.Module):
  """The transition (but in the first stage) and a dense block; returns all of its channels."""

  size: int
  transition: Factory | None
  layer: Factory
  norm: Factory

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.transition is not None:
      x = self.transition(name='transition')(x)
    maps = [part(self.norm, x)]
    for i in range(1, self.size + 1):
      maps.append(part(self.norm, self.layer(name=f'layer{i}')(*maps)))
    return jnp.concatenate([m.x for m in maps], -1)


class Head(nn.Module):
  """Normalisation, activation, global average pooling; the logits in float32."""

  num_classes: int
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.act(self.norm(name='norm')(x))
    x = global_avg_pool(x.astype(jnp.float32))  # (N, C)
    return nn.Dense(self.num_classes, kernel_init=init.torch_uniform, name='logits')(x)


class DenseNet(nn.Module):
  """See the module's docstring.

  Attributes:
    stage_sizes: layers in each dense block.
    growth: channels that a layer adds, the paper's k.
    features: width of the stem.
    num_classes: number of logits.
    bottleneck: see `DenseLayer`.
    compression: share of the channels that a transition keeps, the paper's theta.
    dropout: rate after every dense layer. The paper has 0.2 for data without augmentation.
    stem: 'imagenet' (7 x 7, stride 2, max-pool), 'cifar' (3 x 3), or a factory like `Stem`.
    dtype: compute type; parameters, statistics and logits are float32.
    remat: compute the dense layers again in the backward pass: memory linear in depth.
    conv, norm, act: see `cnnjax.models.resnet.ResNet`.
  """

  stage_sizes: tuple[int, ...]
  growth: int = 32
  features: int = 64
  num_classes: int = 1000
  bottleneck: int = 4
  compression: float = 0.5
  dropout: float = 0.0
  stem: str | Factory = 'imagenet'
  dtype: Any = jnp.float32
  remat: bool = False
  conv: Factory = partial(conv, kernel_init=init.he_fan_in)
  norm: Factory | None = BatchNorm
  act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    if isinstance(self.stem, str) and self.stem not in STEMS:
      raise unknown('model.stem', self.stem, STEMS)
    # Transitions round down; the ImageNet stem, a quarter, up.
    halved = 2 ** (len(self.stage_sizes) - 1)
    smallest = {'imagenet': 4 * (halved - 1) + 1, 'cifar': halved}
    check_images(images, model=self, smallest=smallest.get(str(self.stem), 1))
    if not 0 < self.compression <= 1:
      raise UserError(f'model.compression={self.compression} must be above 0 and at most 1')
    layers: dict[str, Any] = {
      'conv': partial(self.conv, dtype=self.dtype),
      'norm': bind(self.norm, train=train, dtype=self.dtype),
      'act': self.act,
    }
    stem = STEMS[self.stem] if isinstance(self.stem, str) else self.stem
    layer = nn.remat(DenseLayer) if self.remat else DenseLayer
    layer = partial(layer, self.growth, self.bottleneck, self.dropout, train, **layers)

    x = stem(self.features, **layers, name='stem')(images)
    for i, size in enumerate(self.stage_sizes, 1):
      kept = int(x.shape[-1] * self.compression)
      transition = partial(Transition, kept, **layers) if i > 1 else None
      x = Stage(size, transition, layer, layers['norm'], name=f'stage{i}')(x)
    return Head(self.num_classes, layers['norm'], self.act, name='head')(x)


_PAPER = 'Huang et al. 2016, arXiv:1608.06993'
_PLAIN = {'bottleneck': 0, 'compression': 1.0}


def _imagenet(*stage_sizes: int, **options: Any) -> Entry:
  return Entry(partial(DenseNet, stage_sizes=stage_sizes, **options), paper=_PAPER)


def _cifar(size: int, features: int, **options: Any) -> Entry:
  options = {'growth': 12, 'features': features, 'stem': 'cifar', **options}
  return Entry(partial(DenseNet, stage_sizes=(size,) * 3, **options), (32, 32, 3), 10, _PAPER)


VARIANTS = {
  'densenet121': _imagenet(6, 12, 24, 16),
  'densenet161': _imagenet(6, 12, 36, 24, growth=48, features=96),
  'densenet169': _imagenet(6, 12, 32, 32),
  'densenet201': _imagenet(6, 12, 48, 32),
  # L = 40 and L = 100: a block has (L - 4) / 3 convolutions, in BC half as many layers.
  'densenet_40_12': _cifar(12, 16, **_PLAIN),
  'densenet_bc_100_12': _cifar(16, 24),
}
