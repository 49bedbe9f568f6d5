"""Starts a run from weights that are there already, `config.init_from`, or from zeros."""

import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cnnjax import pretrained
from cnnjax.config import Config
from cnnjax.errors import UserError
from cnnjax.pretrained import published
from cnnjax.training import checkpoint
from cnnjax.training.state import State, start_average


def start(
  state: State,
  config: Config,
  optimizer: optax.GradientTransformation,
  *,
  image: tuple[int, int, int],
  num_classes: int,
) -> State:
  """The state before the first step, from the weights that `config.init_from` names, if any, and
  zeros where `config.init_zero` matches.

  Args:
    state: freshly initialised; `config.init_skip` says what stays as it is there.
    config: validated.
    optimizer: whose state starts anew from the loaded parameters.
    image: height, width and channels of the input.
    num_classes: of the model.

  Raises:
    UserError: no such weights, or they don't fit the model; a pattern that matches nothing.
  """
  source, skip = config.init_from, tuple(config.init_skip)
  own = {'params': state.params, 'batch_stats': state.batch_stats}
  try:
    if not source:
      found = own
    elif os.path.isdir(os.path.expanduser(source)):
      found = _from_run(os.path.expanduser(source), own, skip)
    else:
      options = {k: v for k, v in config.model.items() if k != 'name'}
      options |= {'image': image, 'num_classes': num_classes}
      found = _from_torch(source, config.model.name, skip=skip, fresh=own, **options)
  except re.error as error:
    raise UserError(f'config.init_skip={skip!r} must be regular expressions: {error}') from error
  except UserError as error:
    raise UserError(
      f'config.init_from={source!r}: {error} (config.init_skip names what stays as it is)'
    ) from error
  found = {part: found.get(part, {}) for part in own}
  loaded = jax.tree.map(lambda leaf, value: jnp.asarray(value, leaf.dtype), own, found)
  loaded['params'] = _zero(loaded['params'], config.init_zero)
  opt_state = jax.jit(optimizer.init)(loaded['params'])
  ema = None if state.ema is None else start_average(loaded)
  return State(step=state.step, opt_state=opt_state, ema=ema, **loaded)


def _zero(params: Any, patterns: Sequence[str]) -> Any:
  used = set()

  def start(path: Any, leaf: Any) -> Any:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    found = [pattern for pattern in patterns if re.search(pattern, name)]
    used.update(found)
    return jnp.zeros_like(leaf) if found else leaf

  try:
    params = jax.tree_util.tree_map_with_path(start, params)
  except re.error as error:
    raise UserError(
      f'config.init_zero={patterns!r} must be regular expressions: {error}'
    ) from error
  if unused := [pattern for pattern in patterns if pattern not in used]:
    raise UserError(f'config.init_zero: no parameter matches {unused[0]!r}')
  return params


def _from_torch(source: str, model: str, **options: Any) -> Any:
  naming = None
  if source in pretrained.PUBLISHED:
    info = pretrained.PUBLISHED[source]
    if info.model != model:
      raise UserError(f'these are weights of {info.model!r}, not of {model!r}')
    state_dict, naming = published.read(info), info.naming
  elif os.path.splitext(source)[1]:
    state_dict = pretrained.load(os.path.expanduser(source))
  else:
    names = ', '.join(pretrained.PUBLISHED)
    raise UserError(f'neither a directory, nor a file of weights, nor one of: {names}')
  return pretrained.from_torch(model, state_dict, naming=naming, **options)


def _from_run(workdir: str, own: Any, skip: tuple[str, ...]) -> Any:
  """The newest checkpoint's variables; those of `own` where `skip` matches."""
  if not os.path.isdir(os.path.join(workdir, 'checkpoints')):
    raise UserError('the directory holds no checkpoints/')
  with checkpoint.Checkpoints(workdir, read_only=True) as checkpoints:
    flat = checkpoints.read()
  patterns = [re.compile(pattern) for pattern in skip]
  wrong, used = [], set()

  def take(path: Any, leaf: Any) -> Any:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    used.add(name)
    if any(pattern.search(name.partition('/')[2]) for pattern in patterns):
      return leaf
    if name not in flat or flat[name].shape != leaf.shape:
      wrong.append(name)
    return flat.get(name)

  found = jax.tree_util.tree_map_with_path(take, own)
  extra = [k for k in flat if k.startswith(('params/', 'batch_stats/')) and k not in used]
  wrong += [k for k in extra if not any(p.search(k.partition('/')[2]) for p in patterns)]
  if wrong:
    raise UserError(
      f'{len(wrong)} arrays are missing, extra or of another shape: {", ".join(wrong[:5])}'
    )
  return found
