"""Batch normalisation (Ioffe & Szegedy 2015, algorithm 1) in as few passes over memory as it takes.

With n values in a channel, r = 1 / sqrt(variance + epsilon) and sums S over them,

  y = scale r (x - mean) + bias
  dy = scale r (dx - S[dx] / n - (x - mean) r² S[dx (x - mean)] / n) + r (x - mean) dscale + dbias.

Two linear maps, each the transpose of the other, hold all that isn't elementwise here:
`channel_sums` v -> (S[v], S[v (x - mean)]) and `channel_expand` (a, b) -> a + b (x - mean). Written
with them, JAX's transpose of the second line is the backward pass with one call of `channel_sums`,
and derivatives of every order follow. On the CPU they run in `cnnjax-onednn`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad, batching

from cnnjax.ops import plugin
from cnnjax.ops.primitive import bind, define


def batch_norm(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  *,
  epsilon: float,
  axis_name: str | None = None,
  moments: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
  """Normalises each channel by the batch's own mean and biased variance.

  Args:
    x: float32 [..., C].
    scale, bias: float32 [C].
    epsilon: added to the variance.
    axis_name: mapped device axis that shares the batch, or None.
    moments: `channel_moments(x)`, where they are known already.

  Returns:
    y, as x; mean and variance [C] over all devices; the number of values in a channel.
  """
  count = lax.psum(x.size // x.shape[-1], axis_name) if axis_name else x.size // x.shape[-1]
  rule = _batch_norm if plugin.chosen() else _plain
  moments = moments or channel_moments(x)
  y, mean, variance = rule(epsilon, axis_name, x, scale, bias, moments)
  return y, mean, variance, count


def channel_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and biased variance [C] of this device's x, float32 [..., C].

  To be given to `batch_norm`, which knows their derivatives with respect to its x; of several
  arrays side by side they are those of each, side by side.
  """
  if plugin.chosen():
    return bind(channel_moments_p, lax.stop_gradient(x))
  return _channel_moments(x)


def _plain(epsilon, axis_name, x, scale, bias, moments):
  mean, variance = _over_devices(moments, axis_name)
  return _normalise(x, mean, scale * lax.rsqrt(variance + epsilon), bias), mean, variance


def _normalise(x, mean, factor, bias):
  return (x - _lift(mean, x)) * _lift(factor, x) + _lift(bias, x)


def _lift(v: jax.Array, x: jax.Array) -> jax.Array:
  return v.reshape((1,) * (x.ndim - 1) + v.shape)  # [C] -> [1, ..., 1, C]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _batch_norm(epsilon, axis_name, x, scale, bias, moments):
  mean, variance = _over_devices(moments, axis_name)
  return _normalise(x, mean, scale * lax.rsqrt(variance + epsilon), bias), mean, variance


@_batch_norm.defjvp
def _batch_norm_jvp(epsilon, axis_name, primals, tangents):
  x, scale, *_ = primals
  dx, dscale, dbias, _ = tangents
  y, mean, variance = _batch_norm(epsilon, axis_name, *primals)
  total = (lambda v: lax.psum(v, axis_name)) if axis_name else (lambda v: v)
  count = total(x.size // x.shape[-1])
  inverse = lax.rsqrt(variance + epsilon)
  factor = scale * inverse
  sum_dx, sum_product = (total(s) / count for s in bind(channel_sums_p, dx, x, mean))
  constant = dbias - factor * sum_dx
  slope = inverse * dscale - factor * jnp.square(inverse) * sum_product
  dy = _lift(factor, x) * dx + bind(channel_expand_p, constant, slope, x, mean)
  return (y, mean, variance), (dy, sum_dx, 2 * sum_product)


def _over_devices(moments: Any, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
  mean, variance = moments
  if axis_name is None:
    return mean, variance
  # Devices hold equally many values.
  overall = lax.pmean(mean, axis_name)
  return overall, lax.pmean(variance + jnp.square(mean - overall), axis_name)


def _channel_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  axes = tuple(range(x.ndim - 1))
  mean = x.mean(axes)
  return mean, jnp.square(x - _lift(mean, x)).mean(axes)


def _channel_sums(v: jax.Array, x: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
  axes = tuple(range(x.ndim - 1))
  return v.sum(axes), (v * (x - _lift(mean, x))).sum(axes)


def _channel_expand(a: jax.Array, b: jax.Array, x: jax.Array, mean: jax.Array) -> jax.Array:
  return _lift(a, x) + _lift(b, x) * (x - _lift(mean, x))


def _native(name: str) -> Any:
  def rule(ctx: Any) -> Any:
    if any(aval.dtype != jnp.float32 for aval in ctx.avals_in):
      return None
    return plugin.call(name, plugin.threads(0, sum(aval.size for aval in ctx.avals_in)))

  return rule


channel_moments_p = define(
  'channel_moments', _channel_moments, _native('channel_moments'), multiple=True
)
channel_sums_p = define('channel_sums', _channel_sums, _native('channel_sums'), multiple=True)
channel_expand_p = define('channel_expand', _channel_expand)  # elementwise: XLA fuses it


def _batch(primitive: Any, reference: Any) -> None:
  def rule(args: Any, dims: Any) -> Any:
    out = jax.vmap(reference, dims)(*args)
    return out, (0,) * len(out) if primitive.multiple_results else 0

  batching.primitive_batchers[primitive] = rule


_batch(channel_moments_p, _channel_moments)
_batch(channel_sums_p, _channel_sums)
_batch(channel_expand_p, _channel_expand)


def _jvp(primitive: Any, reference: Any, linear: int) -> None:
  """Linear in the first `linear` arguments; changes of the others, which only second derivatives
  ask for, go through the plain definition."""

  def rule(primals: Any, tangents: Any) -> Any:
    terms = []
    first, rest = primals[:linear], primals[linear:]
    if any(not isinstance(t, ad.Zero) for t in tangents[:linear]):
      terms.append(bind(primitive, *map(ad.instantiate_zeros, tangents[:linear]), *rest))
    if any(not isinstance(t, ad.Zero) for t in tangents[linear:]):
      changes = tuple(ad.instantiate_zeros(t) for t in tangents[linear:])
      terms.append(jax.jvp(partial(reference, *first), tuple(rest), changes)[1])
    out = (
      jax.tree.map(lambda *ts: sum(ts), *map(tuple, terms))
      if primitive.multiple_results
      else sum(terms)
    )
    return bind(primitive, *primals), out

  ad.primitive_jvps[primitive] = rule


_jvp(channel_sums_p, _channel_sums, 1)
_jvp(channel_expand_p, _channel_expand, 2)


def _transpose_sums(ct: Any, v: Any, x: jax.Array, mean: jax.Array) -> Any:
  a, b = (ad.instantiate_zeros(c) for c in ct)
  return bind(channel_expand_p, a, b, x, mean), None, None


def _transpose_expand(ct: Any, a: Any, b: Any, x: jax.Array, mean: jax.Array) -> Any:
  return *bind(channel_sums_p, ct, x, mean), None, None


ad.primitive_transposes[channel_sums_p] = _transpose_sums
ad.primitive_transposes[channel_expand_p] = _transpose_expand
