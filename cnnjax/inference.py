"""Fast inference: a model and its variables become one function of the images.

The model's program is read as a graph. What depends on variables alone is computed once. A
convolution, or a matrix product with constant weights, takes in what follows it: what multiplies
or shifts each channel by a constant (batch normalisation, bias, layer scale) goes into its kernel
and bias, a residual and an activation into the same call. On the CPU that is one call of oneDNN
with the kernel already in oneDNN's order; elsewhere XLA gets the smaller graph. All the rest of the
program stays as it is, so this works for any function of images.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.ops import plugin
from cnnjax.ops.convolution import Window

# In the order of `Activation` in native/src/convolution.h. An activation is known by its values,
# so it doesn't matter how JAX spells it.
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
_ELEMENTWISE = frozenset(
  [
    'add',
    'sub',
    'mul',
    'div',
    'neg',
    'max',
    'min',
    'clamp',
    'exp',
    'log',
    'log1p',
    'expm1',
    'tanh',
    'logistic',
    'erf',
    'erfc',
    'integer_pow',
    'square',
    'pow',
    'sqrt',
    'rsqrt',
    'abs',
    'sign',
    'select_n',
    'eq',
    'ne',
    'ge',
    'gt',
    'le',
    'lt',
    'and',
    'or',
    'not',
    'convert_element_type',
  ]
)
_CALLS = frozenset(
  [
    'jit',
    'pjit',
    'closed_call',
    'core_call',
    'custom_jvp_call',
    'custom_vjp_call',
    'checkpoint',
    'remat2',
  ]
)


def compile(
  model: nn.Module, variables: Any, image_shape: Sequence[int], dtype: Any = jnp.float32
) -> Callable[[jax.Array], jax.Array]:
  """The logits of a model with these variables, as fast as this machine computes them.

  Equal to `model.apply(variables, images)` to float32's rounding.

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
  leaves, structure = jax.tree.flatten(variables)

  def apply(leaves: Sequence[jax.Array], images: jax.Array) -> Any:
    return model.apply(jax.tree.unflatten(structure, leaves), images)

  closed, out = jax.make_jaxpr(apply, return_shape=True)(leaves, jax.ShapeDtypeStruct(shape, dtype))
  arguments = [_argument(x, constant=True) for x in leaves]
  images = _argument(jax.ShapeDtypeStruct(shape, dtype), constant=False)
  outputs = _read(closed.jaxpr, closed.consts, [*arguments, images])
  outputs = _rewrite(outputs, _Fusion(outputs))
  native = plugin.chosen() and jax.default_backend() == 'cpu'
  outputs = _rewrite(outputs, _with_onednn if native else _with_xla)

  kept, run = _program(outputs, lambda node: node is images or _computed_once(node))
  constants = [node for node in kept if node is not images]
  given, prepare = _program(constants, lambda node: node in set(arguments))
  values = dict(zip(arguments, leaves, strict=True))
  prepared = jax.jit(prepare)([values[node] for node in given])

  @jax.jit
  def compiled(prepared: Sequence[jax.Array], batch: jax.Array) -> Any:
    known = dict(zip(constants, prepared, strict=True)) | {images: batch}
    return jax.tree.unflatten(jax.tree.structure(out), run([known[node] for node in kept]))

  def predict(batch: jax.Array) -> Any:
    if batch.shape != shape or batch.dtype != dtype:
      raise UserError(
        f'compiled for images of shape {shape} and type {dtype.name}, '
        f'got {tuple(batch.shape)} and {batch.dtype.name}'
      )
    return compiled(prepared, batch)

  return predict


_indices = itertools.count()


@dataclasses.dataclass(eq=False)
class Node:
  """A value in a program.

  Attributes:
    name: of the primitive that makes it, or 'argument', 'literal', 'part', 'conv'.
    run: computes it from the values of `inputs`.
    inputs: what it is made of. 'conv': images, kernel [h, w, C / groups, C'], bias [C'] and
      possibly the residual that is added before the activation.
    shape, dtype: of the value.
    constant: it doesn't depend on the images.
    params: of the primitive. 'conv': `window` and `activation`, an index into `ACTIVATIONS`.
    index: nodes come after their inputs.
  """

  name: str
  run: Callable[..., Any]
  inputs: tuple['Node', ...]
  shape: tuple[int, ...]
  dtype: Any
  constant: bool
  params: dict[str, Any] = dataclasses.field(default_factory=dict)
  index: int = dataclasses.field(default_factory=lambda: next(_indices))


def _argument(x: Any, *, constant: bool) -> Node:
  return Node('argument', lambda: None, (), x.shape, x.dtype, constant)


