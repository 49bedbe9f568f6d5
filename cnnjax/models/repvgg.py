"""RepVGGs: Ding et al. 2021, "RepVGG: Making VGG-style ConvNets Great Again", arXiv:2101.03697, as
timm has them.

They train with three parallel branches (figure 2) and afterwards are one 3 x 3 convolution per
block: `fuse` makes the plain network out of the trained one, exactly (section 3.3).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import UserError
from cnnjax.layers.conv import conv
from cnnjax.layers.norm import BatchNorm, bind
from cnnjax.models.entry import Entry, check_images
from cnnjax.models.mobile import Activation, ConvNorm, Factory, Head, Stage
from cnnjax.models.resnet import rematerialise


class Branches(nn.Module):
  """3 x 3 and 1 x 1 convolutions and, where the shape stays, the input; each normalised, summed.

  Attributes:
    features: output channels.
    strides: of both convolutions.
    groups: of both convolutions.
    conv, norm, act: factories and activation, bound to training mode and compute type.
  """

  features: int
  strides: int
  groups: int
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    # As timm has it: the norms of a block start small and at random.
    around = lambda mean: lambda *args: mean + nn.initializers.normal(0.1)(*args)
    norm = partial(self.norm, scale_init=around(0.1), bias_init=around(0.0))
    layers = {'conv': self.conv, 'norm': norm, 'strides': self.strides}
    branch = partial(ConvNorm, self.features, **layers, options=(('groups', self.groups),))
    y = branch(1, name='conv1x1')(x) + branch(3, name='conv3x3')(x)
    if y.shape == x.shape:
      y = y + norm(name='identity')(x)
    return self.act(y)


class Plain(nn.Module):
  """What `Branches` becomes: a 3 x 3 convolution with bias, and the activation."""

  features: int
  strides: int
  groups: int
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    options = {'strides': self.strides, 'groups': self.groups, 'use_bias': True}
    return self.act(self.conv(self.features, 3, **options, name='conv')(x))


class RepVGG(nn.Module):
  """See the module's docstring. The image may have any size.

  Attributes:
    stage_sizes: blocks in each stage; the stem is one more.
    features: widths of the stages; the stem's is the first's, at most 64.
    num_classes: number of logits.
    groups: of the convolutions in every second block.
    block: `Branches` or `Plain`.
    dtype: compute type; parameters, statistics and logits are float32.
    remat: compute each block's activations again in the backward pass instead of keeping them.
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory; see `cnnjax.layers.norm.bind`.
    act: activation.
  """

  stage_sizes: Sequence[int]
  features: Sequence[int]
  num_classes: int = 1000
  groups: int = 1
  block: Factory = Branches
  dtype: Any = jnp.float32
  remat: bool = False
  conv: Factory = conv
  norm: Factory | None = BatchNorm
  act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self)
    block = partial(
      rematerialise(self.block) if self.remat else self.block,
      conv=partial(self.conv, dtype=self.dtype),
      norm=bind(self.norm, train=train, dtype=self.dtype),
      act=self.act,
    )
    x = block(min(64, self.features[0]), 2, 1, name='stem')(images)
    for i, (size, features) in enumerate(zip(self.stage_sizes, self.features, strict=True), 1):
      shape = lambda j: (2 if j == 0 else 1, self.groups if j % 2 else 1)
      blocks = tuple(partial(block, features, *shape(j)) for j in range(size))
      x = Stage(blocks, name=f'stage{i}')(x)
    return Head(self.num_classes, name='head')(x, train)


def fuse(model: RepVGG, variables: Mapping[str, Any]) -> tuple[RepVGG, dict[str, Any]]:
  """The plain network of 3 x 3 convolutions that computes what the trained one does.

  In evaluation a normalisation is an affine map, and a 1 x 1 kernel and the identity are 3 x 3
  kernels with zeros around the centre; so the branches sum to one kernel and one bias.

  Args:
    model: with blocks of `Branches` and batch normalisation.
    variables: its `params` and `batch_stats`.

  Returns:
    The same model with blocks of `Plain`, and its variables, `params` alone.

  Raises:
    UserError: another kind of block or normalisation.
  """
  norm = bind(model.norm, train=False)()
  if model.block is not Branches or not isinstance(norm, BatchNorm):
    raise UserError('fuse takes a RepVGG of Branches with BatchNorm; this one is another or plain')

  def affine(params: Any, stats: Any) -> tuple[jax.Array, jax.Array]:
    factor = params['scale'] / jnp.sqrt(stats['var'] + norm.epsilon)
    return factor, params['bias'] - stats['mean'] * factor

  def block(params: Any, stats: Any) -> dict[str, Any]:
    kernel, bias = 0.0, 0.0
    for name in ('conv3x3', 'conv1x1'):
      factor, shift = affine(params[name]['norm'], stats[name]['norm'])
      scaled = params[name]['conv']['kernel'] * factor[None, None, None]
      around = (3 - scaled.shape[0]) // 2
      kernel += jnp.pad(scaled, ((around, around), (around, around), (0, 0), (0, 0)))
      bias += shift
    if 'identity' in params:
      factor, shift = affine(params['identity'], stats['identity'])
      inputs, outputs = kernel.shape[2:]
      # Output o of a grouped convolution sees its own channel as input o modulo the group's width.
      one_hot = jnp.arange(inputs)[:, None] == jnp.arange(outputs)[None] % inputs
      kernel = kernel.at[1, 1].add(one_hot * factor[None])
      bias += shift
    return {'conv': {'kernel': kernel, 'bias': bias}}

  params, stats = variables['params'], variables['batch_stats']
  plain = {'head': params['head'], 'stem': block(params['stem'], stats['stem'])}
  for stage in params.keys() - plain.keys():
    plain[stage] = {name: block(params[stage][name], stats[stage][name]) for name in params[stage]}
  return model.clone(block=Plain), {'params': plain}


def _variant(sizes: Sequence[int], *widths: float, groups: int = 1) -> Entry:
  features = tuple(int(w * c) for w, c in zip(widths, (64, 128, 256, 512), strict=True))
  build = partial(RepVGG, stage_sizes=sizes, features=features, groups=groups)
  return Entry(build, paper='Ding et al. 2021, arXiv:2101.03697')


_A = partial(_variant, (2, 4, 14, 1))
_B = partial(_variant, (4, 6, 16, 1))

# Table 2: factors a, a, a and b of the widths.
VARIANTS = {
  'repvgg_a0': _A(0.75, 0.75, 0.75, 2.5),
  'repvgg_a1': _A(1, 1, 1, 2.5),
  'repvgg_a2': _A(1.5, 1.5, 1.5, 2.75),
  'repvgg_b0': _B(1, 1, 1, 2.5),
  'repvgg_b1': _B(2, 2, 2, 4),
  'repvgg_b1g4': _B(2, 2, 2, 4, groups=4),
  'repvgg_b2': _B(2.5, 2.5, 2.5, 5),
  'repvgg_b3': _B(3, 3, 3, 5),
}
