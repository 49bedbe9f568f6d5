"""ConvNeXts: Liu et al. 2022, "A ConvNet for the 2020s", arXiv:2201.03545, as torchvision has them.

Depthwise 7 x 7 convolution, layer normalisation, and two dense layers over the channels of each
pixel with a GELU between (figure 4); layer scale at the end of a branch. Between the stages:
normalisation and a 2 x 2 convolution with stride 2.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax import ops
from cnnjax.layers.conv import conv
from cnnjax.layers.norm import GlobalResponseNorm, LayerScale, bind
from cnnjax.layers.pool import global_avg_pool
from cnnjax.layers.stochastic import DropPath
from cnnjax.models.entry import Entry, check_images
from cnnjax.models.mobile import Activation, Factory
from cnnjax.models.resnet import rematerialise

_normal = nn.initializers.normal(0.02)
layer_norm = partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


class Patches(nn.Module):
  """A convolution of `size` x `size` patches that don't overlap, and normalisation.

  Attributes:
    features: output channels.
    size: of a patch.
    conv, norm: factories, bound to the compute type.
    norm_first: normalise before the convolution.
  """

  features: int
  size: int
  conv: Factory
  norm: Factory
  norm_first: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.norm_first:
      x = self.norm(name='norm')(x)
    x = self.conv(self.features, self.size, strides=self.size, padding='VALID', name='conv')(x)
    return x if self.norm_first else self.norm(name='norm')(x)


class Block(nn.Module):
  """A residual block; see the module's docstring.

  Attributes:
    conv, norm, act: factories and activation, bound to training mode and compute type.
    grn: global response normalisation between the dense layers, in place of layer scale (V2).
    layer_scale: initial scale of the branch.
    drop_path: probability that an example skips the branch.
    train: whether it may.
    dtype: compute type.
  """

  conv: Factory
  norm: Factory
  act: Activation
  grn: bool
  layer_scale: float
  drop_path: float
  train: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    dense = partial(nn.Dense, dtype=self.dtype, kernel_init=_normal, dot_general=ops.dot_general)
    y = self.conv(channels, 7, groups=channels, name='depthwise')(x)
    y = self.norm(name='norm')(y)
    y = self.act(dense(4 * channels, name='expand')(y))
    if self.grn:
      y = GlobalResponseNorm(dtype=self.dtype, name='grn')(y)
    y = dense(channels, name='project')(y)
    if not self.grn:
      y = LayerScale(self.layer_scale, name='layer_scale')(y)
    return x + DropPath(self.drop_path, name='drop_path')(y, self.train)


class Stage(nn.Module):
  """Patches, except in the first stage, and blocks."""

  downsample: Factory | None
  blocks: Sequence[Factory]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.downsample is not None:
      x = self.downsample(name='downsample')(x)
    for i, block in enumerate(self.blocks, 1):
      x = block(name=f'block{i}')(x)
    return x


class Head(nn.Module):
  """Global average pooling, normalisation and the logits, in float32."""

  num_classes: int
  norm: Factory

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = global_avg_pool(x.astype(jnp.float32))  # (N, C)
    x = self.norm(name='norm')(x)
    return nn.Dense(self.num_classes, kernel_init=_normal, name='logits')(x)


class ConvNeXt(nn.Module):
  """See the module's docstring. The image may have any size from 8 patches up.

  Attributes:
    stage_sizes: blocks in each of the stages.
    features: their widths.
    num_classes: number of logits.
    patch_size: side of the stem's patches; 1 or 2 for small images.
    grn: blocks of V2.
    layer_scale: initial scale of the branches; V2 has none.
    drop_path_rate: the last block's probability of dropping its branch; rises linearly from 0.
    dtype: compute type; parameters and logits are float32.
    remat: compute each block's activations again in the backward pass instead of keeping them.
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory; see `cnnjax.layers.norm.bind`.
    act: activation.
  """

  stage_sizes: Sequence[int]
  features: Sequence[int]
  num_classes: int = 1000
  patch_size: int = 4
  grn: bool = False
  layer_scale: float = 1e-6
  drop_path_rate: float = 0.0
  dtype: Any = jnp.float32
  remat: bool = False
  conv: Factory = conv
  norm: Factory | None = layer_norm
  act: Activation = ops.gelu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    smallest = self.patch_size * 2 ** (len(self.stage_sizes) - 1)
    check_images(images, model=self, smallest=smallest)
    layers = {
      'conv': partial(self.conv, use_bias=True, kernel_init=_normal, dtype=self.dtype),
      'norm': bind(self.norm, train=train, dtype=self.dtype),
    }
    block = rematerialise(Block) if self.remat else Block
    block = partial(
      block,
      **layers,
      act=self.act,
      grn=self.grn,
      layer_scale=self.layer_scale,
      train=train,
      dtype=self.dtype,
    )
    x = Patches(self.features[0], self.patch_size, **layers, name='stem')(images)
    last, done = max(sum(self.stage_sizes) - 1, 1), 0
    for i, (size, features) in enumerate(zip(self.stage_sizes, self.features, strict=True)):
      rates = [self.drop_path_rate * (done + j) / last for j in range(size)]
      done += size
      blocks = [partial(block, drop_path=rate) for rate in rates]
      downsample = partial(Patches, features, 2, **layers, norm_first=True) if i else None
      x = Stage(downsample, blocks, name=f'stage{i + 1}')(x)
    norm = bind(self.norm, train=train, dtype=jnp.float32)
    return Head(self.num_classes, norm, name='head')(x)


def _variant(depth: int, width: int, drop_path_rate: float) -> Entry:
  shape = {'stage_sizes': (3, 3, depth, 3), 'features': tuple(width * 2**i for i in range(4))}
  build = partial(ConvNeXt, **shape, drop_path_rate=drop_path_rate)
  return Entry(build, paper='Liu et al. 2022, arXiv:2201.03545')


VARIANTS = {
  'convnext_tiny': _variant(9, 96, 0.1),
  'convnext_small': _variant(27, 96, 0.4),
  'convnext_base': _variant(27, 128, 0.5),
  'convnext_large': _variant(27, 192, 0.5),
}
