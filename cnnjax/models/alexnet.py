"""AlexNet: Krizhevsky, Sutskever & Hinton 2012, "ImageNet Classification with Deep Convolutional
Neural Networks"; and Krizhevsky 2014, "One weird trick for parallelizing convolutional neural
networks", arXiv:1404.5997.

`alexnet` is the one-tower network of 2014 as torchvision has it: PyTorch's initialisers, dropout
before both hidden dense layers. `alexnet_2012` is the paper's two towers, written as the groups of
its second, fourth and fifth convolution, with local response normalisation after the activations
of the first two. The paper says 224 x 224, but its 55 x 55 maps come from 227 x 227 unpadded: so
here. Both average what the last pooling leaves down to 6 x 6 (torchvision's way), which changes
nothing at the paper's size and lets any other work.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers import init
from cnnjax.layers.conv import conv
from cnnjax.layers.geometry import Padding
from cnnjax.layers.norm import LocalResponseNorm, bind
from cnnjax.layers.pool import adaptive_avg_pool, max_pool
from cnnjax.layers.stochastic import Dropout
from cnnjax.models.entry import Entry, check_images

Factory = Callable[..., Any]
Activation = Callable[[jax.Array], jax.Array]


class Layer(NamedTuple):
  """A convolution and what follows it.

  Attributes:
    features, kernel_size, strides, padding, groups: see `cnnjax.layers.conv`.
    norm: whether the model's normalisation follows the activation.
    pool: padding of a 3 x 3 max-pooling with stride 2, or None for no pooling.
    bias: initial bias of the convolution.
  """

  features: int
  kernel_size: int
  strides: int = 1
  padding: Padding | str = 'SYMMETRIC'
  groups: int = 1
  norm: bool = False
  pool: int | None = None
  bias: float = 0.0


class Stage(nn.Module):
  """Convolution, activation, normalisation and pooling, the last two where the layer has them.

  Attributes:
    layer: see `Layer`.
    conv, norm, act: factories and activation, bound to training mode and compute type.
    pool_first: pool before the normalisation.
    weights: 'torch' for PyTorch's initialisers, else the standard deviation of the kernel.
  """

  layer: Layer
  conv: Factory
  norm: Factory
  act: Activation
  pool_first: bool
  weights: str | float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    layer = self.layer
    x = self.conv(
      layer.features,
      layer.kernel_size,
      strides=layer.strides,
      padding=layer.padding,
      groups=layer.groups,
      use_bias=True,
      **initialisers(self.weights, x.shape[-1] * layer.kernel_size**2, bias=layer.bias),
      name='conv',
    )(x)
    x = self.act(x)
    pool = lambda x: x if layer.pool is None else max_pool(x, 3, strides=2, padding=layer.pool)
    if self.pool_first:
      x = pool(x)
    if layer.norm:
      x = self.norm(name='norm')(x)
    return x if self.pool_first else pool(x)


class Head(nn.Module):
  """Adaptive average pooling, two hidden dense layers, the logits.

  Attributes:
    num_classes: number of logits.
    grid: side of the map that is flattened.
    dropout: rates before each of the three dense layers.
    act: activation.
    dtype: compute type of the hidden layers; the logits are float32.
    weights: 'torch' for PyTorch's initialisers, else the standard deviation of the kernels.
    bias: initial bias of the hidden layers.
  """

  num_classes: int
  grid: int
  dropout: Sequence[float]
  act: Activation
  dtype: Any
  weights: str | float
  bias: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    x = adaptive_avg_pool(x, self.grid)
    x = x.reshape(x.shape[0], -1)  # (N, grid * grid * C)
    for i in (1, 2):
      x = Dropout(self.dropout[i - 1], name=f'dropout{i}')(x, train)
      start = initialisers(self.weights, x.shape[-1], bias=self.bias)
      x = self.act(nn.Dense(4096, dtype=self.dtype, **start, name=f'dense{i}')(x))
    x = Dropout(self.dropout[2], name='dropout3')(x, train)
    start = initialisers(self.weights, x.shape[-1])
    return nn.Dense(self.num_classes, **start, name='logits')(x.astype(jnp.float32))


class AlexNet(nn.Module):
  """See the module's docstring.

  Attributes:
    layers: the convolutions.
    num_classes: number of logits.
    smallest: least height and width of the image.
    pool_first: pool before the normalisation, not after.
    dropout: rate before (`drop_first`) or after the two hidden dense layers.
    drop_first: see there.
    weights: 'torch' for PyTorch's initialisers, else the standard deviation of every kernel.
    bias: initial bias of the hidden dense layers.
    dtype: compute type; parameters and logits are float32.
    conv: convolution factory; see `cnnjax.layers.conv`.
    norm: normalisation factory where the layers have one; see `cnnjax.layers.norm.bind`.
    act: activation.
  """

  layers: Sequence[Layer]
  num_classes: int = 1000
  smallest: int = 63
  pool_first: bool = False
  dropout: float = 0.5
  drop_first: bool = False
  weights: str | float = 0.01
  bias: float = 0.0
  dtype: Any = jnp.float32
  conv: Factory = conv
  norm: Factory | None = LocalResponseNorm
  act: Activation = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self, smallest=self.smallest)
    conv = partial(self.conv, dtype=self.dtype)
    norm = bind(self.norm, train=train, dtype=self.dtype)
    x = images
    for i, layer in enumerate(self.layers, 1):
      stage = Stage(layer, conv, norm, self.act, self.pool_first, self.weights, name=f'stage{i}')
      x = stage(x)
    rate = self.dropout
    rates = (rate, rate, 0.0) if self.drop_first else (0.0, rate, rate)
    head = Head(
      self.num_classes, 6, rates, self.act, self.dtype, self.weights, self.bias, name='head'
    )
    return head(x, train)


def initialisers(weights: str | float, fan_in: int, *, bias: float = 0.0) -> dict[str, Any]:
  """`kernel_init` and `bias_init` of a layer.

  Args:
    weights: 'torch' for PyTorch's default, or a normal distribution's standard deviation.
    fan_in: inputs of one output.
    bias: the bias, where it isn't PyTorch's.
  """
  if weights == 'torch':
    return {'kernel_init': init.torch_uniform, 'bias_init': init.torch_bias(fan_in)}
  kernel = nn.initializers.normal(weights)
  return {'kernel_init': kernel, 'bias_init': nn.initializers.constant(bias)}


_ONE_TOWER = (
  Layer(64, 11, 4, padding=2, pool=0),
  Layer(192, 5, pool=0),
  Layer(384, 3),
  Layer(256, 3),
  Layer(256, 3, pool=0),
)
# Section 5: weights from N(0, 0.01²), biases 1 in the second, fourth and fifth convolution and in
# the hidden dense layers, so that the rectified units start in their active range.
_TWO_TOWERS = (
  Layer(96, 11, 4, padding='VALID', norm=True, pool=0),
  Layer(256, 5, groups=2, norm=True, pool=0, bias=1.0),
  Layer(384, 3),
  Layer(384, 3, groups=2, bias=1.0),
  Layer(256, 3, groups=2, pool=0, bias=1.0),
)

VARIANTS = {
  'alexnet': Entry(
    partial(AlexNet, layers=_ONE_TOWER, drop_first=True, weights='torch'),
    paper='Krizhevsky 2014, arXiv:1404.5997',
  ),
  'alexnet_2012': Entry(
    partial(AlexNet, layers=_TWO_TOWERS, smallest=67, bias=1.0),
    (227, 227, 3),
    paper='Krizhevsky et al. 2012, NIPS 25',
  ),
}
