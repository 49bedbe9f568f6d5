"""ResNets: He, Zhang, Ren & Sun 2015, "Deep Residual Learning for Image Recognition",
arXiv:1512.03385.

`resnet50` and the like are v1.5, as torchvision has them: a bottleneck's stride is on its 3 x 3
convolution. `resnet50_v1` is the paper's, with the stride on the first 1 x 1. The CIFAR form is
the paper's section 4.2: a 3 x 3 stem, three stages, shortcuts without parameters (option A).

Half a dozen later papers each change one part, and their files hand that part to `ResNet`: the
block (its width, groups, shortcut, attention, anti-aliasing, order), the stem, the head.
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
from cnnjax.layers.stochastic import Dropout, DropPath
from cnnjax.models.entry import Entry, check_images

Factory = Callable[..., Any]
Activation = Callable[[jax.Array], jax.Array]

identity: Activation = lambda x: x


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


class Residual(nn.Module):
  """What blocks have in common: their fields, and how branch and shortcut meet.

  Attributes:
    features: width of the stage.
    strides: of the block.
    conv, norm, act: factories and activation, bound to training mode and compute type.
    shortcut: module for the shortcut where the shape changes; takes features, strides, conv, norm.
    attention: factory of a layer for the branch's end (`cnnjax.layers.attention`), or None.
    antialias: `antialias(x, strides=2)` subsamples after the activation, and no convolution of the
      branch has a stride (Zhang 2019); or None.
    dropout: stands before the branch's last convolution (Zagoruyko & Komodakis 2016).
    drop_path: stands at the branch's end (Huang et al. 2016).
    zero_init: the branch starts as zero.
  """

  features: int
  strides: int
  conv: Factory
  norm: Factory
  act: Activation
  shortcut: Factory = Projection
  attention: Factory | None = None
  antialias: Factory | None = None
  dropout: Activation = identity
  drop_path: Activation = identity
  zero_init: bool = False

  @nn.nowrap
  def last_norm(self, name: str) -> Any:
    zeros = {'scale_init': nn.initializers.zeros} if self.zero_init else {}
    return self.norm(name=name, **zeros)

  @nn.nowrap
  def conv_norm_act(
    self,
    y: jax.Array,
    names: tuple[str, str],
    features: int,
    kernel_size: int,
    strides: int = 1,
    **options: Any,
  ) -> jax.Array:
    """A convolution of the branch, the normalisation after it, and its activation."""
    blur = self.antialias if strides != 1 else None
    y = self.conv(features, kernel_size, strides=1 if blur else strides, name=names[0], **options)(
      y
    )
    y = self.act(self.norm(name=names[1])(y))
    return blur(y, strides=strides) if blur else y

  @nn.nowrap
  def join(self, x: jax.Array, y: jax.Array, norm: Factory | None = None) -> jax.Array:
    """The shortcut of x plus the branch y; `norm` for the shortcut's own."""
    if self.attention is not None:
      y = self.attention(name='attention')(y)
    if self.strides != 1 or x.shape[-1] != y.shape[-1]:
      shortcut = partial(self.shortcut, y.shape[-1], self.strides, self.conv)
      x = shortcut(norm or self.norm, name='shortcut')(x)
    return x + self.drop_path(y)