def _literal(value: Any) -> Node:
  return Node('literal', lambda: value, (), np.shape(value), value.dtype, True, {'value': value})


def _node(name: str, run: Callable[..., Any], inputs: Sequence[Node], like: Any, **params: Any):
  constant = all(node.constant for node in inputs)
  return Node(name, run, tuple(inputs), like.shape, like.dtype, constant, params)


def _map(run: Callable[..., jax.Array], *inputs: Node) -> Node:
  """A function of nodes as a node."""
  shapes = [jax.ShapeDtypeStruct(node.shape, node.dtype) for node in inputs]
  return _node('map', run, inputs, jax.eval_shape(run, *shapes))


def _read(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Node]) -> list[Node]:
  """The results of a jaxpr as nodes; what it calls is read in its place."""
  known = dict(zip(jaxpr.invars, arguments, strict=True))
  known |= dict(zip(jaxpr.constvars, map(_literal, consts), strict=True))

  def get(atom: Any) -> Node:
    if isinstance(atom, Literal):
      aval: Any = atom.aval
      return _literal(np.asarray(atom.val, aval.dtype))
    return known[atom]

  for eqn in jaxpr.eqns:
    inputs, name = [get(atom) for atom in eqn.invars], eqn.primitive.name
    inner = eqn.params.get('call_jaxpr', eqn.params.get('jaxpr')) if name in _CALLS else None
    avals = [var.aval for var in eqn.outvars]
    if inner is not None:
      results = _read(getattr(inner, 'jaxpr', inner), getattr(inner, 'consts', ()), inputs)
    elif name == 'copy' or (name == 'convert_element_type' and inputs[0].dtype == avals[0].dtype):
      results = inputs
    else:
      whole = _node(name, _binding(eqn), inputs, avals[0], **eqn.params)
      results = [whole]
      if eqn.primitive.multiple_results:
        results = [_node('part', _item(i), [whole], aval) for i, aval in enumerate(avals)]
    known |= dict(zip(eqn.outvars, results, strict=True))
  return [get(atom) for atom in jaxpr.outvars]


def _binding(eqn: Any) -> Callable[..., Any]:
  return lambda *arrays: eqn.primitive.bind(*arrays, **eqn.primitive.get_bind_params(eqn.params))


def _item(i: int) -> Callable[..., Any]:
  return lambda values: values[i]


def _live(outputs: Iterable[Node], leaf: Callable[[Node], bool] = lambda node: False) -> list[Node]:
  """What the outputs are made of, inputs first; nothing of what only leaves are made of."""
  found, stack = set(), list(outputs)
  while stack:
    node = stack.pop()
    if node not in found:
      found.add(node)
      stack.extend(() if leaf(node) else node.inputs)
  return sorted(found, key=lambda node: node.index)


def _rewrite(outputs: Sequence[Node], rule: Callable[[Node, tuple[Node, ...]], Node]) -> list[Node]:
  """The same program with `rule(node, its new inputs)` in place of every node."""
  new: dict[Node, Node] = {}
  for node in _live(outputs):
    new[node] = rule(node, tuple(new[i] for i in node.inputs))
  return [new[node] for node in outputs]


def _program(outputs: Sequence[Node], leaf: Callable[[Node], bool]) -> tuple[list[Node], Any]:
  """The leaves that the outputs need, and the function of the leaves' values."""
  nodes = _live(outputs, leaf)
  leaves, steps = [n for n in nodes if leaf(n)], [n for n in nodes if not leaf(n)]

  def run(values: Sequence[Any]) -> list[Any]:
    known = dict(zip(leaves, values, strict=True))
    for node in steps:
      known[node] = node.run(*(known[i] for i in node.inputs))
    return [known[node] for node in outputs]

  return leaves, run


def _computed_once(node: Node) -> bool:
  """Constants that the function gets as arguments; it repeats values itself."""
  if node.name == 'literal':
    return bool(node.shape)
  return node.constant and node.name not in ('broadcast_in_dim', 'iota')


def _with(node: Node, inputs: tuple[Node, ...]) -> Node:
  if inputs == node.inputs:
    return node
  return dataclasses.replace(node, inputs=inputs, index=next(_indices))


