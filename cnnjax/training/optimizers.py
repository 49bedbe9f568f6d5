"""Optimizers by name, as pure optax transformations.

Each rule below is the chain of its steps, read from the gradient to the update: where `decay`
stands before the scaling, weight decay is an L2 penalty on the gradient (PyTorch's SGD, Adam and
RMSprop); after it, it is decoupled (https://arxiv.org/abs/1711.05101), times the learning rate.
"""

import inspect
import math
import numbers
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cnnjax import errors

Transform = optax.GradientTransformation
Mask = Callable[[Any], Any]

NO_DECAY = (r'(^|/)(bias|scale)$',)  # biases, and the scales and biases of normalisations


def _sgd(decay: Transform, rate: Transform, mask: Mask) -> tuple[Transform, ...]:
  return decay, rate


def _momentum(decay: Transform, rate: Transform, mask: Mask, *, momentum: float = 0.9):
  return decay, optax.trace(momentum), rate


def _nesterov(decay: Transform, rate: Transform, mask: Mask, *, momentum: float = 0.9):
  return decay, optax.trace(momentum, nesterov=True), rate


def _rmsprop(
  decay: Transform,
  rate: Transform,
  mask: Mask,
  *,
  momentum: float = 0.0,
  b2: float = 0.9,
  eps: float = 1e-8,
):
  # As PyTorch: g / (sqrt(v) + eps), and momentum before the learning rate (optax: after it).
  return decay, optax.scale_by_rms(b2, eps, eps_in_sqrt=False), optax.trace(momentum), rate


def _adam(
  decay: Transform,
  rate: Transform,
  mask: Mask,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
):
  return decay, optax.scale_by_adam(b1, b2, eps), rate


def _adamw(
  decay: Transform,
  rate: Transform,
  mask: Mask,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
):
  return optax.scale_by_adam(b1, b2, eps), decay, rate


def _lamb(
  decay: Transform,
  rate: Transform,
  mask: Mask,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
):
  """https://arxiv.org/abs/1904.00962, algorithm 2."""
  return optax.scale_by_adam(b1, b2, eps), decay, optax.scale_by_trust_ratio(), rate


def _lars(decay: Transform, rate: Transform, mask: Mask, *, momentum: float = 0.9):
  """https://arxiv.org/abs/1708.03888, algorithm 1; what isn't decayed isn't adapted either."""
  trust = optax.scale_by_trust_ratio(trust_coefficient=0.001)
  return decay, optax.masked(trust, mask), rate, optax.trace(momentum)


def _lion(decay: Transform, rate: Transform, mask: Mask, *, b1: float = 0.9, b2: float = 0.99):
  """https://arxiv.org/abs/2302.06675, algorithm 2."""
  return optax.scale_by_lion(b1, b2), decay, rate


def _muon(
  decay: Transform,
  rate: Transform,
  mask: Mask,
  *,
  momentum: float = 0.95,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
):
  """Muon on kernels, Adam (b1, b2) on vectors, https://arxiv.org/abs/2502.16982.

  A kernel [kh, kw, in, out] is orthogonalised as the matrix [kh * kw * in, out]. Updates are scaled
  to 0.2 sqrt(max(rows, columns)), the root mean square of Adam's, so that both share one learning
  rate and one weight decay, those of AdamW.
  """
  if not hasattr(optax.contrib, 'MuonDimensionNumbers'):
    raise errors.UserError(
      f"optimizer.name='muon' isn't in the installed optax {optax.__version__}; install a newer one"
    )

  def matrices(params):  # also maps the partition's trees, where vectors are masked out
    return jax.tree.map(
      lambda x: optax.contrib.MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1), params
    )

  def match_adam(update):
    rows, columns = math.prod(update.shape[:-1]), update.shape[-1]
    return 0.2 * math.sqrt(max(rows, columns)) * update

  muon = optax.chain(
    optax.contrib.scale_by_muon(beta=momentum, eps=eps, weight_dimension_numbers=matrices),
    optax.stateless_with_tree_map(lambda update, _: match_adam(update)),
  )
  parts: dict[Hashable, Transform] = {'muon': muon, 'adam': optax.scale_by_adam(b1, b2, eps)}
  labels = lambda params: jax.tree.map(lambda x: 'muon' if x.ndim > 1 else 'adam', params)
  return optax.partition(parts, labels), decay, rate


OPTIMIZERS: dict[str, Callable[..., tuple[Transform, ...]]] = {
  'sgd': _sgd,
  'momentum': _momentum,
  'nesterov': _nesterov,
  'rmsprop': _rmsprop,
  'adam': _adam,
  'adamw': _adamw,
  'lamb': _lamb,
  'lars': _lars,
  'lion': _lion,
  'muon': _muon,
}


