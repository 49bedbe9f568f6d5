"""JAX primitives that are XLA operations everywhere, and a call of the plugin on the CPU."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from cnnjax.ops import plugin


def define(
  name: str,
  reference: Callable[..., Any],
  native: Callable[..., Any] | None = None,
  *,
  multiple: bool = False,
) -> Primitive:
  """A primitive without rules of differentiation or batching yet.

  Args:
    name: as jaxprs show it.
    reference: what it computes, `reference(*arrays, **params)`, in JAX: an array or, with
      `multiple`, a tuple of arrays.
    native: `native(ctx, **params)` for the CPU: a lowering rule, or None where the plugin has
      nothing better. Programs for export never ask.
    multiple: it has several results.
  """
  primitive = Primitive(name)
  primitive.multiple_results = multiple

  # Outside of jit: one program for each function here, so that of many shapes the oldest is freed.
  @lru_cache(maxsize=256)
  def compiled(avals: Any, **params: Any) -> Callable[..., Any]:
    del avals
    return jax.jit(partial(primitive.bind, **params))

  def apply(*args: Any, **params: Any) -> Any:
    return compiled(tuple(map(jax.typeof, args)), **params)(*args)

  primitive.def_impl(apply)

  def abstract(*args: Any, **params: Any) -> Any:
    plain = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in args]
    out = jax.eval_shape(partial(reference, **params), *plain)
    avals = [args[0].update(shape=x.shape, dtype=x.dtype) for x in jax.tree.leaves(out)]
    return avals if multiple else avals[0]

  primitive.def_abstract_eval(abstract)
  everywhere = mlir.lower_fun(reference, multiple_results=multiple)
  mlir.register_lowering(primitive, everywhere)

  def on_cpu(ctx: Any, *args: Any, **params: Any) -> Any:
    exported = ctx.module_context.lowering_parameters.for_export
    rule = native(ctx, **params) if native and plugin.load() and not exported else None
    return rule(ctx, *args) if rule else everywhere(ctx, *args, **params)

  if native:
    mlir.register_lowering(primitive, on_cpu, platform='cpu')
  return primitive


def bind(primitive: Primitive, *arrays: jax.Array, **params: Any) -> Any:
  """`primitive.bind`; inside `shard_map`, arrays that are equal on all devices are made to vary as
  the others do, as JAX's own operations have it."""
  axes = [jax.typeof(x).manual_axis_type.varying for x in arrays]
  every = frozenset().union(*axes)
  if any(every - mine for mine in axes):
    arrays = tuple(
      lax.pcast(x, tuple(every - mine), to='varying') if every - mine else x
      for x, mine in zip(arrays, axes, strict=True)
    )
  return primitive.bind(*arrays, **params)
