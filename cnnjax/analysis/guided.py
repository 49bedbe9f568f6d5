"""Guided backpropagation as a transformation of functions: same values, other gradients."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.extend import core

from cnnjax.errors import UserError

_RELUS = {'relu': nn.relu, 'relu6': nn.relu6}  # by the names that a jaxpr keeps of them
_CALLS = ('jit', 'pjit', 'checkpoint', 'remat2')
_GATES = ('hard_sigmoid', 'hard_silu', 'hard_swish')  # use relu6 inside and are no ReLUs


def guided(fn: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
  """A function whose ReLUs pass back only what is positive.

  Springenberg, Dosovitskiy, Brox & Riedmiller 2015, arXiv:1412.6806, section 3.4. The function's
  jaxpr is evaluated with other gradients for `nn.relu` and `nn.relu6`, under jit and remat too, but
  not in the body of a loop or a conditional; `jnp.maximum(x, 0)` has no name to know it by.

  Raises:
    UserError: when called: there is no ReLU.
  """

  def run(x: jax.Array) -> jax.Array:
    closed = jax.make_jaxpr(fn)(x)
    if not _has_relu(closed.jaxpr):
      raise UserError('guided_backprop: no activation of the model is nn.relu or nn.relu6')
    return _evaluate(closed.jaxpr, closed.consts, [x])[0]

  return run


def _inner(eqn: Any) -> Any:
  """The closed jaxpr of a call that may be inlined, else None."""
  if eqn.primitive.name not in _CALLS or eqn.params.get('name') in _GATES:
    return None
  inner = eqn.params['jaxpr']
  return inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())


def _relu(eqn: Any) -> Callable | None:
  """nn.relu or nn.relu6, if that is what the equation calls: a jit within a custom_jvp."""
  if eqn.primitive.name != 'custom_jvp_call' or len(eqn.params['call_jaxpr'].eqns) != 1:
    return None
  return _RELUS.get(eqn.params['call_jaxpr'].eqns[0].params.get('name', ''))


def _has_relu(jaxpr: Any) -> bool:
  return any(
    _relu(eqn) or ((inner := _inner(eqn)) and _has_relu(inner.jaxpr)) for eqn in jaxpr.eqns
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _guided(fn: Callable, x: jax.Array) -> jax.Array:
  return fn(x)


_guided.defvjp(jax.vjp, lambda fn, pull, g: pull(nn.relu(g)))


def _evaluate(jaxpr: Any, consts: Any, arguments: Any) -> list[Any]:
  """Runs a jaxpr with guided ReLUs."""
  values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
  read = lambda v: v.val if isinstance(v, core.Literal) else values[v]
  for eqn in jaxpr.eqns:
    inputs = [read(v) for v in eqn.invars]
    if fn := _relu(eqn):
      outputs = [_guided(fn, *inputs)]
    elif inner := _inner(eqn):
      outputs = _evaluate(inner.jaxpr, inner.consts, inputs)
    else:
      outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
      outputs = outputs if eqn.primitive.multiple_results else [outputs]
    values.update(zip(eqn.outvars, outputs, strict=True))
  return [read(v) for v in jaxpr.outvars]
