"""ResNets: He, Zhang, Ren & Sun 2015, "Deep Residual Learning for Image Recognition",
arXiv:1512.03385.

The ImageNet form is v1.5, as torchvision has it: a bottleneck's stride is on its 3 x 3 convolution
(the paper's is on the first 1 x 1). The CIFAR form is the paper's section 4.2: a 3 x 3 stem, three
stages, shortcuts without parameters (option A). A variant is a partial: of the block (its width,
groups, shortcut), of the stem, of `conv`, `norm` and `act`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import unknown
from cnnjax.layers import init
from cnnjax.layers.conv import conv
from cnnjax.layers.norm import BatchNorm, bind
from cnnjax.layers.pool import global_avg_pool, max_pool
from cnnjax.models.entry import Entry, check_images

Factory = Callable[..., Any]
Activation = Callable[[jax.Array], jax.Array]


class Projection(nn.Module):
  """Shortcut of option B: a strided 1 x 1 convolution and its normalisation."""

  features: int
  strides: int
  conv: Factory
  norm: Factory

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(self.features, 1, strides=self.strides, name='conv')(x)
    return self.norm(name='norm')(x)


class ZeroPad(nn.Module):
  """Shortcut of option A, without parameters: every `strides`-th pixel, new channels zero."""

  features: int
  strides: int
  conv: Factory
  norm: Factory

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x[:, :: self.strides, :: self.strides, :]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1])))


class BasicBlock(nn.Module):
  """Two 3 x 3 convolutions and a shortcut (figure 5, left).

  Attributes:
    features: width of the stage.
    strides: of the first convolution and the shortcut.
    conv, norm, act: factories and activation, bound to training mode and compute type.
    shortcut: module for the shortcut where the shape changes; takes features, strides, conv, norm.
    last_norm: options of the branch's last normalisation (`scale_init`).
  """

  features: int
  strides: int
  conv: Factory
  norm: Factory
  act: Activation
  shortcut: Factory = Projection
  last_norm: Any = ()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.conv(self.features, 3, strides=self.strides, name='conv1')(x)
    y = self.act(self.norm(name='norm1')(y))
    y = self.conv(self.features, 3, name='conv2')(y)
    y = self.norm(name='norm2', **dict(self.last_norm))(y)
    if self.strides != 1 or x.shape[-1] != self.features:
      x = self.shortcut(self.features, self.strides, self.conv, self.norm, name='shortcut')(x)
    return self.act(x + y)


class Bottleneck(nn.Module):
  """1 x 1, 3 x 3, 1 x 1 convolutions and a shortcut (figure 5, right); 4 * features channels out.

  Attributes:
    features: width of the stage.
    groups: groups of the 3 x 3 convolution (ResNeXt).
    base_width: its channels per group where `features` is 64, scaling with it (WideResNet: 128).
    For the others see `BasicBlock`; the stride is on the 3 x 3 convolution.
  """

  features: int
  strides: int
  conv: Factory
  norm: Factory
  act: Activation
  shortcut: Factory = Projection
  last_norm: Any = ()
  groups: int = 1
  base_width: int = 64

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = self.features * self.base_width // 64 * self.groups
    y = self.conv(width, 1, name='conv1')(x)
    y = self.act(self.norm(name='norm1')(y))
    y = self.conv(width, 3, strides=self.strides, groups=self.groups, name='conv2')(y)
    y = self.act(self.norm(name='norm2')(y))
    y = self.conv(4 * self.features, 1, name='conv3')(y)
    y = self.norm(name='norm3', **dict(self.last_norm))(y)
    if self.strides != 1 or x.shape[-1] != 4 * self.features:
      x = self.shortcut(4 * self.features, self.strides, self.conv, self.norm, name='shortcut')(x)
    return self.act(x + y)


class Stem(nn.Module):
  """First convolution, normalisation, activation, and for large images a max-pool."""

  features: int
  conv: Factory
  norm: Factory
  act: Activation
  kernel_size: int = 7
  strides: int = 2
  pool: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(self.features, self.kernel_size, strides=self.strides, name='conv')(x)
    x = self.act(self.norm(name='norm')(x))
    return max_pool(x, 3, strides=2, padding=1) if self.pool else x


STEMS = {'imagenet': Stem, 'cifar': partial(Stem, kernel_size=3, strides=1, pool=False)}


class Stage(nn.Module):
  """`size` blocks, the first of them strided."""

  size: int
  features: int
  strides: int
  block: Factory

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(self.size):
      strides = self.strides if i == 0 else 1
      x = self.block(self.features, strides, name=f'block{i + 1}')(x)
    return x


class Head(nn.Module):
  """Global average pooling and the logits, in float32, initialised as PyTorch's dense layer."""

  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = global_avg_pool(x.astype(jnp.float32))  # (N, C)
    options = {'kernel_init': init.torch_uniform, 'bias_init': init.torch_bias(x.shape[-1])}
    return nn.Dense(self.num_classes, **options, name='logits')(x)


