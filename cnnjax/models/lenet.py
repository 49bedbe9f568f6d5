"""LeNets: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-Based Learning Applied to Document
Recognition", section II.B; LeCun et al. 1990, "Handwritten Digit Recognition with a
Back-Propagation Network".

`lenet5` has the form of most modern retellings: average pooling without parameters, C3 connected
to every map of S2, tanh, and logits in place of the RBF layer. `lenet5_1998` is the paper's: a
trainable coefficient and bias for each map of the subsampling layers, C3 connected by table I,
1.7159 tanh(2x / 3) after every layer, and radial basis functions around fixed codes as output. Its
logits are the negative squared distances: cross-entropy on them is the paper's equation 9 without
the constant of its rubbish class. The paper draws its codes by hand as pictures of the characters;
ours are the random ±1 that it names as the alternative, which serve any number of classes. `lenet1`
(1990) is built of the same layers, with table 1 of its paper and a dense output.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.layers import init
from cnnjax.layers.conv import conv
from cnnjax.layers.pool import avg_pool
from cnnjax.models.entry import Entry, check_images


class Stage(nn.Module):
  """Convolution, activation, pooling: C1 and S2, then C3 and S4."""

  features: int
  conv: Callable[..., Any]
  act: Callable[[jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(self.features, 5, padding='VALID', use_bias=True, name='conv')(x)
    return avg_pool(self.act(x), 2)


class Head(nn.Module):
  """Fully connected layers C5 and F6, then the logits; C5 adapts to the size of its input."""

  num_classes: int
  act: Callable[[jax.Array], jax.Array]
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = partial(nn.Dense, kernel_init=init.lecun_tanh)
    x = x.reshape(x.shape[0], -1)  # (N, 5 * 5 * 16) for 32 x 32
    x = self.act(dense(120, dtype=self.dtype, name='dense1')(x))
    x = self.act(dense(84, dtype=self.dtype, name='dense2')(x))
    return dense(self.num_classes, dtype=jnp.float32, name='logits')(x)


class LeNet5(nn.Module):
  """See the module's docstring.

  Images below 32 x 32 are centred on 32 x 32 zeros, as the paper centres its 20 x 20 digits.

  Attributes:
    num_classes: number of logits.
    dtype: compute type; parameters and logits are float32.
    act: activation.
    conv: convolution factory; see `cnnjax.layers.conv`.
  """

  num_classes: int = 10
  dtype: Any = jnp.float32
  act: Callable[[jax.Array], jax.Array] = jnp.tanh
  conv: Callable[..., Any] = conv

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    del train  # nothing here depends on it
    check_images(images, model=self)
    conv = partial(self.conv, dtype=self.dtype, kernel_init=init.lecun_tanh)
    x = _centre(images, 32)
    x = Stage(6, conv, self.act, name='stage1')(x)  # (N, 14, 14, 6)
    x = Stage(16, conv, self.act, name='stage2')(x)  # (N, 5, 5, 16)
    return Head(self.num_classes, self.act, self.dtype, name='head')(x)


def scaled_tanh(x: jax.Array) -> jax.Array:
  """1.7159 tanh(2x / 3): 1 at 1 and -1 at -1, where its curvature is greatest (appendix A)."""
  return 1.7159 * jnp.tanh(2 / 3 * x)


class OriginalStage(nn.Module):
  """Convolution and trainable subsampling, each squashed: C1 and S2, then C3 and S4.

  Attributes:
    maps: number of maps, each of which sees every map of the input; or for each map those it sees.
    conv, act: factory and activation.
  """

  maps: int | Sequence[Sequence[int]]
  conv: Callable[..., Any]
  act: Callable[[jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if isinstance(self.maps, int):
      x = self._conv(x, self.maps, name='conv')
    else:
      # Maps that see equally many are the groups of one convolution: no weight is masked.
      order, parts = [], []
      for fan in sorted({len(seen) for seen in self.maps}):
        rows = [i for i, seen in enumerate(self.maps) if len(seen) == fan]
        index = np.concatenate([self.maps[i] for i in rows])
        parts.append(self._conv(x[..., index], len(rows), groups=len(rows), name=f'conv{fan}'))
        order += rows
      x = jnp.concatenate(parts, -1)[..., np.argsort(order)]
    return self.act(Subsample(name='pool')(self.act(x)))

  def _conv(self, x: jax.Array, features: int, *, groups: int = 1, name: str) -> jax.Array:
    fan_in = 25 * x.shape[-1] // groups
    start = {
      'kernel_init': init.uniform_fan_in(2.4),
      'bias_init': init.uniform_fan_in(2.4, fan_in=fan_in),
    }
    options = {'padding': 'VALID', 'groups': groups, 'use_bias': True, **start, 'name': name}
    return self.conv(features, 5, **options)(x)


class Subsample(nn.Module):
  """The sum of each 2 x 2 window, times a coefficient, plus a bias, both learned for each map."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    start, shape = init.uniform_fan_in(2.4, fan_in=4), (x.shape[-1],)
    scale = self.param('scale', start, shape, jnp.float32)
    bias = self.param('bias', start, shape, jnp.float32)
    total = 4 * avg_pool(x.astype(jnp.float32), 2)
    return (total * scale.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)).astype(x.dtype)


