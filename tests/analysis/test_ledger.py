"""Counts against numbers by hand, and against what the layers themselves hold and compute."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import analysis, models
from cnnjax.analysis import ledger, toeplitz
from cnnjax.errors import UserError


def test_the_classic_example():
  """A 32 x 32 x 3 image, six 5 x 5 filters, 28 x 28 x 6 outputs."""
  found = ledger.convolution((32, 32, 3), features=6, kernel_size=(5, 5), padding='VALID')
  assert found.output == (28, 28, 6)
  assert found.parameters == (5 * 5 * 3 + 1) * 6 == 456
  assert found.parameters_per_channel_filter == (5 * 5 + 1) * 6 == 156
  assert found.fully_connected_weights == 3_072 * 4_704 == 14_450_688
  assert found.fully_connected_parameters == 14_450_688 + 4_704
  assert found.locally_connected_parameters == 28 * 28 * 456
  assert found.connections == found.macs == 28 * 28 * 6 * 75
  assert found.reuse == 784
  assert found.sparsity == 1 - 75 / 3_072
  assert found.bytes == 4 * (3_072 + 4_704 + 456)
  assert found.intensity == 2 * 352_800 / found.bytes


def test_connections_are_the_entries_of_the_matrix():
  for seed in range(20):
    rng = np.random.default_rng(seed)
    groups, inner, outer, kh, kw = map(int, rng.integers(1, 4, 5))
    options = {
      'strides': tuple(map(int, rng.integers(1, 4, 2))),
      'dilation': tuple(map(int, rng.integers(1, 3, 2))),
      'groups': groups,
      'padding': 'SAME' if seed % 2 else ((1, 2), (0, 4)),
    }
    shape = (9, 7, inner * groups)
    kernel = np.ones((kh, kw, inner, outer * groups))
    matrix = toeplitz.matrix(kernel, shape, **options)
    found = ledger.convolution(
      shape, features=outer * groups, kernel_size=(kh, kw), use_bias=False, **options
    )
    assert found.connections == matrix.nnz
    assert found.fully_connected_weights == math.prod(matrix.shape)
    assert math.prod(found.output) == matrix.shape[0]


@pytest.mark.parametrize('bias', [True, False])
def test_untied_and_dense_layers_hold_as_many(bias):
  image = jax.ShapeDtypeStruct((1, 9, 8, 3), jnp.float32)
  found = ledger.convolution((9, 8, 3), features=4, kernel_size=(3, 2), strides=(2, 1),
                             use_bias=bias)  # fmt: skip

  def parameters(layer, x):
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))

  options = {'features': 4, 'kernel_size': (3, 2), 'strides': (2, 1), 'use_bias': bias}
  assert found.parameters == parameters(nn.Conv(**options), image)
  assert found.locally_connected_parameters == parameters(nn.ConvLocal(**options), image)
  flat = jax.ShapeDtypeStruct((1, 9 * 8 * 3), jnp.float32)
  dense = nn.Dense(math.prod(found.output), use_bias=bias)
  assert found.fully_connected_parameters == parameters(dense, flat)


@pytest.mark.parametrize('name', ['lenet5', 'resnet18', 'mobilenet_v2', 'alexnet', 'convnext_tiny'])
def test_a_models_entries_add_up(name):
  """To its counted multiply-accumulates, and its parameters but those of normalisations."""
  entry = models.REGISTRY[name]
  model = models.create(name, num_classes=entry.num_classes)
  rows, counted = ledger.entries(model, entry.image), analysis.count(model, entry.image)
  assert sum(row.macs for row in rows) == counted.macs
  of_layers = {layer.name: layer.parameters for layer in counted.layers if layer.macs}
  assert {row.name: row.parameters for row in rows} == of_layers
  assert all(row.connections <= row.macs for row in rows)


class Own(nn.Module):
  """A module of a user's: dense layers on a map and on a vector."""

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(5, use_bias=False, name='mix')(x)
    return nn.Dense(2, name='head')(x.mean((1, 2)))


def test_a_module_of_ones_own():
  mix, head = ledger.entries(Own(), (4, 6, 3))
  assert (mix.name, mix.kernel, mix.reuse, mix.parameters) == ('mix', (1, 1, 3, 5), 24, 15)
  assert mix.sparsity == 1 - 1 / 24
  assert (head.name, head.kernel, head.reuse, head.parameters) == ('head', (5, 2), 1, 12)
  assert (head.sparsity, head.macs) == (0, 10)


def test_refused():
  with pytest.raises(UserError, match='groups=2 must divide 3 channels'):
    ledger.convolution((8, 8, 3), features=4, kernel_size=(3, 3), groups=2)