class _Fusion:
  """The rule that gathers what follows each convolution into a node 'conv'."""

  def __init__(self, outputs: Sequence[Node]):
    self._users: dict[Node, list[Node | None]] = {node: [] for node in _live(outputs)}
    for node in self._users:
      for i in node.inputs:
        self._users[i].append(node)
    for node in outputs:
      self._users[node].append(None)
    self._new: dict[Node, Node] = {}
    # Functions f of a single convolution: it, f's values on the grid, and the nodes between.
    self._functions: dict[Node, tuple[Node, np.ndarray, frozenset[Node]]] = {}

  def __call__(self, node: Node, inputs: tuple[Node, ...]) -> Node:
    if node.constant:
      new = node
    else:
      new = (
        _convolution(node, inputs)
        or _matrix_product(node, inputs)
        or self._scaled(node, inputs)
        or self._shifted(node, inputs)
        or self._activated(node)
        or _with(node, inputs)
      )
    self._new[node] = new
    return new

  def _open(self, old: Node, user: Node, *, residual: bool = True) -> bool:
    """Whether a convolution, perhaps with a residual, may take in what `user` does to it."""
    new = self._new[old]
    return (
      new.name == 'conv'
      and new.shape == user.shape
      and not new.params['activation']
      and (residual or len(new.inputs) == 3)
      and self._users[old] == [user]
    )

  def _scaled(self, node: Node, inputs: tuple[Node, ...]) -> Node | None:
    if node.name not in ('mul', 'div', 'neg'):
      return None
    for old, by in ((0, 1), (1, 0))[: 2 if node.name == 'mul' else 1]:
      conv = inputs[old]
      if self._open(node.inputs[old], node, residual=False):
        scale = _literal(np.float32(-1)) if node.name == 'neg' else inputs[by]
        scale = _per_channel(scale, conv.shape)
        if scale is None:
          continue
        rule = jnp.divide if node.name == 'div' else jnp.multiply
        images, kernel, bias = conv.inputs
        lifted = _map(lambda scale: scale[None, None, None], scale)
        return _with(conv, (images, _map(rule, kernel, lifted), _map(rule, bias, scale)))
    return None

  def _shifted(self, node: Node, inputs: tuple[Node, ...]) -> Node | None:
    if node.name not in ('add', 'sub'):
      return None
    order = [(0, 1), (1, 0)][: 2 if node.name == 'add' else 1]
    # Of two convolutions the later one takes the earlier one's result.
    for old, by in sorted(order, key=lambda pair: -node.inputs[pair[0]].index):
      conv, other = inputs[old], inputs[by]
      if not self._open(node.inputs[old], node):
        continue
      shift = _per_channel(other, conv.shape)
      if shift is not None:
        rule = jnp.add if node.name == 'add' else jnp.subtract
        images, kernel, bias, *rest = conv.inputs
        return _with(conv, (images, kernel, _map(rule, bias, shift), *rest))
      if node.name == 'add' and len(conv.inputs) == 3 and other.shape == conv.shape:
        return _with(conv, (*conv.inputs, other))
    return None

  def _activated(self, node: Node) -> Node | None:
    if node.name not in _ELEMENTWISE:
      return None
    source, between, values = None, frozenset([node]), []
    for old in node.inputs:
      known = _scalar(old)
      if known is not None:
        values.append(np.full(_GRID.shape, known, old.dtype))
        continue
      conv = self._new[old]
      closed = conv.name != 'conv' or conv.params['activation']
      if old not in self._functions and closed:
        return None
      mine, samples, nodes = self._functions.get(old, (old, _GRID, frozenset()))
      if source not in (None, mine):
        return None
      source, between = mine, between | nodes
      values.append(samples)
    if source is None:
      return None
    found = np.asarray(node.run(*values))
    self._functions[node] = (source, found, between)
    inside = {source, *between} - {node}
    if found.dtype != np.float32 or any(set(self._users[n]) - between for n in inside):
      return None
    for i, activation in enumerate(ACTIVATIONS[1:], 1):
      if np.allclose(found, activation(_GRID), rtol=1e-5, atol=1e-5):
        conv = self._new[source]
        return dataclasses.replace(
          conv, params={**conv.params, 'activation': i}, index=next(_indices)
        )
    return None


def _convolution(node: Node, inputs: tuple[Node, ...]) -> Node | None:
  """A convolution [N, H, W, C] in float32 with a constant kernel, as a node 'conv'."""
  if node.name not in ('conv2d', 'conv_general_dilated') or len(node.shape) != 4:
    return None
  images, kernel = inputs
  if not kernel.constant or any(x.dtype != jnp.float32 for x in (node, images, kernel)):
    return None
  p = node.params
  if node.name == 'conv2d':
    window = p['window']
  else:
    numbers = lax.conv_dimension_numbers(images.shape, kernel.shape, ('NHWC', 'HWIO', 'NHWC'))
    if (
      p['dimension_numbers'] != numbers
      or p['batch_group_count'] != 1
      or p['lhs_dilation'] != (1, 1)
    ):
      return None
    window = Window(p['window_strides'], p['padding'], p['rhs_dilation'], p['feature_group_count'])
  if images.name == 'pad' and _scalar(images.inputs[1]) == 0:
    batch, *sides, channels = images.params['padding_config']
    if batch == channels == (0, 0, 0) and all(
      low >= 0 <= high and not step for low, high, step in sides
    ):
      images, given = images.inputs[0], zip(window.padding, sides, strict=True)
      window = window._replace(
        padding=tuple((a + low, b + high) for (a, b), (low, high, _) in given)
      )
  if any(pad < 0 for pair in window.padding for pad in pair) or 0 in node.shape + images.shape:
    return None
  return _conv(node, images, kernel, window)


