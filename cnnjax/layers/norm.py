"""Normalisation.

A model takes `norm`, a partial of any linen normalisation, and calls `bind` once with `train` and
its compute type. Its blocks then write `norm(name='norm1')(x)` and never hear of training mode:

  norm = bind(self.norm, train=train, dtype=self.dtype)
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cnnjax import ops

NormFactory = Callable[..., Any]
_Model = TypeVar('_Model', bound=nn.Module)


class BatchNorm(nn.Module):
  """Batch normalisation over every axis but the last (Ioffe & Szegedy 2015, algorithm 1).

  Numerics are PyTorch's: the batch is normalised by its biased variance, and the running variance
  averages the unbiased one, n / (n - 1). (linen and Keras store the biased one, so that weights
  which travel between the frameworks drift.) The variance is taken in two passes, from centred
  values: E[x²] - E[x]² loses every digit where the mean is large beside the spread.

  Variables: params `scale`, `bias`; batch_stats `mean`, `var`; all float32, [C].

  Attributes:
    momentum: weight of the old running value; 1 - PyTorch's `momentum`.
    epsilon: added to the variance.
    dtype: type of the output; None keeps the input's. Statistics are always float32.
    axis_name: mapped device axis over which the batch is shared, or None. The statistics are then
      those of the global batch, exactly.
    use_running_average: normalise by the running statistics; here or in the call.
    use_scale: multiply by a learned scale.
    use_bias: add a learned bias.
    scale_init: initialiser of the scale.
    bias_init: initialiser of the bias.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = None
  axis_name: str | None = None
  use_running_average: bool | None = None
  use_scale: bool = True
  use_bias: bool = True
  scale_init: nn.initializers.Initializer = nn.initializers.ones
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    use_running_average: bool | None = None,
    moments: tuple[jax.Array, jax.Array] | None = None,
  ) -> jax.Array:
    running = nn.merge_param('use_running_average', self.use_running_average, use_running_average)
    shape = (x.shape[-1],)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
    running_var = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)
    dtype = self.dtype or x.dtype
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    lift = lambda v: v.reshape((1,) * (x.ndim - 1) + shape)  # [C] -> [1, ..., 1, C]

    scale = self.param('scale', self.scale_init, shape, jnp.float32) if self.use_scale else None
    bias = self.param('bias', self.bias_init, shape, jnp.float32) if self.use_bias else None
    scale = jnp.ones(shape, x.dtype) if scale is None else scale
    bias = jnp.zeros(shape, x.dtype) if bias is None else bias
    if running:
      factor = scale * lax.rsqrt(running_var.value + self.epsilon)
      y = (x - lift(running_mean.value)) * lift(factor) + lift(bias)
    else:
      # No device axis is bound while a model is being initialised.
      axis_name = None if self.is_initializing() else self.axis_name
      y, mean, var, count = ops.batch_norm(
        x, scale, bias, epsilon=self.epsilon, axis_name=axis_name, moments=moments
      )
      if not self.is_initializing() and self.is_mutable_collection('batch_stats'):
        unbiased = var * (count / max(count - 1, 1))
        keep = self.momentum
        running_mean.value = keep * running_mean.value + (1 - keep) * mean
        running_var.value = keep * running_var.value + (1 - keep) * unbiased
    return y.astype(dtype)


class Part(NamedTuple):
  """An array and its `ops.channel_moments`, or None: what several layers normalise as a part of
  their input, each with its own scale, need not be summed up by every one of them."""

  x: jax.Array
  moments: tuple[jax.Array, jax.Array] | None


def part(norm: NormFactory, x: jax.Array) -> Part:
  """A part for `normalise_parts` by `norm`, bound, or by others like it."""
  summed = isinstance(norm, functools.partial) and _target(norm) is BatchNorm
  if not summed or norm.keywords.get('use_running_average', True):
    return Part(x, None)
  return Part(x, ops.channel_moments(x.astype(jnp.promote_types(x.dtype, jnp.float32))))


def normalise_parts(norm: Callable[..., jax.Array], parts: Sequence[Part]) -> jax.Array:
  """`norm`, a module, of the parts side by side along the channels."""
  x = jnp.concatenate([part.x for part in parts], -1)
  moments = [part.moments for part in parts if part.moments is not None]
  if len(moments) < len(parts):
    return norm(x)
  mean, variance = (jnp.concatenate(values) for values in zip(*moments, strict=True))
  return norm(x, moments=(mean, variance))