def create(
  name: str,
  learning_rate: optax.ScalarOrSchedule,
  *,
  momentum: float | None = None,
  b1: float | None = None,
  b2: float | None = None,
  eps: float | None = None,
  weight_decay: float = 0.0,
  no_decay: Sequence[str] = NO_DECAY,
  clip_norm: float = 0.0,
  rate_factors: Sequence[str] = (),
  layer_decay: float = 1.0,
  lookahead: int = 0,
  freeze: Sequence[str] = (),
) -> Transform:
  """An optimizer by name.

  Numbers may be traced arrays (a population of members under vmap); those aren't checked.

  Args:
    name: one of OPTIMIZERS.
    learning_rate: a number, or a schedule from the update's index to one.
    momentum: decay of the momentum; None, here and below: the optimizer's usual default.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the denominator.
    weight_decay: strength of the decay.
    no_decay: regular expressions, searched in parameter paths such as `stage1/block1/conv1/kernel`;
      what matches one isn't decayed. None given, `()`: all parameters are.
    clip_norm: largest global norm of the gradient, before everything else; 0: no clipping.
    rate_factors: 'PATTERN=FACTOR': the learning rate of the parameters whose path matches is
      FACTOR times the others'; the first that matches counts.
    layer_decay: each block's learning rate is `layer_decay` times that of the next, from the head,
      whose rate is whole, down to the stem (Clark et al. 2020, arXiv:2003.10555; see `depths`).
    lookahead: k: after every k updates the parameters go back to half way between where they are
      and where they were at the last such moment (Zhang et al. 2019, arXiv:1907.08610, algorithm
      1, alpha 0.5); 0: off.
    freeze: regular expressions; the parameters that match stay as they are, have no optimizer
      state, and aren't decayed nor counted in the gradient's norm.

  Returns:
    A transformation whose update needs the parameters.

  Raises:
    UserError: an unknown name, an option that this optimizer doesn't have, a value out of range.
  """
  if name not in OPTIMIZERS:
    raise errors.unknown('optimizer.name', name, OPTIMIZERS)
  rule = OPTIMIZERS[name]
  given = {'momentum': momentum, 'b1': b1, 'b2': b2, 'eps': eps}
  options = {key: value for key, value in given.items() if value is not None}
  takes = [p.name for p in inspect.signature(rule).parameters.values() if p.kind == p.KEYWORD_ONLY]
  for key, value in options.items():
    if key not in takes:
      raise errors.UserError(
        f'optimizer.{key}={value!r} is not an option of {name!r}, which takes: '
        f'{", ".join([*takes, "weight_decay", "no_decay", "clip_norm"])}'
      )
    if key == 'eps':
      _check(key, value, lambda x: x > 0, 'a positive number')
    else:
      _check(key, value, lambda x: 0 <= x < 1, 'a number in [0, 1)')
  if not callable(learning_rate):
    _check('learning_rate', learning_rate, lambda x: x >= 0, 'a number, not negative')
  _check('weight_decay', weight_decay, lambda x: x >= 0, 'a number, not negative')
  _check('clip_norm', clip_norm, lambda x: x >= 0, 'a number, not negative')

  mask = _decay_mask(no_decay)
  decay, clip = optax.identity(), optax.identity()
  if isinstance(weight_decay, jax.Array) or weight_decay:
    decay = optax.add_decayed_weights(weight_decay, mask=mask)
  if isinstance(clip_norm, jax.Array):
    clip = optax.clip_by_global_norm(jnp.where(clip_norm > 0, clip_norm, jnp.inf))
  elif clip_norm:
    clip = optax.clip_by_global_norm(clip_norm)
  steps = [clip, *rule(decay, optax.scale_by_learning_rate(learning_rate), mask, **options)]
  if rate_factors:
    steps.append(_scale_rates(rate_factors))
  if layer_decay != 1:
    steps.append(_decay_by_depth(layer_decay))
  whole = optax.chain(*steps)
  if lookahead:
    whole = _lookahead(whole, lookahead)
  if not freeze:
    return whole
  patterns = _compile('freeze', freeze)

  def labels(params):
    _check_used('freeze', patterns, params)
    return _frozen(patterns, params)

  parts: dict[Hashable, Transform] = {False: whole, True: optax.set_to_zero()}
  return optax.partition(parts, labels)


def spare_frozen(loss: Callable[..., Any], freeze: Sequence[str]) -> Callable[..., Any]:
  """A task's loss whose gradient is zero, and isn't computed, for parameters that are frozen.

  Args:
    loss: `(variables, ...)`.
    freeze: as for `create`.
  """
  patterns = _compile('freeze', freeze)

  def spared(variables, *args, **options):
    params = variables['params']
    stop = lambda frozen, leaf: jax.lax.stop_gradient(leaf) if frozen else leaf
    params = jax.tree.map(stop, _frozen(patterns, params), params)
    return loss({**variables, 'params': params}, *args, **options)

  return spared