def _matrix_product(node: Node, inputs: tuple[Node, ...]) -> Node | None:
  """Activations [..., C] times a constant matrix [C, C'], as a node 'conv'."""
  if node.name != 'dot_general' or not inputs[1].constant or 0 in node.shape:
    return None
  x, matrix = inputs
  contracted = ((len(x.shape) - 1,), (0,))
  if len(matrix.shape) != 2 or node.params['dimension_numbers'] != (contracted, ((), ())):
    return None
  if any(x.dtype != jnp.float32 for x in (node, *inputs)):
    return None
  window = Window((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
  return _conv(node, x, _map(lambda matrix: matrix[None, None], matrix), window)


def _conv(node: Node, images: Node, kernel: Node, window: Window) -> Node:
  bias = _map(lambda: jnp.zeros(node.shape[-1]))
  return _node('conv', node.run, (images, kernel, bias), node, window=window, activation=0)


def _scalar(node: Node) -> Any:
  """The value that all elements of a node are known to have, or None."""
  while node.name in ('broadcast_in_dim', 'reshape', 'convert_element_type'):
    node = node.inputs[0]
  return node.params['value'] if node.name == 'literal' and not node.shape else None


def _per_channel(node: Node, shape: tuple[int, ...]) -> Node | None:
  """A constant that broadcasts to `shape` and varies along its last axis only, as [C]; or None."""
  channels = shape[-1]
  if not node.constant or node.dtype != jnp.float32:
    return None
  if node.name == 'broadcast_in_dim' and node.shape == shape:
    places = node.params['broadcast_dimensions']
    node = node.inputs[0]
    if any(n > 1 and place != len(shape) - 1 for n, place in zip(node.shape, places, strict=True)):
      return None
  elif math.prod(node.shape) not in (1, *node.shape[-1:]) or len(node.shape) not in (0, len(shape)):
    return None
  return _map(lambda x: jnp.broadcast_to(x.reshape(-1), channels), node)


def _with_xla(node: Node, inputs: tuple[Node, ...]) -> Node:
  """The rule that computes convolutions by XLA."""
  if node.name != 'conv':
    return _with(node, inputs)
  window, activation = node.params['window'], ACTIVATIONS[node.params['activation']]

  def run(images: jax.Array, kernel: jax.Array, bias: jax.Array, *residual: jax.Array) -> jax.Array:
    if images.ndim == 4:
      y = ops.conv_general_dilated(
        images,
        kernel,
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=window.groups,
      )
    else:
      y = jnp.dot(images, kernel[0, 0])
    return activation(sum(residual, y + bias.reshape((1,) * (y.ndim - 1) + (-1,))))

  return dataclasses.replace(node, run=run, inputs=inputs, index=next(_indices))


def _with_onednn(node: Node, inputs: tuple[Node, ...]) -> Node:
  """The rule that computes convolutions by oneDNN, where it has something for them."""
  if node.name != 'conv':
    return _with(node, inputs)
  images, kernel, bias, *residual = inputs
  image = lambda shape: shape if len(shape) == 4 else (1, math.prod(shape[:-1]), 1, shape[-1])
  shapes = (image(images.shape), kernel.shape, image(node.shape))
  options = {'activation': node.params['activation'], 'residual': bool(residual)}
  problem = plugin.problem('inference', *shapes, node.params['window'], node.dtype, **options)
  size = plugin.packed_bytes(problem)
  if size is None:
    return _with_xla(node, inputs)
  fields = np.array(problem, np.int64)
  packed = jax.ShapeDtypeStruct((size // 4,), jnp.float32)
  pack = jax.ffi.ffi_call('cnnjax_onednn_pack', packed)
  # In place of the residual: XLA copies it where it is needed later.
  run = jax.ffi.ffi_call(
    'cnnjax_onednn_inference',
    jax.ShapeDtypeStruct(node.shape, node.dtype),
    input_output_aliases={3: 0} if residual else None,
  )
  kernel = _node('pack', lambda kernel: pack(kernel, problem=fields), [kernel], packed)
  call = lambda *arrays: run(*arrays, problem=fields)
  return _node('conv', call, (images, kernel, bias, *residual), node)
