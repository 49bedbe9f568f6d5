"""Fast inference: a model and its variables become one function of the images.

The model's program is read as a graph. What depends on variables alone is computed once. A
convolution, or a matrix product with constant weights, takes in what follows it: what multiplies
or shifts each channel by a constant (batch normalisation, bias, layer scale) goes into its kernel
and bias, a residual and an activation into the same call. On the CPU that is one call of oneDNN
with the kernel already in oneDNN's order; elsewhere XLA gets the smaller graph. All the rest of the
program stays as it is, so this works for any function of images.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.ops import plugin
from cnnjax.ops.convolution import Window
from cnnjax.program import (
  Node,
  apply,
  argument,
  function,
  literal,
  live,
  make,
  read,
  rewrite,
  scalar,
)

# In the order of `Activation` in native/src/convolution.h. A program's are known by their values on
# the grid, so it doesn't matter how they are spelt.
ACTIVATIONS: tuple[Callable[[Any], Any], ...] = (
  lambda x: x,
  jax.nn.relu,
  jax.nn.relu6,
  jax.nn.silu,
  jax.nn.hard_swish,
  lambda x: jax.nn.gelu(x, approximate=False),
  jnp.tanh,
  jax.nn.sigmoid,
)
_GRID = np.linspace(-9, 9, 73, dtype=np.float32)
_ELEMENTWISE = {'add', 'sub', 'mul', 'div', 'neg', 'max', 'min', 'clamp', 'select_n', 'abs', 'sign'}
_ELEMENTWISE |= {'eq', 'ne', 'ge', 'gt', 'le', 'lt', 'and', 'or', 'not', 'convert_element_type'}
_ELEMENTWISE |= {'exp', 'log', 'log1p', 'expm1', 'tanh', 'logistic', 'erf', 'erfc'}
_ELEMENTWISE |= {'pow', 'integer_pow', 'square', 'sqrt', 'rsqrt'}
_NUMBERS = ('NHWC', 'HWIO', 'NHWC')


def compile(
  model: nn.Module, variables: Any, image_shape: Sequence[int], dtype: Any = jnp.float32
) -> Callable[[jax.Array], jax.Array]:
  """The logits of a model with these variables, as fast as this machine computes them.

  Equal to `model.apply(variables, images)` to float32's rounding. Float32 alone is made faster.

  Args:
    model: any model of the zoo, or any linen module called as `model(images)`.
    variables: its variables; they are copied, so that training may go on.
    image_shape: [N, H, W, C].
    dtype: of the images.

  Returns:
    `predict(images) -> logits`, jitted, for images of exactly this shape and type.

  Raises:
    UserError: the model doesn't take such images; from `predict`: they have another shape or type.
  """
  shape, dtype = tuple(image_shape), jnp.dtype(dtype)
  like = jax.ShapeDtypeStruct(shape, dtype)
  leaves, structure = jax.tree.flatten(variables)
  plain = lambda leaves, images: model.apply(jax.tree.unflatten(structure, leaves), images)
  closed, result = jax.make_jaxpr(plain, return_shape=True)(leaves, like)
  weights = [argument(x, constant=True) for x in leaves]
  images = argument(like, constant=False)
  outputs = read(closed.jaxpr, closed.consts, [*weights, images])
  outputs = rewrite(outputs, _Fusion(outputs))
  native = plugin.chosen() and jax.default_backend() == 'cpu'
  outputs = rewrite(outputs, _with_onednn if native else _with_xla)

  given, run = function(outputs, lambda node: node is images or _computed_once(node))
  constants = [node for node in given if node is not images]
  values = dict(zip(weights, leaves, strict=True))
  needed, prepare = function(constants, values.__contains__)
  copies = jax.jit(lambda values: [jnp.copy(x) for x in prepare(values)])
  prepared = copies([values[node] for node in needed])

  @jax.jit
  def compiled(prepared: Sequence[jax.Array], batch: jax.Array) -> Any:
    known = dict(zip(constants, prepared, strict=True)) | {images: batch}
    return jax.tree.unflatten(jax.tree.structure(result), run([known[node] for node in given]))

  def predict(batch: jax.Array) -> Any:
    if batch.shape != shape or batch.dtype != dtype:
      raise UserError(
        f'compiled for images of shape {shape} and type {dtype.name}, '
        f'got {tuple(batch.shape)} and {batch.dtype.name}'
      )
    return compiled(prepared, batch)

  return predict


def _computed_once(node: Node) -> bool:
  """Constants that the function gets as arguments; it repeats values itself."""
  if node.name == 'literal':
    return bool(node.shape)
  return node.constant and node.name not in ('broadcast_in_dim', 'iota')


class _Fusion:
  """The rule that gathers what follows a convolution into a node 'conv'.

  Its inputs are images [..., C], kernel [h, w, C / groups, C'], bias [C'] and possibly a residual,
  added before the activation; its params `window` and `activation`, an index into `ACTIVATIONS`.
  """

  def __init__(self, outputs: Sequence[Node]):
    self._users: dict[Node, list[Node | None]] = {node: [] for node in live(outputs)}
    for node in self._users:
      for i in node.inputs:
        self._users[i].append(node)
    for node in outputs:
      self._users[node].append(None)
    self._new: dict[Node, Node] = {}
    # Functions of one convolution: it, their values on the grid, and the nodes that compute them.
    self._functions: dict[Node, tuple[Node, np.ndarray, frozenset[Node]]] = {}

  def __call__(self, node: Node, inputs: tuple[Node, ...]) -> Node:
    new = node
    if not node.constant:
      new = _convolution(node, inputs) or _product(node, inputs)
      new = new or self._folded(node, inputs) or self._activated(node)
      new = new or node.replaced(inputs=inputs)
    self._new[node] = new
    return new

  def _folded(self, node: Node, inputs: tuple[Node, ...]) -> Node | None:
    """Arithmetic with a constant for each channel, or a residual."""
    if node.name == 'neg':
      inputs = (*inputs, literal(np.float32(-1)))
    elif node.name not in ('add', 'sub', 'mul', 'div'):
      return None
    sides = [(0, 1), (1, 0)] if node.name in ('add', 'mul') else [(0, 1)]
    # Of two convolutions the later one takes the earlier one's result.
    for this, that in sorted(sides, key=lambda side: -node.inputs[side[0]].index):
      conv, other = inputs[this], inputs[that]
      if conv.name != 'conv' or conv.params['activation'] or conv.shape != node.shape:
        continue
      if self._users[node.inputs[this]] != [node]:
        continue
      images, kernel, bias, *residual = conv.inputs
      value = _per_channel(other, conv.shape)
      if value is not None and node.name in ('add', 'sub'):
        bias = apply(jnp.add if node.name == 'add' else jnp.subtract, bias, value)
      elif value is not None and not residual:
        scale = jnp.divide if node.name == 'div' else jnp.multiply
        kernel, bias = apply(_last(scale), kernel, value), apply(scale, bias, value)
      elif node.name == 'add' and not residual and other.shape == conv.shape:
        residual = [other]
      else:
        continue
      return conv.replaced(inputs=(images, kernel, bias, *residual))
    return None

  def _activated(self, node: Node) -> Node | None:
    """The end of an activation, whatever it is spelt with."""
    if node.name not in _ELEMENTWISE:
      return None
    source, nodes, values = None, frozenset([node]), []
    for old in node.inputs:
      known = scalar(old)
      if known is not None:
        values.append(np.full(_GRID.shape, known, old.dtype))
        continue
      start = self._new[old].name == 'conv' and not self._new[old].params['activation']
      found = self._functions.get(old, (old, _GRID, frozenset()) if start else None)
      if found is None or source not in (None, found[0]):
        return None
      source, nodes = found[0], nodes | found[2]
      values.append(found[1])
    if source is None:
      return None
    result = np.asarray(node.run(*values))
    self._functions[node] = (source, result, nodes)
    inside = {source, *nodes} - {node}
    if result.dtype != np.float32 or any(set(self._users[n]) - nodes for n in inside):
      return None
    for i, activation in enumerate(ACTIVATIONS[1:], 1):
      if np.allclose(result, activation(_GRID), rtol=1e-5, atol=1e-5):
        conv = self._new[source]
        return conv.replaced(params={**conv.params, 'activation': i})
    return None


def _last(rule: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  return lambda kernel, value: rule(kernel, value[None, None, None])


def _convolution(node: Node, inputs: tuple[Node, ...]) -> Node | None:
  """A convolution of [N, H, W, C] with a constant kernel, as a node 'conv'."""
  if node.name not in ('conv2d', 'conv_general_dilated') or not _ours(node, inputs):
    return None
  images, kernel = inputs
  p = node.params
  if node.name == 'conv2d':
    window = p['window']
  elif (
    len(node.shape) == 4
    and p['dimension_numbers'] == lax.conv_dimension_numbers(images.shape, kernel.shape, _NUMBERS)
    and p['batch_group_count'] == 1
    and p['lhs_dilation'] == (1, 1)
  ):
    window = Window(p['window_strides'], p['padding'], p['rhs_dilation'], p['feature_group_count'])
  else:
    return None
  if images.name == 'pad' and scalar(images.inputs[1]) == 0:
    batch, *sides, channels = images.params['padding_config']
    if batch == channels == (0, 0, 0) and all(low >= 0 <= high and not i for low, high, i in sides):
      both = zip(window.padding, sides, strict=True)
      padding = tuple((a + low, b + high) for (a, b), (low, high, _) in both)
      images, window = images.inputs[0], window._replace(padding=padding)
  return None if min(map(min, window.padding)) < 0 else _conv(node, images, kernel, window)


def _product(node: Node, inputs: tuple[Node, ...]) -> Node | None:
  """A matrix product of [..., C] with a constant [C, C'], as a node 'conv'."""
  if node.name != 'dot_general' or not _ours(node, inputs) or len(inputs[1].shape) != 2:
    return None
  images, matrix = inputs
  if node.params['dimension_numbers'] != (((len(images.shape) - 1,), (0,)), ((), ())):
    return None
  window = Window((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
  return _conv(node, images, apply(lambda x: x[None, None], matrix), window)


def _ours(node: Node, inputs: tuple[Node, ...]) -> bool:
  nodes = (node, *inputs)
  return inputs[1].constant and all(n.dtype == jnp.float32 and 0 not in n.shape for n in nodes)


def _conv(node: Node, images: Node, kernel: Node, window: Window) -> Node:
  bias = apply(lambda: jnp.zeros(node.shape[-1]))
  return make('conv', node.run, (images, kernel, bias), node, window=window, activation=0)


def _per_channel(node: Node, shape: tuple[int, ...]) -> Node | None:
  """A constant that broadcasts to `shape` and varies along its last axis only, as [C]; or None."""
  if not node.constant or node.dtype != jnp.float32:
    return None
  if node.name == 'broadcast_in_dim' and node.shape == shape:
    places = node.params['broadcast_dimensions']
    node = node.inputs[0]
    if any(n > 1 and place < len(shape) - 1 for n, place in zip(node.shape, places, strict=True)):
      return None
  elif len(node.shape) not in (0, len(shape)) or any(n > 1 for n in node.shape[:-1]):
    return None
  return apply(lambda x: jnp.broadcast_to(x.reshape(-1), shape[-1:]), node)


def _with_xla(node: Node, inputs: tuple[Node, ...]) -> Node:
  """The rule that computes convolutions by XLA."""
  if node.name != 'conv':
    return node.replaced(inputs=inputs)
  window, activation = node.params['window'], ACTIVATIONS[node.params['activation']]

  def run(images: jax.Array, kernel: jax.Array, bias: jax.Array, *residual: jax.Array) -> jax.Array:
    if images.ndim == 4:
      options = {'rhs_dilation': window.dilation, 'feature_group_count': window.groups}
      y = ops.conv_general_dilated(
        images, kernel, window.strides, window.padding, dimension_numbers=_NUMBERS, **options
      )
    else:
      y = jnp.dot(images, kernel[0, 0])
    return activation(sum(residual, y + bias.reshape((1,) * (y.ndim - 1) + (-1,))))

  return node.replaced(run=run, inputs=inputs)


def _with_onednn(node: Node, inputs: tuple[Node, ...]) -> Node:
  """The rule that computes convolutions by oneDNN, where it has something for them."""
  if node.name != 'conv':
    return node.replaced(inputs=inputs)
  images, kernel, bias, *residual = inputs
  image = lambda shape: shape if len(shape) == 4 else (1, math.prod(shape[:-1]), 1, shape[-1])
  shapes = (image(images.shape), kernel.shape, image(node.shape))
  options = {'activation': node.params['activation'], 'residual': bool(residual)}
  problem = plugin.problem('inference', *shapes, node.params['window'], node.dtype, **options)
  size = plugin.packed_bytes(problem)
  if size is None:
    return _with_xla(node, inputs)
  fields, packed = np.array(problem, np.int64), jax.ShapeDtypeStruct((size // 4,), jnp.float32)
  outputs = jax.ShapeDtypeStruct(node.shape, node.dtype)
  # The outputs take the residual's place in memory; XLA copies it where it is needed later.
  aliases = {3: 0} if residual else None
  pack = jax.ffi.ffi_call('cnnjax_onednn_pack', packed)
  call = jax.ffi.ffi_call('cnnjax_onednn_inference', outputs, input_output_aliases=aliases)
  kernel = make('pack', lambda kernel: pack(kernel, problem=fields), [kernel], packed)
  run = lambda *arrays: call(*arrays, problem=fields)
  return node.replaced(run=run, inputs=(images, kernel, bias, *residual))