def _frozen(patterns: Sequence[re.Pattern[str]], params: Any) -> Any:
  found = lambda path, _: any(pattern.search(_name(path)) for pattern in patterns)
  return jax.tree_util.tree_map_with_path(found, params)


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _compile(field: str, patterns: Sequence[str]) -> list[re.Pattern[str]]:
  try:
    return [re.compile(p) for p in ((patterns,) if isinstance(patterns, str) else patterns)]
  except (re.error, TypeError) as error:
    raise errors.UserError(f'{field}={patterns!r} must be regular expressions: {error}') from error


def _check_used(field: str, patterns: Sequence[re.Pattern[str]], params: Any) -> None:
  names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  for pattern in patterns:
    if not any(pattern.search(name) for name in names):
      raise errors.UserError(
        f'{field}: no parameter matches {pattern.pattern!r}, e.g. {names[0]!r}'
      )


def _scale_rates(rate_factors: Sequence[str]) -> Transform:
  """Multiplies the finished update of each parameter by its factor."""
  pairs = [pair.rpartition('=') for pair in rate_factors]
  patterns = _compile('optimizer.rate_factors', [pattern for pattern, _, _ in pairs])
  try:
    factors = [float(factor) for _, _, factor in pairs]
  except ValueError as error:
    raise errors.UserError(
      f"optimizer.rate_factors={tuple(rate_factors)!r} must be 'PATTERN=FACTOR' each: {error}"
    ) from error
  for factor in factors:
    _check('rate_factors', factor, lambda x: x >= 0, 'numbers, not negative')

  def init(params):
    _check_used('optimizer.rate_factors', patterns, params)
    return optax.EmptyState()

  def scale(path, update):
    matches = (f for p, f in zip(patterns, factors, strict=True) if p.search(_name(path)))
    return next(matches, 1.0) * update

  def update(updates, state, params=None):
    del params
    return jax.tree_util.tree_map_with_path(scale, updates), state

  return optax.GradientTransformation(init, update)


def depths(params: Any) -> Any:
  """Each parameter's depth: the place of its block, counted from the stem's 0 to the head's.

  A stage's blocks are told apart and ordered by the numbers that their names end in (`block2`,
  `layer2`, `conv2` with `norm2`); what has none there (`downsample`) stands before them.
  """

  def place(path: Any) -> tuple[int, int, int]:
    top, *rest = _name(path).split('/')[:-1] or ['']
    if top.startswith(('stem', 'head')):
      return (-1 if top.startswith('stem') else 1), 0, 0
    numbers = [re.search(r'\d+$', name) for name in (top, rest[0] if rest else '')]
    stage, block = (int(number.group()) if number else 0 for number in numbers)
    return 0, stage, block

  order = sorted({place(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)})
  return jax.tree_util.tree_map_with_path(lambda path, _: order.index(place(path)), params)


def _decay_by_depth(decay: float) -> Transform:
  """Multiplies the finished update of each parameter by a power of `decay`."""

  def scale(updates: Any, params: Any) -> Any:
    depth = depths(params)
    last = max(jax.tree.leaves(depth))
    return jax.tree.map(lambda d, update: decay ** (last - d) * update, depth, updates)

  return optax.stateless(scale)


def _lookahead(fast: Transform, period: int) -> Transform:
  """Optax's lookahead with the slow parameters in its state, so that parameters stay one tree."""
  inner: Any = optax.lookahead(fast, sync_period=period, slow_step_size=0.5)

  def init(params):
    # Copied: two arrays of a state can't share memory that a step is to reuse.
    return jax.tree.map(jnp.copy, params), inner.init(optax.LookaheadParams.init_synced(params))

  def update(updates, state, params=None):
    slow, inner_state = state
    assert params is not None
    both = optax.LookaheadParams(fast=params, slow=slow)
    changes, inner_state = inner.update(updates, inner_state, both)
    return changes.fast, (optax.apply_updates(slow, changes.slow), inner_state)

  return optax.GradientTransformation(init, update)


def _decay_mask(no_decay: Sequence[str]) -> Mask:
  """A function from parameters to a tree of booleans: True where weight decay applies."""
  patterns = _compile('optimizer.no_decay', no_decay)
  decayed = lambda path, _: not any(pattern.search(_name(path)) for pattern in patterns)
  return lambda params: jax.tree_util.tree_map_with_path(decayed, params)


def _check(field: str, value: Any, holds: Callable[[float], bool], allowed: str) -> None:
  if isinstance(value, jax.Array):
    return
  number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not (number and math.isfinite(value) and holds(float(value))):
    raise errors.UserError(f'optimizer.{field}={value!r} must be {allowed}')
