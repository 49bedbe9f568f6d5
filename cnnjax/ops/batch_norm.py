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
) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
  """Normalises each channel by the batch's own mean and biased variance.

  Args:
    x: float32 [..., C].
    scale, bias: float32 [C].
    epsilon: added to the variance.
    axis_name: mapped device axis that shares the batch, or None.

  Returns:
    y, as x; mean and variance [C] over all devices; the number of values in a channel.
  """
  count = lax.psum(x.size // x.shape[-1], axis_name) if axis_name else x.size // x.shape[-1]
  rule = _batch_norm if plugin.chosen() else _plain
  y, mean, variance = rule(epsilon, axis_name, x, scale, bias)
  return y, mean, variance, count


def _plain(epsilon, axis_name, x, scale, bias):
  mean, variance = _over_devices(_channel_moments(x), axis_name)
  return _normalise(x, mean, scale * lax.rsqrt(variance + epsilon), bias), mean, variance


def _normalise(x, mean, factor, bias):
  return (x - _lift(mean, x)) * _lift(factor, x) + _lift(bias, x)


def _lift(v: jax.Array, x: jax.Array) -> jax.Array:
  return v.reshape((1,) * (x.ndim - 1) + v.shape)  # [C] -> [1, ..., 1, C]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _batch_norm(epsilon, axis_name, x, scale, bias):
  mean, variance = _over_devices(bind(channel_moments_p, x), axis_name)
  return _normalise(x, mean, scale * lax.rsqrt(variance + epsilon), bias), mean, variance


@_batch_norm.defjvp
def _batch_norm_jvp(epsilon, axis_name, primals, tangents):
  x, scale, _ = primals
  dx, dscale, dbias = tangents
  y, mean, variance = _batch_norm(epsilon, axis_name, *primals)
  total = (lambda v: lax.psum(v, axis_name)) if axis_name else (lambda v: v)
  count = total(x.size // x.shape[-1])
  inverse = lax.rsqrt(variance + epsilon)
  factor = scale * inverse
  sums = total(bind(channel_sums_p, dx, x, mean)) / count
  constant = dbias - factor * sums[0]
  slope = inverse * dscale - factor * jnp.square(inverse) * sums[1]
  dy = _lift(factor, x) * dx + bind(channel_expand_p, jnp.stack([constant, slope]), x, mean)
  return (y, mean, variance), (dy, sums[0], 2 * sums[1])


def _over_devices(moments: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
  mean, variance = moments
  if axis_name is None:
    return mean, variance
  # Devices hold equally many values.
  overall = lax.pmean(mean, axis_name)
  return overall, lax.pmean(variance + jnp.square(mean - overall), axis_name)


def _channel_moments(x: jax.Array) -> jax.Array:
  axes = tuple(range(x.ndim - 1))
  mean = x.mean(axes)
  return jnp.stack([mean, jnp.square(x - _lift(mean, x)).mean(axes)])


def _channel_sums(v: jax.Array, x: jax.Array, mean: jax.Array) -> jax.Array:
  axes = tuple(range(x.ndim - 1))
  return jnp.stack([v.sum(axes), (v * (x - _lift(mean, x))).sum(axes)])


def _channel_expand(c: jax.Array, x: jax.Array, mean: jax.Array) -> jax.Array:
  return _lift(c[0], x) + _lift(c[1], x) * (x - _lift(mean, x))


def _native(name: str) -> Any:
  def rule(ctx: Any) -> Any:
    if any(aval.dtype != jnp.float32 for aval in ctx.avals_in):
      return None
    return plugin.call(name)

  return rule


channel_moments_p = define('channel_moments', _channel_moments, _native('channel_moments'))
channel_sums_p = define('channel_sums', _channel_sums, _native('channel_sums'))
channel_expand_p = define('channel_expand', _channel_expand)  # elementwise: XLA fuses it


def _batch(primitive: Any, reference: Any) -> None:
  def rule(args: Any, dims: Any) -> Any:
    return jax.vmap(reference, dims)(*args), 0

  batching.primitive_batchers[primitive] = rule


_batch(channel_moments_p, _channel_moments)
_batch(channel_sums_p, _channel_sums)
_batch(channel_expand_p, _channel_expand)


def _jvp(primitive: Any, reference: Any) -> None:
  """Linear in the first argument; changes of the others, which only second derivatives ask for,
  go through the plain definition."""

  def rule(primals: Any, tangents: Any) -> Any:
    terms = []
    if not isinstance(tangents[0], ad.Zero):
      terms.append(bind(primitive, tangents[0], *primals[1:]))
    if any(not isinstance(t, ad.Zero) for t in tangents[1:]):
      others = tuple(ad.instantiate_zeros(t) for t in tangents[1:])
      terms.append(jax.jvp(partial(reference, primals[0]), tuple(primals[1:]), others)[1])
    return bind(primitive, *primals), sum(terms)

  ad.primitive_jvps[primitive] = rule


_jvp(channel_sums_p, _channel_sums)
_jvp(channel_expand_p, _channel_expand)
ad.primitive_jvps[channel_moments_p] = lambda primals, tangents: jax.jvp(
  _channel_moments, primals, tangents
)
ad.primitive_transposes[channel_sums_p] = lambda ct, v, x, mean: (
  bind(channel_expand_p, ct, x, mean),
  None,
  None,
)
ad.primitive_transposes[channel_expand_p] = lambda ct, c, x, mean: (
  bind(channel_sums_p, ct, x, mean),
  None,
  None,
)
