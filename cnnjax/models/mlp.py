"""The fully connected rival of a CNN: what the same data gives without locality or sharing."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.layers import init
from cnnjax.layers.norm import bind
from cnnjax.layers.stochastic import Dropout
from cnnjax.models.entry import Entry, check_images


class Stage(nn.Module):
  """Dense, normalisation, activation, dropout."""

  features: int
  norm: Callable[..., Any]
  act: Callable[[jax.Array], jax.Array]
  dtype: Any
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    x = nn.Dense(self.features, dtype=self.dtype, kernel_init=init.he_fan_in, name='dense')(x)
    x = self.act(self.norm(name='norm')(x))
    return Dropout(self.dropout, name='dropout')(x, train)


class MLP(nn.Module):
  """Multilayer perceptron on the flattened image.

  Attributes:
    num_classes: number of logits.
    hidden: units of each hidden layer; none is multinomial logistic regression.
    dropout: rate after each hidden layer.
    dtype: compute type; parameters and logits are float32.
    norm: normalisation factory before the activation, or None.
    act: activation.
  """

  num_classes: int = 10
  hidden: Sequence[int] = (512, 256)
  dropout: float = 0.0
  dtype: Any = jnp.float32
  norm: Callable[..., Any] | None = None
  act: Callable[[jax.Array], jax.Array] = nn.relu

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    check_images(images, model=self)
    norm = bind(self.norm, train=train, dtype=self.dtype)
    x = images.reshape(images.shape[0], -1)
    for i, features in enumerate(self.hidden):
      x = Stage(features, norm, self.act, self.dtype, self.dropout, name=f'stage{i + 1}')(x, train)
    dense = nn.Dense(self.num_classes, kernel_init=init.lecun_tanh, name='head')
    return dense(x.astype(jnp.float32))


VARIANTS = {'mlp': Entry(MLP, (28, 28, 1), 10, 'Rumelhart, Hinton & Williams 1986, Nature 323')}
