"""Inception-v3: Szegedy, Vanhoucke, Ioffe, Shlens & Wojna 2015, "Rethinking the Inception
Architecture for Computer Vision", arXiv:1512.00567, table 1.

As torchvision has it, without the auxiliary classifier (which serves only training) and without
its optional change of the input's normalisation. A block is a table of branches, in the order of
their concatenation, under torchvision's names.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers.conv import conv
from cnnjax.layers.norm import BatchNorm, bind
from cnnjax.layers.pool import avg_pool, max_pool
from cnnjax.models.entry import Entry, check_images
from cnnjax.models.googlenet import ConvNorm, Head
from cnnjax.models.resnet import rematerialise

Factory = Callable[..., Any]
Activation = Callable[[jax.Array], jax.Array]

# A convolution: features, kernel, and stride where it isn't 1 (it then has no padding).
Step = tuple[Any, ...]
# A branch: its name and its steps. Before them may stand a pooling, 'avg' or 'max' (strided);
# the last may be a tuple of two steps side by side.
Branch = tuple[str, tuple[Any, ...]]

POOLS = {
  'avg': partial(avg_pool, window=3, strides=1, padding=1),
  'max': partial(max_pool, window=3, strides=2),
}


class Mixed(nn.Module):
  """Branches side by side, concatenated; see `Branch`.

  A branch of one convolution gives it its name; else they are numbered from 1, and those side by
  side also lettered.
  """

  branches: Sequence[Branch]
  unit: Factory

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return jnp.concatenate([y for branch in self.branches for y in self._run(*branch, x)], -1)

  def _run(self, name: str, steps: tuple[Any, ...], x: jax.Array) -> list[jax.Array]:
    if isinstance(steps[0], str):
      x, steps = POOLS[steps[0]](x), steps[1:]
    for i, step in enumerate(steps, 1):
      if isinstance(step[0], tuple):
        return [
          self._unit(s, f'{name}_{i}{letter}', x) for s, letter in zip(step, 'ab', strict=True)
        ]
      x = self._unit(step, name if len(steps) == 1 else f'{name}_{i}', x)
    return [x]

  def _unit(self, step: Step, name: str, x: jax.Array) -> jax.Array:
    features, kernel_size, *strides = step
    options = (('strides', strides[0]), ('padding', 'VALID')) if strides else ()
    return self.unit(features, kernel_size, options=options, name=name)(x)


def _a(pooled: int) -> tuple[Branch, ...]:
  """Figure 5: the 5 x 5 branch, and the one whose 5 x 5 is two 3 x 3."""
  return (
    ('branch1x1', ((64, 1),)),
    ('branch5x5', ((48, 1), (64, 5))),
    ('branch3x3dbl', ((64, 1), (96, 3), (96, 3))),
    ('branch_pool', ('avg', (pooled, 1))),
  )


def _c(width: int) -> tuple[Branch, ...]:
  """Figure 6: 7 x 7 factorised."""
  row, column = (1, 7), (7, 1)
  doubled = ((width, 1), (width, column), (width, row), (width, column), (192, row))
  return (
    ('branch1x1', ((192, 1),)),
    ('branch7x7', ((width, 1), (width, row), (192, column))),
    ('branch7x7dbl', doubled),
    ('branch_pool', ('avg', (192, 1))),
  )


# Figure 10: from 35 x 35 to 17 x 17.
_B = (
  ('branch3x3', ((384, 3, 2),)),
  ('branch3x3dbl', ((64, 1), (96, 3), (96, 3, 2))),
  ('branch_pool', ('max',)),
)
# From 17 x 17 to 8 x 8.
_D = (
  ('branch3x3', ((192, 1), (320, 3, 2))),
  ('branch7x7x3', ((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2))),
  ('branch_pool', ('max',)),
)
# Figure 7: the filter bank widened.
_WIDE = ((384, (1, 3)), (384, (3, 1)))
_E = (
  ('branch1x1', ((320, 1),)),
  ('branch3x3', ((384, 1), _WIDE)),
  ('branch3x3dbl', ((448, 1), (384, 3), _WIDE)),
  ('branch_pool', ('avg', (192, 1))),
)

STAGES = (
  (_a(32), _a(64), _a(64)),
  (_B, _c(128), _c(160), _c(160), _c(192)),
  (_D, _E, _E),
)


class Stem(nn.Module):
  """Five convolutions, two poolings: 299 x 299 to 35 x 35, 192 channels."""

  unit: Factory

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    valid = ('padding', 'VALID')
    x = self.unit(32, 3, options=(('strides', 2), valid), name='conv1')(x)
    x = self.unit(32, 3, options=(valid,), name='conv2')(x)
    x = max_pool(self.unit(64, 3, name='conv3')(x), 3, strides=2)
    x = self.unit(80, 1, name='conv4')(x)
    x = self.unit(192, 3, options=(valid,), name='conv5')(x)
    return max_pool(x, 3, strides=2)


class Stage(nn.Module):
  """Blocks, given by their branches."""

  blocks: Sequence[Sequence[Branch]]
  block: Factory

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i, branches in enumerate(self.blocks, 1):
      x = self.block(branches, name=f'block{i}')(x)
    return x


class InceptionV3(nn.Module):
  """See the module's docstring.

  Attributes:
    num_classes: number of logits.
    stages: each stage's blocks.
    dropout: rate before the logits.
    dtype: compute type; parameters, statistics and logits are float32.
    remat: compute each block's activations again in the backward pass instead of keeping them.
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory; see `cnnjax.layers.norm.bind`.
    act: activation.
  """

  num_classes: int = 1000
  stages: Sequence[Sequence[Sequence[Branch]]] = STAGES
  dropout: float = 0.5
  dtype: Any = jnp.float32
  remat: bool = False
  conv: Factory = conv
  norm: Factory | None = partial(BatchNorm, epsilon=1e-3)
  act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self, smallest=75)
    start = nn.initializers.normal(0.1)
    unit = partial(
      ConvNorm,
      conv=partial(self.conv, dtype=self.dtype, kernel_init=start),
      norm=bind(self.norm, train=train, dtype=self.dtype),
      act=self.act,
    )
    block = partial(rematerialise(Mixed) if self.remat else Mixed, unit=unit)
    x = Stem(unit, name='stem')(images)
    for i, blocks in enumerate(self.stages, 1):
      x = Stage(blocks, block, name=f'stage{i}')(x)
    return Head(self.num_classes, self.dropout, start, name='head')(x, train)


VARIANTS = {
  'inception_v3': Entry(InceptionV3, (299, 299, 3), paper='Szegedy et al. 2015, arXiv:1512.00567'),
}