class BasicBlock(Residual):
  """Two 3 x 3 convolutions and a shortcut (figure 5, left)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.conv_norm_act(x, ('conv1', 'norm1'), self.features, 3, self.strides)
    y = self.conv(self.features, 3, name='conv2')(self.dropout(y))
    return self.act(self.join(x, self.last_norm('norm2')(y)))


class Bottleneck(Residual):
  """1 x 1, 3 x 3, 1 x 1 convolutions and a shortcut (figure 5, right); 4 * features channels out.

  Attributes:
    groups: groups of the 3 x 3 convolution (ResNeXt).
    base_width: its channels per group where `features` is 64, scaling with it (WideResNet: 128).
    strided: which convolution has the stride: 2, or the paper's 1.
  """

  groups: int = 1
  base_width: int = 64
  strided: int = 2

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = self.features * self.base_width // 64 * self.groups
    first, second = (self.strides, 1) if self.strided == 1 else (1, self.strides)
    y = self.conv_norm_act(x, ('conv1', 'norm1'), width, 1, first)
    y = self.conv_norm_act(y, ('conv2', 'norm2'), width, 3, second, groups=self.groups)
    y = self.conv(4 * self.features, 1, name='conv3')(self.dropout(y))
    return self.act(self.join(x, self.last_norm('norm3')(y)))


class Stem(nn.Module):
  """First convolution, normalisation, activation, max-pool."""

  features: int
  conv: Factory
  norm: Factory
  act: Activation
  kernel_size: int = 7
  strides: int = 2
  pool: Activation = partial(max_pool, window=3, strides=2, padding=1)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(self.features, self.kernel_size, strides=self.strides, name='conv')(x)
    return self.pool(self.act(self.norm(name='norm')(x)))


# What `stem` may say, as options of the stem's layer.
STEMS = {'imagenet': {}, 'cifar': {'kernel_size': 3, 'strides': 1, 'pool': identity}}


class Stage(nn.Module):
  """Blocks, one after the other."""

  blocks: Sequence[Factory]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i, block in enumerate(self.blocks, 1):
      x = block(name=f'block{i}')(x)
    return x


class Head(nn.Module):
  """Global average pooling and the logits, in float32, initialised as PyTorch's dense layer.

  With `norm` and `act`, these come first: where blocks don't end in an activation (v2).
  """

  num_classes: int
  norm: Factory | None = None
  act: Activation = identity

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.norm is not None:
      x = self.norm(name='norm')(x)
    x = global_avg_pool(self.act(x).astype(jnp.float32))  # (N, C)
    options = {'kernel_init': init.torch_uniform, 'bias_init': init.torch_bias(x.shape[-1])}
    return nn.Dense(self.num_classes, **options, name='logits')(x)


class ResNet(nn.Module):
  """See the module's docstring. The image may have any size.

  Attributes:
    stage_sizes: blocks in each stage; every stage but the first halves the image.
    block: `BasicBlock`, `Bottleneck` or another `Residual`, or a partial of one.
    num_classes: number of logits.
    features: width of the first stage; doubles at every stage.
    stem: 'imagenet' (7 x 7, stride 2, max-pool) or 'cifar' (3 x 3).
    dtype: compute type; parameters, statistics and logits are float32.
    remat: compute each block's activations again in the backward pass instead of keeping them.
    zero_init_residual: start each branch at zero (Goyal et al. 2017, arXiv:1706.02677, 5.1).
    dropout: rate, before each branch's last convolution.
    drop_path_rate: of the last block; grows linearly from 0 at the first (Huang et al. 2016).
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory; see `cnnjax.layers.norm.bind`.
    act: activation.
    stem_layer: `Stem` or a module with its fields.
    stem_features: width of the stem; 0: that of the first stage.
    first_block: options of the very first block alone.
    preactivation: normalise and activate before the head, as blocks don't (v2).
    narrowest: least height and width of a map that is halved.
  """

  stage_sizes: Sequence[int]
  block: Factory
  num_classes: int = 1000
  features: int = 64
  stem: str = 'imagenet'
  dtype: Any = jnp.float32
  remat: bool = False
  zero_init_residual: bool = False
  dropout: float = 0.0
  drop_path_rate: float = 0.0
  conv: Factory = conv
  norm: Factory | None = BatchNorm
  act: Activation = nn.relu
  stem_layer: Factory = Stem
  stem_features: int = 0
  first_block: Any = ()
  preactivation: bool = False
  narrowest: int = 1

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    if self.stem not in STEMS:
      raise unknown('model.stem', self.stem, STEMS)
    halvings = len(self.stage_sizes) - 1 + (2 if self.stem == 'imagenet' else 0)
    check_images(images, model=self, smallest=(self.narrowest - 1) * 2**halvings // 2 + 1)
    conv = partial(self.conv, dtype=self.dtype)
    norm = bind(self.norm, train=train, dtype=self.dtype)
    layers = {'conv': conv, 'norm': norm, 'act': self.act}
    block = rematerialise(self.block) if self.remat else self.block
    dropout = drop(Dropout, self.dropout, train=train)
    block = partial(block, **layers, zero_init=self.zero_init_residual, dropout=dropout)

    stem = partial(self.stem_layer, **STEMS[self.stem])
    x = stem(self.stem_features or self.features, **layers, name='stem')(images)
    last = max(sum(self.stage_sizes) - 1, 1)
    for i, size in enumerate(self.stage_sizes):
      blocks = []
      for j in range(size):
        options = dict(self.first_block) if i == j == 0 else {}
        rate = self.drop_path_rate * (sum(self.stage_sizes[:i]) + j) / last
        options['drop_path'] = drop(DropPath, rate, train=train)
        strides = 2 if i > 0 and j == 0 else 1
        blocks.append(partial(block, self.features * 2**i, strides, **options))
      x = Stage(blocks, name=f'stage{i + 1}')(x)
    before = {'norm': norm, 'act': self.act} if self.preactivation else {}
    return Head(self.num_classes, **before, name='head')(x)


def drop(layer: Factory, rate: float, *, train: bool) -> Activation:
  """`Dropout` or `DropPath` as a function for use in a block; the identity at rate 0."""
  name = 'drop_path' if layer is DropPath else 'dropout'
  return (lambda x: layer(rate, train=train, name=name)(x)) if rate else identity


def rematerialise(block: Factory) -> Factory:
  """`nn.remat` for a module class or a partial of one."""
  if isinstance(block, partial):
    return partial(rematerialise(block.func), *block.args, **block.keywords)
  return nn.remat(block)


_PAPER = 'He et al. 2015, arXiv:1512.03385'

# Blocks per stage of the bottleneck networks (table 1).
SIZES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def imagenet(
  stage_sizes: Sequence[int], block: Factory, *, paper: str = _PAPER, **options: Any
) -> Entry:
  """The entry of a `ResNet` for 224 x 224 images and 1000 classes, with these fields."""
  return Entry(partial(ResNet, stage_sizes=stage_sizes, block=block, **options), paper=paper)


def cifar(
  stage_size: int, block: Factory, *, paper: str = _PAPER, features: int = 16, **options: Any
) -> Entry:
  """The entry of a `ResNet` for 32 x 32 images, 10 classes: three stages of that size."""
  build = partial(ResNet, stage_sizes=(stage_size,) * 3, block=block, features=features)
  return Entry(partial(build, stem='cifar', **options), (32, 32, 3), 10, paper)


_OPTION_A = partial(BasicBlock, shortcut=ZeroPad)

VARIANTS = {
  'resnet18': imagenet((2, 2, 2, 2), BasicBlock),
  'resnet34': imagenet((3, 4, 6, 3), BasicBlock),
  **{f'resnet{depth}': imagenet(sizes, Bottleneck) for depth, sizes in SIZES.items()},
  **{
    f'resnet{depth}_v1': imagenet(sizes, partial(Bottleneck, strided=1))
    for depth, sizes in SIZES.items()
  },
  'resnet18_cifar': imagenet((2, 2, 2, 2), BasicBlock, stem='cifar')._replace(
    image=(32, 32, 3), num_classes=10
  ),
  **{f'cifar_resnet{6 * n + 2}': cifar(n, _OPTION_A) for n in (3, 5, 7, 9, 18)},
}
