"""Xception: Chollet 2016, "Xception: Deep Learning with Depthwise Separable Convolutions",
arXiv:1610.02357, figure 5; and its aligned form, Chen et al. 2018, "Encoder-Decoder with Atrous
Separable Convolution for Semantic Image Segmentation", arXiv:1802.02611, figure 4.

`xception` is the first, as timm has it (`legacy_xception` there): depthwise and pointwise
convolution with nothing between, strides by pooling. The entry flow's convolutions have PyTorch's
padding, not Keras's. `xception41` and `xception65` are the second, as timm has them: a
normalisation after each depthwise convolution, strides on the third, epsilon 1e-3.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers import init
from cnnjax.layers.conv import conv
from cnnjax.layers.norm import BatchNorm, bind
from cnnjax.layers.pool import global_avg_pool, max_pool
from cnnjax.layers.stochastic import Dropout
from cnnjax.models.entry import Entry, check_images
from cnnjax.models.resnet import Projection, rematerialise

Factory = Callable[..., Any]
Activation = Callable[[jax.Array], jax.Array]


class Separable(nn.Module):
  """Depthwise 3 x 3 and pointwise convolution, then normalisation.

  Attributes:
    features: output channels.
    conv, norm: factories, bound to training mode and compute type.
    strides: of the depthwise convolution.
    between: whether the depthwise convolution has a normalisation too.
    act: activation after each normalisation, or None.
  """

  features: int
  conv: Factory
  norm: Factory
  strides: int = 1
  between: bool = False
  act: Activation | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    act = self.act or (lambda x: x)
    channels = x.shape[-1]
    x = self.conv(channels, 3, strides=self.strides, groups=channels, name='depthwise')(x)
    if self.between:
      x = act(self.norm(name='depthwise_norm')(x))
    x = self.conv(self.features, 1, name='pointwise')(x)
    return act(self.norm(name='norm')(x))


class Block(nn.Module):
  """Chollet's: separable convolutions, pooling where strided, and a shortcut.

  Attributes:
    features: output channels of each separable convolution.
    strides: of the pooling at the end, and the shortcut.
    conv, norm, act: factories and activation, bound to training mode and compute type.
    act_first: whether an activation precedes the first convolution (the stem ends in one).
  """

  features: Sequence[int]
  strides: int
  conv: Factory
  norm: Factory
  act: Activation
  act_first: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = x
    for i, features in enumerate(self.features, 1):
      y = self.act(y) if i > 1 or self.act_first else y
      y = Separable(features, self.conv, self.norm, name=f'conv{i}')(y)
    if self.strides > 1:
      y = max_pool(y, 3, strides=self.strides, padding=1)
    if y.shape[-1] != x.shape[-1] or self.strides > 1:
      features = self.features[-1]
      x = Projection(features, self.strides, self.conv, self.norm, name='shortcut')(x)
    return x + y


class AlignedBlock(nn.Module):
  """Chen et al.'s: three separable convolutions, the last strided, and a shortcut.

  Attributes:
    residual: with a shortcut, activations before the convolutions; without, after their
      normalisations.
    For the others see `Block`.
  """

  features: Sequence[int]
  strides: int
  conv: Factory
  norm: Factory
  act: Activation
  residual: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = x
    for i, features in enumerate(self.features, 1):
      y = self.act(y) if self.residual else y
      y = Separable(
        features,
        self.conv,
        self.norm,
        strides=self.strides if i == len(self.features) else 1,
        between=True,
        act=None if self.residual else self.act,
        name=f'conv{i}',
      )(y)
    if not self.residual:
      return y
    if y.shape[-1] != x.shape[-1] or self.strides > 1:
      features = self.features[-1]
      x = Projection(features, self.strides, self.conv, self.norm, name='shortcut')(x)
    return x + y


class Stem(nn.Module):
  """Two 3 x 3 convolutions to 32 (strided) and 64 channels, each normalised and activated."""

  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(32, 3, strides=2, name='conv1')(x)
    x = self.act(self.norm(name='norm1')(x))
    x = self.conv(64, 3, name='conv2')(x)
    return self.act(self.norm(name='norm2')(x))


class Stage(nn.Module):
  """Blocks: `features` and `strides` of each, and other fields as pairs."""

  blocks: Sequence[tuple[Sequence[int], int, tuple[tuple[str, Any], ...]]]
  block: Factory

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i, (features, strides, options) in enumerate(self.blocks, 1):
      x = self.block(features, strides, **dict(options), name=f'block{i}')(x)
    return x


class Head(nn.Module):
  """Separable convolutions of the given widths, global average, dropout, logits in float32."""

  num_classes: int
  dropout: float
  features: Sequence[int]
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    for i, features in enumerate(self.features, 1):
      x = self.act(Separable(features, self.conv, self.norm, name=f'conv{i}')(x))
    x = global_avg_pool(x.astype(jnp.float32))
    x = Dropout(self.dropout, name='dropout')(x, train)
    start = {'kernel_init': init.torch_uniform, 'bias_init': init.torch_bias(x.shape[-1])}
    return nn.Dense(self.num_classes, **start, name='logits')(x)


class Xception(nn.Module):
  """See the module's docstring.

  Attributes:
    stages: entry, middle and exit flow: the blocks of each (`Stage`).
    block: `Block` or `AlignedBlock`.
    exit_features: widths of the separable convolutions after the blocks.
    stem_padding: of the two convolutions before them.
    kernel_init: initialiser of every convolution.
    num_classes: number of logits.
    smallest: least height and width of the image.
    dropout: rate before the logits (the paper's is 0.5; timm's 0).
    dtype: compute type; parameters, statistics and logits are float32.
    remat: compute each block's activations again in the backward pass instead of keeping them.
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory; see `cnnjax.layers.norm.bind`.
    act: activation.
  """

  stages: Sequence[Sequence[Any]]
  block: Factory
  exit_features: Sequence[int] = ()
  stem_padding: str = 'SYMMETRIC'
  kernel_init: nn.initializers.Initializer = init.torch_uniform
  num_classes: int = 1000
  smallest: int = 1
  dropout: float = 0.0
  dtype: Any = jnp.float32
  remat: bool = False
  conv: Factory = conv
  norm: Factory | None = partial(BatchNorm, epsilon=1e-3)
  act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self, smallest=self.smallest)
    conv = partial(self.conv, dtype=self.dtype, kernel_init=self.kernel_init)
    layers = {
      'conv': conv,
      'norm': bind(self.norm, train=train, dtype=self.dtype),
      'act': self.act,
    }
    block = partial(rematerialise(self.block) if self.remat else self.block, **layers)
    stem_layers = {**layers, 'conv': partial(conv, padding=self.stem_padding)}
    x = Stem(**stem_layers, name='stem')(images)
    for i, blocks in enumerate(self.stages, 1):
      x = Stage(blocks, block, name=f'stage{i}')(x)
    head = Head(self.num_classes, self.dropout, self.exit_features, **layers, name='head')
    return head(x, train)


def _aligned(middle: int) -> Entry:
  entry = tuple(((width,) * 3, 2, ()) for width in (128, 256, 728))
  last = (((728, 1024, 1024), 2, ()), ((1536, 1536, 2048), 1, (('residual', False),)))
  stages = (entry, (((728,) * 3, 1, ()),) * middle, last)
  build = partial(Xception, stages=stages, block=AlignedBlock)
  return Entry(build, (299, 299, 3), paper='Chen et al. 2018, arXiv:1802.02611')


_CHOLLET = (
  (((128, 128), 2, (('act_first', False),)), ((256, 256), 2, ()), ((728, 728), 2, ())),
  (((728,) * 3, 1, ()),) * 8,
  (((728, 1024), 2, ()),),
)

VARIANTS = {
  'xception': Entry(
    partial(
      Xception,
      stages=_CHOLLET,
      block=Block,
      exit_features=(1536, 2048),
      stem_padding='VALID',
      kernel_init=init.he_fan_out,
      smallest=7,
      norm=BatchNorm,
    ),
    (299, 299, 3),
    paper='Chollet 2016, arXiv:1610.02357',
  ),
  'xception41': _aligned(8),
  'xception65': _aligned(16),
}