class OriginalHead(nn.Module):
  """Squashed dense layers, then logits: dense, or distances from codes.

  Attributes:
    num_classes: number of logits.
    dense: units of the hidden layers.
    rbf: minus the squared distance of the last hidden layer from each class's fixed ±1 code.
    act, dtype: of the hidden layers.
  """

  num_classes: int
  dense: Sequence[int]
  rbf: bool
  act: Callable[[jax.Array], jax.Array]
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    def dense(features: int, name: str, dtype: Any) -> jax.Array:
      bias = init.uniform_fan_in(2.4, fan_in=x.shape[-1])
      start: dict[str, Any] = {'kernel_init': init.uniform_fan_in(2.4), 'bias_init': bias}
      return nn.Dense(features, dtype=dtype, **start, name=name)(x)

    x = x.reshape(x.shape[0], -1)
    for i, features in enumerate(self.dense, 1):
      x = self.act(dense(features, f'dense{i}', self.dtype))
    x = x.astype(jnp.float32)
    if not self.rbf:
      return dense(self.num_classes, 'logits', jnp.float32)
    codes = jnp.asarray(rbf_codes(self.num_classes, x.shape[-1]))
    return -jnp.square(x[:, None] - codes[None]).sum(-1)


def rbf_codes(num_classes: int, size: int) -> np.ndarray:
  """Fixed random ±1 [num_classes, size], float32; a class's code doesn't depend on the others."""
  bits = np.random.RandomState(1998).randint(0, 2, (num_classes, size))
  return (2 * bits - 1).astype(np.float32)


class OriginalLeNet(nn.Module):
  """See the module's docstring. Smaller images than `canvas` are centred on zeros of that size.

  Attributes:
    canvas: the paper's height and width.
    stages: maps of the two stages; see `OriginalStage`.
    dense: units of the hidden dense layers.
    rbf: the output; see `OriginalHead`.
    num_classes: number of logits.
    dtype: compute type; parameters and logits are float32.
    act: activation.
    conv: convolution factory; see `cnnjax.layers.conv`.
  """

  canvas: int
  stages: Sequence[int | Sequence[Sequence[int]]]
  dense: Sequence[int] = ()
  rbf: bool = False
  num_classes: int = 10
  dtype: Any = jnp.float32
  act: Callable[[jax.Array], jax.Array] = scaled_tanh
  conv: Callable[..., Any] = conv

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    del train  # nothing here depends on it
    check_images(images, model=self)
    x = _centre(images, self.canvas)
    conv = partial(self.conv, dtype=self.dtype)
    for i, maps in enumerate(self.stages, 1):
      x = OriginalStage(maps, conv, self.act, name=f'stage{i}')(x)
    head = OriginalHead(self.num_classes, self.dense, self.rbf, self.act, self.dtype, name='head')
    return head(x)


def _centre(images: jax.Array, canvas: int) -> jax.Array:
  """Zeros around images that are smaller than the canvas."""
  missing = [max(canvas - size, 0) for size in images.shape[1:3]]
  return jnp.pad(images, ((0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)))


# LeCun et al. 1998, table I, by map of C3: triples and fours of neighbours, the other fours, all.
TABLE_1998 = (
  *(tuple(sorted((i + j) % 6 for j in range(3))) for i in range(6)),
  *(tuple(sorted((i + j) % 6 for j in range(4))) for i in range(6)),
  *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
  tuple(range(6)),
)
# LeCun et al. 1990, table 1, by map of H3.
TABLE_1990 = tuple(
  seen for a, b in ((0, 1), (2, 3)) for seen in ((a,), (a, b), (a, b), (b,), (a, b), (a, b))
)

VARIANTS = {
  'lenet1': Entry(
    partial(OriginalLeNet, canvas=28, stages=(4, TABLE_1990)),
    (28, 28, 1),
    10,
    'LeCun et al. 1990, NIPS 2',
  ),
  'lenet5': Entry(LeNet5, (32, 32, 1), 10, 'LeCun et al. 1998, Proc. IEEE 86(11)'),
  'lenet5_1998': Entry(
    partial(OriginalLeNet, canvas=32, stages=(6, TABLE_1998), dense=(120, 84), rbf=True),
    (32, 32, 1),
    10,
    'LeCun et al. 1998, Proc. IEEE 86(11)',
  ),
}
