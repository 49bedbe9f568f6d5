"""Parameters and multiply-accumulates (MACs), counted from the jaxpr.

A MAC is one product that is added to a sum, in a convolution or a matrix product; everything else
(normalisation, activation, pooling) isn't counted, as is usual. Products with padding count, so
that a layer's cost depends on its shapes alone; products with the zeros that a transposed
convolution puts between pixels don't, nor do those with a kernel of truth values, which copies
patches (untied convolution). Nothing is computed and no backend is asked.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import UserError

Rule = Callable[[Any], int]


class Layer(NamedTuple):
  """One module, or named scope, that has parameters or MACs of its own.

  Attributes:
    name: path, such as 'stage1/block1/conv1'; '' for what stands outside of any.
    parameters: trainable, its own.
    macs: its own; of all calls where it is called several times.
    output: shape of what it computes last; () when it isn't reached.
  """

  name: str
  parameters: int
  macs: int
  output: tuple[int, ...] = ()


class Count(NamedTuple):
  """The size and cost of a network or function.

  Attributes:
    parameters: trainable ones.
    macs: multiply-accumulates.
    layers: in the order of computation; their numbers add up to the two above.
  """

  parameters: int
  macs: int
  layers: tuple[Layer, ...]


def count(model: nn.Module, input_shape: tuple[int, int, int]) -> Count:
  """Counts a model's trainable parameters and its MACs for one image, in evaluation mode.

  Args:
    model: called as `model.apply(variables, images)`.
    input_shape: height, width and channels of the image.
  """
  images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
  parameters: dict[str, int] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables.get('params', {})):
    name = jax.tree_util.keystr(path[:-1], simple=True, separator='/')
    parameters[name] = parameters.get(name, 0) + math.prod(leaf.shape)
  jaxpr = jax.make_jaxpr(model.apply)(variables, images)
  # linen puts the class of the outermost module before every name.
  root = model.name or type(model).__name__
  return _summary(jaxpr, parameters, root)


def count_fn(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Count:
  """Counts the MACs of any function that JAX can trace, transformed or not.

  Loops are followed: a scan counts as often as it runs, a conditional as its costliest branch, a
  function mapped over devices once for each of them.

  Args:
    fn: the function.
    *args, **kwargs: its arguments; arrays, or `jax.ShapeDtypeStruct`s in their place.

  Raises:
    UserError: a `while` loop with MACs in it, whose number of turns isn't known.
  """
  return _summary(jax.make_jaxpr(fn)(*args, **kwargs), {}, '')


def register(primitive: str, rule: Rule) -> None:
  """Says what a primitive costs that this module doesn't know.

  Args:
    primitive: its name; `'ffi_call:TARGET'` for a foreign function registered as TARGET.
    rule: from an equation of it to its MACs: `eqn.invars[0].aval.shape`, `eqn.outvars`,
      `eqn.params`. It takes precedence over what the primitive may hold inside.
  """
  _RULES[primitive] = rule


def equations(jaxpr: Any, root: str = '') -> Iterator[tuple[str, Any]]:
  """All equations of a jaxpr and of those within it, each with the path of its module.

  Args:
    jaxpr: of `jax.make_jaxpr`.
    root: name of the outermost module, which linen puts before every path; left out of them.
  """
  for name, eqn in _equations(jaxpr, ''):
    yield relative(name, root), eqn


def _equations(jaxpr: Any, outer: str) -> Iterator[tuple[str, Any]]:
  for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    name = '/'.join(filter(None, (outer, scope(eqn))))
    yield name, eqn
    for part in parts(eqn.params.values()):
      yield from _equations(part, name)


def relative(name: str, root: str) -> str:
  """A path without the name of the outermost module."""
  inside = root and (name == root or name.startswith(f'{root}/'))
  return name[len(root) + 1 :] if inside else name


def _conv(eqn: Any) -> int:
  """Kernel positions times input channels for each output; see the module about zeros."""
  lhs, rhs = (v.aval.shape for v in eqn.invars)
  spec = eqn.params['dimension_numbers']
  taps = math.prod(rhs[axis] for axis in spec.rhs_spec[1:])  # input channels of a group, kh, kw
  if any(step > 1 for step in eqn.params['lhs_dilation']):
    # Transposed: every input pixel meets every tap, to make each output channel.
    pixels = math.prod(lhs[axis] for axis in (spec.lhs_spec[0], *spec.lhs_spec[2:]))
    return pixels * taps * rhs[spec.rhs_spec[0]] // eqn.params['batch_group_count']
  return math.prod(eqn.outvars[0].aval.shape) * taps


def _conv2d(outputs: Any, kernel: Any) -> int:
  """A product for each output and each tap [kh, kw, in / groups] of its kernel."""
  return math.prod(outputs.aval.shape) * math.prod(kernel.aval.shape[:3])


def _dot(eqn: Any) -> int:
  (contracted, _), _ = eqn.params['dimension_numbers']
  lhs = eqn.invars[0].aval.shape
  return math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[axis] for axis in contracted)


# What changes an array's type or shape and not its values.
_SAME = ('convert_element_type', 'broadcast_in_dim', 'reshape', 'transpose', 'copy')
_RULES: dict[str, Rule] = {
  'conv_general_dilated': _conv,
  'dot_general': _dot,
  # cnnjax.ops.convolution: (x, w) -> y, (w, dy) -> dx and (x, dy) -> dw.
  'conv2d': lambda eqn: _conv2d(eqn.outvars[0], eqn.invars[1]),
  'conv2d_input_gradient': lambda eqn: _conv2d(eqn.invars[1], eqn.invars[0]),
  'conv2d_weight_gradient': lambda eqn: _conv2d(eqn.invars[1], eqn.outvars[0]),
}


class _Cost(NamedTuple):
  """One equation's share."""

  name: str
  macs: int
  output: tuple[int, ...]


