"""Programs as graphs: a jaxpr is read into nodes, which can be replaced, and run again."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

_CALLS = {'jit', 'pjit', 'closed_call', 'core_call', 'checkpoint', 'remat2'}
_CALLS |= {'custom_jvp_call', 'custom_vjp_call'}
_indices = itertools.count()


@dataclasses.dataclass(eq=False)
class Node:
  """A value in a program.

  Attributes:
    name: of the primitive that makes it; 'argument', 'literal', 'part' (one of several results) or
      whatever else a rewriting rule calls it.
    run: computes it from the values of `inputs`.
    inputs: what it is made of.
    shape, dtype: of the value.
    constant: it depends on constant arguments alone.
    params: of the primitive. 'literal': `value`.
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

  def replaced(self, **changes: Any) -> 'Node':
    """A copy with some attributes changed; itself where that makes no difference."""
    if all(getattr(self, key) == value for key, value in changes.items()):
      return self
    return dataclasses.replace(self, **changes, index=next(_indices))


def argument(like: Any, *, constant: bool) -> Node:
  """What the program is given, with the shape and type of `like`."""
  return Node('argument', lambda: None, (), like.shape, like.dtype, constant)


def literal(value: Any) -> Node:
  """A NumPy or JAX value."""
  return Node('literal', lambda: value, (), value.shape, value.dtype, True, {'value': value})


def make(
  name: str, run: Callable[..., Any], inputs: Sequence[Node], like: Any, **params: Any
) -> Node:
  """A node with the shape and type of `like`."""
  constant = all(node.constant for node in inputs)
  return Node(name, run, tuple(inputs), like.shape, like.dtype, constant, params)


def apply(run: Callable[..., jax.Array], *inputs: Node) -> Node:
  """A function of JAX arrays, of nodes."""
  shapes = [jax.ShapeDtypeStruct(node.shape, node.dtype) for node in inputs]
  return make('apply', run, inputs, jax.eval_shape(run, *shapes))


def read(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Node]) -> list[Node]:
  """The results of a jaxpr; what it calls is read in its place."""
  known = dict(zip(jaxpr.invars, arguments, strict=True))
  known |= dict(zip(jaxpr.constvars, map(literal, consts), strict=True))

  def get(atom: Any) -> Node:
    if isinstance(atom, Literal):
      aval: Any = atom.aval
      return literal(np.asarray(atom.val, aval.dtype))
    return known[atom]

  for eqn in jaxpr.eqns:
    inputs, name = [get(atom) for atom in eqn.invars], eqn.primitive.name
    inner = eqn.params.get('call_jaxpr', eqn.params.get('jaxpr')) if name in _CALLS else None
    avals = [var.aval for var in eqn.outvars]
    if inner is not None:
      results = read(getattr(inner, 'jaxpr', inner), getattr(inner, 'consts', ()), inputs)
    elif name == 'copy' or (name == 'convert_element_type' and inputs[0].dtype == avals[0].dtype):
      results = inputs
    elif eqn.primitive.multiple_results:
      whole = make(name, _binding(eqn), inputs, avals[0], **eqn.params)
      results = [make('part', _item(i), [whole], aval) for i, aval in enumerate(avals)]
    else:
      results = [make(name, _binding(eqn), inputs, avals[0], **eqn.params)]
    known |= dict(zip(eqn.outvars, results, strict=True))
  return [get(atom) for atom in jaxpr.outvars]


def _binding(eqn: Any) -> Callable[..., Any]:
  return lambda *arrays: eqn.primitive.bind(*arrays, **eqn.primitive.get_bind_params(eqn.params))


def _item(i: int) -> Callable[..., Any]:
  return lambda values: values[i]


def live(outputs: Iterable[Node], leaf: Callable[[Node], bool] = lambda node: False) -> list[Node]:
  """What the outputs are made of, inputs first; nothing of what only leaves are made of."""
  found, stack = set(), list(outputs)
  while stack:
    node = stack.pop()
    if node not in found:
      found.add(node)
      stack.extend(() if leaf(node) else node.inputs)
  return sorted(found, key=lambda node: node.index)


def rewrite(outputs: Sequence[Node], rule: Callable[[Node, tuple[Node, ...]], Node]) -> list[Node]:
  """The same program with `rule(node, its new inputs)` in place of every node."""
  new: dict[Node, Node] = {}
  for node in live(outputs):
    new[node] = rule(node, tuple(new[i] for i in node.inputs))
  return [new[node] for node in outputs]


def function(
  outputs: Sequence[Node], leaf: Callable[[Node], bool]
) -> tuple[list[Node], Callable[[Sequence[Any]], list[Any]]]:
  """The leaves that the outputs need, and the function from their values to the outputs'."""
  nodes = live(outputs, leaf)
  leaves, steps = [n for n in nodes if leaf(n)], [n for n in nodes if not leaf(n)]

  def run(values: Sequence[Any]) -> list[Any]:
    known = dict(zip(leaves, values, strict=True))
    for node in steps:
      known[node] = node.run(*(known[i] for i in node.inputs))
    return [known[node] for node in outputs]

  return leaves, run


def scalar(node: Node) -> Any:
  """The value that all elements of a node are known to have, or None."""
  while node.name in ('broadcast_in_dim', 'reshape', 'convert_element_type'):
    node = node.inputs[0]
  return node.params['value'] if node.name == 'literal' and not node.shape else None