class ResNet(nn.Module):
  """See the module's docstring. The image may have any size.

  Attributes:
    stage_sizes: blocks in each stage; every stage but the first halves the image.
    block: `BasicBlock`, `Bottleneck` or a partial of one.
    num_classes: number of logits.
    features: width of the stem and the first stage; doubles at every stage.
    stem: 'imagenet' (7 x 7, stride 2, max-pool), 'cifar' (3 x 3), or a factory like `Stem`.
    dtype: compute type; parameters, statistics and logits are float32.
    remat: compute each block's activations again in the backward pass instead of keeping them.
    zero_init_residual: start each branch at zero (Goyal et al. 2017, arXiv:1706.02677, 5.1).
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory; see `cnnjax.layers.norm.bind`.
    act: activation.
  """

  stage_sizes: Sequence[int]
  block: Factory
  num_classes: int = 1000
  features: int = 64
  stem: str | Factory = 'imagenet'
  dtype: Any = jnp.float32
  remat: bool = False
  zero_init_residual: bool = False
  conv: Factory = conv
  norm: Factory | None = BatchNorm
  act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self)
    if isinstance(self.stem, str) and self.stem not in STEMS:
      raise unknown('model.stem', self.stem, STEMS)
    layers = {
      'conv': partial(self.conv, dtype=self.dtype),
      'norm': bind(self.norm, train=train, dtype=self.dtype),
      'act': self.act,
    }
    last_norm = (('scale_init', nn.initializers.zeros),) if self.zero_init_residual else ()
    block = rematerialise(self.block) if self.remat else self.block
    block = partial(block, **layers, last_norm=last_norm)
    stem = STEMS[self.stem] if isinstance(self.stem, str) else self.stem

    x = stem(self.features, **layers, name='stem')(images)
    for i, size in enumerate(self.stage_sizes):
      features, strides = self.features * 2**i, 1 if i == 0 else 2
      x = Stage(size, features, strides, block, name=f'stage{i + 1}')(x)
    return Head(self.num_classes, name='head')(x)


def rematerialise(block: Factory) -> Factory:
  """`nn.remat` for a module class or a partial of one."""
  if isinstance(block, partial):
    return partial(rematerialise(block.func), *block.args, **block.keywords)
  return nn.remat(block)


_PAPER = 'He et al. 2015, arXiv:1512.03385'
_CIFAR = {'features': 16, 'stem': 'cifar', 'block': partial(BasicBlock, shortcut=ZeroPad)}


def _imagenet(block: Factory, *stage_sizes: int, paper: str = _PAPER, **options: Any) -> Entry:
  return Entry(partial(ResNet, stage_sizes=stage_sizes, block=block, **options), paper=paper)


def _cifar(depth: int) -> Entry:
  sizes = ((depth - 2) // 6,) * 3
  return Entry(partial(ResNet, stage_sizes=sizes, **_CIFAR), (32, 32, 3), 10, _PAPER)


VARIANTS = {
  'resnet18': _imagenet(BasicBlock, 2, 2, 2, 2),
  'resnet34': _imagenet(BasicBlock, 3, 4, 6, 3),
  'resnet50': _imagenet(Bottleneck, 3, 4, 6, 3),
  'resnet18_cifar': _imagenet(BasicBlock, 2, 2, 2, 2, stem='cifar')._replace(
    image=(32, 32, 3), num_classes=10
  ),
  **{f'cifar_resnet{depth}': _cifar(depth) for depth in (20, 32, 44, 56, 110)},
}