def _costs(jaxpr: Any, outer: str = '') -> Iterator[_Cost]:
  """The equations of a jaxpr and of all within, each under the names of its scopes."""
  # A kernel of truth values picks pixels and multiplies nothing: patches, for untied weights.
  masks: set[Any] = set()
  for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    name = '/'.join(filter(None, (outer, scope(eqn))))
    kind = eqn.primitive.name
    rule = _RULES.get(kind) or _RULES.get(f'{kind}:{eqn.params.get("target_name")}')
    if kind in _SAME and (eqn.invars[0].aval.dtype == bool or _in(eqn.invars[0], masks)):
      masks.update(eqn.outvars)
    if kind == 'conv_general_dilated' and _in(eqn.invars[1], masks):
      rule = None
    inner = [] if rule else [list(_costs(part, name)) for part in parts(eqn.params.values())]
    if kind == 'cond':
      inner = [max(inner, key=_total)]
    elif kind in ('while', 'pallas_call') and any(map(_total, inner)):
      raise UserError(
        f'the MACs of a {kind!r} in {name or "the function"!r} are unknown: how often it runs is '
        'decided when it runs (jax.lax.scan has a fixed number of turns)'
      )
    times = 1
    if kind == 'scan':
      times = eqn.params['length']
    elif kind == 'shard_map':
      times = math.prod(eqn.params['mesh'].shape[axis] for axis in eqn.params['newly_manual_axes'])
    for part in inner:
      for cost in part:
        yield cost._replace(macs=times * cost.macs)
    output = tuple(getattr(eqn.outvars[0].aval, 'shape', ())) if eqn.outvars else ()
    yield _Cost(name, rule(eqn) if rule else 0, output)


def _in(variable: Any, variables: set[Any]) -> bool:
  return not hasattr(variable, 'val') and variable in variables  # literals have no hash


def _total(costs: list[_Cost]) -> int:
  return sum(cost.macs for cost in costs)


def parts(values: Any) -> Iterator[Any]:
  """The jaxprs among an equation's parameters."""
  for value in values:
    if hasattr(getattr(value, 'jaxpr', value), 'eqns'):
      yield value
    elif isinstance(value, list | tuple):
      yield from parts(value)


def scope(eqn: Any) -> str:
  """An equation's name stack without marks of transformations: 'jvp(stem)/conv' -> 'stem/conv'."""
  scopes = re.sub(r'\w+\(|\)', '', str(eqn.source_info.name_stack)).split('/')
  # linen: 'encoder.method', or 'encoder/.method'
  return '/'.join(filter(None, (scope.partition('.')[0] for scope in scopes)))


def _summary(jaxpr: Any, parameters: dict[str, int], root: str) -> Count:
  macs: dict[str, int] = {}
  outputs: dict[str, tuple[int, ...]] = {}
  for cost in _costs(jaxpr):
    name = relative(cost.name, root)
    macs[name] = macs.get(name, 0) + cost.macs
    outputs[name] = cost.output
  layers = tuple(
    Layer(name, parameters.get(name, 0), macs.get(name, 0), outputs.get(name, ()))
    for name in dict.fromkeys([*macs, *parameters])
    if parameters.get(name) or macs.get(name)
  )
  return Count(sum(parameters.values()), sum(macs.values()), layers)
