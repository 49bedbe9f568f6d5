"""A fast network for small images, in the style of the CIFAR-10 speed records: Jordan 2024, "94% on
CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498 (airbench94).

A 2 x 2 convolution that whitens, whose kernel comes from the data (`whiten`) and is frozen
(`stem/conv/kernel`); three stages of convolution, pooling, normalisation without scale, GELU,
convolution, normalisation, GELU; the maximum over the image, and logits scaled by 1/9. Convolutions
start as the identity on as many channels as they get.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax import ops
from cnnjax.layers import init
from cnnjax.layers.conv import conv
from cnnjax.layers.norm import BatchNorm, bind
from cnnjax.layers.pool import max_pool
from cnnjax.models.entry import Entry, check_images

Factory = Callable[..., Any]
Activation = Callable[[jax.Array], jax.Array]


def _partial_identity(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
  """PyTorch's default kernel, but the first outputs copy the inputs (those that there are)."""
  kernel = init.torch_uniform(key, shape, dtype)
  height, width, inputs, outputs = shape
  copies = min(inputs, outputs)
  kernel = kernel.at[..., :copies].set(0)
  return kernel.at[height // 2, width // 2, :, :copies].set(jnp.eye(inputs, copies, dtype=dtype))


class Stem(nn.Module):
  """The whitening convolution: 2 * size² outputs per channel of the image, and the activation.

  With `norm` it is a layer as any other: normalised, and without a bias of its own.
  """

  size: int
  strides: int
  padding: int
  conv: Factory
  norm: Factory | None
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    options = {'strides': self.strides, 'padding': self.padding, 'use_bias': self.norm is None}
    x = self.conv(2 * self.size**2 * x.shape[-1], self.size, **options, name='conv')(x)
    return self.act(x if self.norm is None else self.norm(name='norm')(x))


class Stage(nn.Module):
  """`convs` convolutions; the first one's output is pooled, 2 x 2."""

  features: int
  convs: int
  conv: Factory
  norm: Factory
  act: Activation

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(1, self.convs + 1):
      x = self.conv(self.features, 3, kernel_init=_partial_identity, name=f'conv{i}')(x)
      x = max_pool(x, 2) if i == 1 else x
      x = self.act(self.norm(name=f'norm{i}')(x))
    return x


class Head(nn.Module):
  """Maximum over the image and the logits, without bias, scaled; in float32."""

  num_classes: int
  scale: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32).max((1, 2))  # (N, C)
    options = {'use_bias': False, 'kernel_init': init.torch_uniform}
    return self.scale * nn.Dense(self.num_classes, **options, name='logits')(x)


class AirBench(nn.Module):
  """See the module's docstring.

  Attributes:
    num_classes: number of logits.
    features: output channels of each stage; each halves the image.
    convs: convolutions in each stage.
    whitening_size: height and width of the whitening kernel.
    stem_strides: of the whitening convolution; 2 makes all that follows four times as cheap.
    stem_padding: of the whitening convolution, pixels on each side.
    stem_norm: normalise what it gives, as the other convolutions' outputs.
    scale: of the logits.
    dtype: compute type; parameters, statistics and logits are float32.
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory; see `cnnjax.layers.norm.bind`.
    act: activation.
  """

  num_classes: int = 10
  features: Sequence[int] = (64, 256, 256)
  convs: int = 2
  whitening_size: int = 2
  stem_strides: int = 1
  stem_padding: int = 0
  stem_norm: bool = False
  scale: float = 1 / 9
  dtype: Any = jnp.float32
  conv: Factory = conv
  norm: Factory | None = partial(BatchNorm, momentum=0.6, epsilon=1e-12, use_scale=False)
  act: Activation = ops.gelu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self, smallest=self._smallest())
    conv = partial(self.conv, dtype=self.dtype)
    norm = bind(self.norm, train=train, dtype=self.dtype)
    window = (self.whitening_size, self.stem_strides, self.stem_padding)
    x = Stem(*window, conv, norm if self.stem_norm else None, self.act, name='stem')(images)
    for i, features in enumerate(self.features, 1):
      x = Stage(features, self.convs, conv, norm, self.act, name=f'stage{i}')(x)
    return Head(self.num_classes, self.scale, name='head')(x)

  def _smallest(self) -> int:
    steps = self.stem_strides * (2 ** len(self.features) - 1)
    return steps + self.whitening_size - 2 * self.stem_padding


def whiten(
  variables: Mapping[str, Any], images: jax.Array, *, epsilon: float = 5e-4
) -> dict[str, Any]:
  """The variables with a stem whose outputs, before their bias, are uncorrelated with variance 1.

  The kernels are the eigenvectors of the covariance of the images' patches, each divided by the
  root of its eigenvalue, and the negatives of these.

  Args:
    variables: of an `AirBench`.
    images: [N, H, W, C], normalised; some thousands are enough.
    epsilon: added to the eigenvalues.
  """
  stem = variables['params']['stem']
  size, _, channels, _ = stem['conv']['kernel'].shape
  height, width = (side - size + 1 for side in images.shape[1:3])
  taps = [images[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
  patches = jnp.stack(taps, 3).reshape(-1, size * size * channels).astype(jnp.float32)
  values, vectors = jnp.linalg.eigh(jnp.cov(patches, rowvar=False))
  kernel = (vectors / jnp.sqrt(values + epsilon)[None])[:, ::-1]  # the largest eigenvalue first
  kernel = jnp.concatenate([kernel, -kernel], 1).reshape(size, size, channels, -1)
  stem = {**stem, 'conv': {**stem['conv'], 'kernel': kernel}}
  return {**variables, 'params': {**variables['params'], 'stem': stem}}


VARIANTS = {'airbench': Entry(AirBench, (32, 32, 3), 10, 'Jordan 2024, arXiv:2404.00498')}
