"""The cost around a network's parameters, along lines and on planes through them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.errors import UserError

Params = Any
Loss = Callable[[Params], jax.Array]
Positions = Sequence[float] | np.ndarray


def filter_normalised(key: jax.Array, params: Params) -> Params:
  """A random direction in which every filter is as long as the network's own.

  Networks can then be compared: a step of 1 changes each filter by as much as it is, whatever the
  scale of its weights. Li et al. 2018, "Visualizing the loss landscape of neural nets", section 4,
  https://arxiv.org/abs/1712.09913. A filter is what one output sees: `kernel[..., f]`.

  Args:
    key: of the Gaussian draws.
    params: a tree. Arrays of fewer than two axes (biases, what scales) get zeros: they stay.
  """
  leaves, tree = jax.tree.flatten(params)
  drawn = []
  for k, x in zip(jax.random.split(key, max(len(leaves), 1)), leaves, strict=False):
    if x.ndim < 2:
      drawn.append(jnp.zeros_like(x))
      continue
    d = jax.random.normal(k, x.shape, x.dtype)
    lengths = [jnp.sqrt(jnp.square(a).sum(tuple(range(x.ndim - 1)), keepdims=True)) for a in (x, d)]
    drawn.append(d * lengths[0] / lengths[1])
  return jax.tree.unflatten(tree, drawn)


def line(loss: Loss, params: Params, direction: Params, *, positions: Positions) -> np.ndarray:
  """The cost at `params + a direction`.

  Args:
    loss: a scalar of the parameters.
    params: the origin.
    direction: a tree like the parameters.
    positions: the values of a.

  Returns:
    float64 `[len(positions)]`.
  """
  return _costs(loss, params, (direction,), [(a,) for a in positions])


def plane(
  loss: Loss, params: Params, across: Params, up: Params, *, xs: Positions, ys: Positions
) -> np.ndarray:
  """The cost at `params + x across + y up`.

  Args:
    loss: a scalar of the parameters.
    params: the origin.
    across: a direction, a tree like the parameters.
    up: another.
    xs: positions along the first.
    ys: positions along the second.

  Returns:
    float64 `[len(ys), len(xs)]`, as `matplotlib.pyplot.contour(xs, ys, costs)` takes it.
  """
  return _costs(loss, params, (across, up), [(x, y) for y in ys for x in xs]).reshape(len(ys), -1)


def between(loss: Loss, start: Params, end: Params, *, positions: Positions) -> np.ndarray:
  """The cost on the straight line from one network (0) to another (1), and beyond.

  Goodfellow, Vinyals & Saxe 2015, "Qualitatively characterizing neural network optimization
  problems", https://arxiv.org/abs/1412.6544.

  Args:
    loss: a scalar of the parameters.
    start: the parameters at 0.
    end: those at 1, a tree like `start`.
    positions: where between.

  Returns:
    float64 `[len(positions)]`.
  """
  shapes = [jax.tree.map(jnp.shape, tree) for tree in (start, end)]
  if shapes[0] != shapes[1]:
    raise UserError('start and end must be parameters of one network: their shapes differ')
  return line(loss, start, jax.tree.map(jnp.subtract, end, start), positions=positions)


def _costs(
  loss: Loss, params: Params, directions: tuple[Params, ...], places: Sequence[tuple[float, ...]]
) -> np.ndarray:
  @jax.jit
  def cost(params: Params, directions: tuple[Params, ...], place: tuple[jax.Array, ...]):
    for a, direction in zip(place, directions, strict=True):
      params = jax.tree.map(lambda x, d, a=a: x + a * d, params, direction)
    return loss(params)

  # One after the other: a map over all places would take the memory of all.
  return np.array([cost(params, directions, place) for place in places], np.float64)