class LocalResponseNorm(nn.Module):
  """Local response normalisation over neighbouring channels (Krizhevsky et al. 2012, section 3.3):
  x / (k + alpha * sum of x² over `size` channels) ^ beta; the channels stop at both ends.

  In PyTorch and Caffe `alpha` multiplies the mean instead: theirs is `size` times ours.

  Attributes:
    size: channels in a window: size // 2 before, (size - 1) // 2 after.
    alpha, beta, k: see above; the paper's are the defaults.
    dtype: type of the output; None keeps the input's. Computed in float32.
  """

  size: int = 5
  alpha: float = 1e-4
  beta: float = 0.75
  k: float = 2.0
  dtype: Any = None

  def __call__(self, x: jax.Array) -> jax.Array:
    dtype = self.dtype or x.dtype
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    before = self.size // 2
    around = [(0, 0)] * (x.ndim - 1) + [(before, self.size - 1 - before)]
    squares = jnp.pad(jnp.square(x), around)
    channels = x.shape[-1]
    total = sum(squares[..., i : i + channels] for i in range(self.size))
    return (x * (self.k + self.alpha * total) ** -self.beta).astype(dtype)


class GlobalResponseNorm(nn.Module):
  """Global response normalisation (Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808, algorithm 1).

  The length of each channel over the image, divided by the mean length of the channels, scales
  the channel: x + scale * (x * ratio) + bias, both learned, [C], and zero at first.

  Attributes:
    epsilon: added to the mean length.
    dtype: type of the output; None keeps the input's. Computed in float32.
    scale_init, bias_init: initialisers.
  """

  epsilon: float = 1e-6
  dtype: Any = None
  scale_init: nn.initializers.Initializer = nn.initializers.zeros
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtype = self.dtype or x.dtype
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # (N, H, W, C)
    shape = (x.shape[-1],)
    scale = self.param('scale', self.scale_init, shape, jnp.float32)
    bias = self.param('bias', self.bias_init, shape, jnp.float32)
    squares = jnp.square(x).sum((1, 2), keepdims=True)
    # The square root has no gradient at 0, where a channel is dark all over.
    dark = squares == 0
    length = jnp.where(dark, 0, jnp.sqrt(jnp.where(dark, 1, squares)))
    ratio = length / (length.mean(-1, keepdims=True) + self.epsilon)
    return (x + scale[None, None, None] * (x * ratio) + bias[None, None, None]).astype(dtype)


class LayerScale(nn.Module):
  """Multiplies every channel by a learned `gamma`, [C], small at first: the end of a residual
  branch (Touvron et al. 2021, CaiT, arXiv:2103.17239, section 2).

  Attributes:
    value: of every gamma at first.
    dtype: type of the output; None keeps the input's.
  """

  value: float = 1e-6
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dtype = self.dtype or x.dtype
    gamma = self.param('gamma', nn.initializers.constant(self.value), x.shape[-1:], jnp.float32)
    return x.astype(dtype) * gamma.astype(dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def bind(norm: NormFactory | None, **options: Any) -> NormFactory:
  """Gives a normalisation the options that it has fields for; the others don't concern it.

  So group or layer normalisation drops in where a model was written for batch normalisation. What
  the caller of the model has set already wins: `partial(BatchNorm, use_running_average=True)`
  stays frozen in training.

  Args:
    norm: a linen module class or a partial of one; None stands for no normalisation.
    **options: `train`, which becomes `use_running_average=not train`, and any field (`dtype`).

  Returns:
    A factory: `factory(name=..., **fields)(x)`.
  """
  if norm is None:
    return lambda **_: lambda x: x
  if 'train' in options:
    options['use_running_average'] = not options.pop('train')
  fields = _fields(norm)
  given = norm.keywords if isinstance(norm, functools.partial) else {}
  chosen = {k: v for k, v in options.items() if (not fields or k in fields) and k not in given}
  return functools.partial(norm, **chosen)


def with_batch_norm(model: _Model, **options: Any) -> _Model:
  """The same model with options of its batch normalisation set.

  Args:
    model: any linen module. Its fields that hold batch normalisation (a class or partial), and
      those of the modules in its fields, are changed; other norms are left alone.
    **options: `axis_name`, over whose devices the batch is shared (None on one), `momentum`, or
      `use_running_average=True`, which holds in training too.
  """
  changes = {}
  for field in dataclasses.fields(model):
    value = getattr(model, field.name)
    if field.name == 'parent' or not field.init:
      continue
    if isinstance(value, nn.Module):
      changed = with_batch_norm(value, **options)
    elif _is_batch_norm(value):
      changed = functools.partial(value, **options)
    else:
      continue
    if changed is not value:
      changes[field.name] = changed
  return model.clone(**changes) if changes else model


def _target(factory: Any) -> Any:
  return _target(factory.func) if isinstance(factory, functools.partial) else factory


def _fields(factory: Any) -> set[str]:
  target = _target(factory)
  return {f.name for f in dataclasses.fields(target)} if dataclasses.is_dataclass(target) else set()


def _is_batch_norm(factory: Any) -> bool:
  target = _target(factory)
  return isinstance(target, type) and issubclass(target, BatchNorm | nn.BatchNorm)
