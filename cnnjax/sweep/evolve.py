"""Evolution inside a program: members of a population that give way to better ones.

Pure functions of stacked members: every array has a leading axis of K members, but for arrays of no
axes, which all members share (a state's `step`). Scores are [K], higher is better; what isn't
finite (a member that diverged) ranks last, and equal scores rank by index, lowest first.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Hypers = Mapping[str, Array]  # config key -> [K]


def ranking(scores: Array) -> Array:
  """The members' indices, best first: int32 [K]."""
  return jnp.argsort(jnp.where(jnp.isfinite(scores), -scores, jnp.inf), stable=True)


def halve(scores: Array, *, keep: int) -> Array:
  """The indices of the `keep` best, in the members' own order: int32 [keep].

  Members that diverged are among them only where fewer than `keep` didn't.
  """
  return jnp.sort(ranking(scores)[:keep])


def survivors(members: int, evaluation: int, *, eta: int = 2) -> int:
  """How many members successive halving trains on after an evaluation.

  At evaluations 1, eta, eta^2 ... the best of every eta stay (Jamieson & Talwalkar 2016,
  https://arxiv.org/abs/1502.07943, figure 3, with eta = 2), so that from rung to rung each member
  left trains eta times as long. One always stays.

  Args:
    members: how many began.
    evaluation: its number, from 1; 0: before the first.
    eta: one of so many stays; at least 2.
  """
  rung = 1
  while rung <= evaluation and members > 1:
    members, rung = max(1, members // eta), rung * eta
  return members


def take(tree: Any, indices: Array) -> Any:
  """The members of these indices (which may repeat), gathered where they are: on the device."""
  return jax.tree.map(lambda x: x if x.ndim == 0 else x[indices], tree)


def exploit_and_explore(
  key: Array,
  scores: Array,
  state: Any,
  hypers: Hypers,
  *,
  bounds: Mapping[str, tuple[float, float]],
  fraction: float = 0.25,
  factors: Sequence[float] = (0.8, 1.2),
  own: Collection[str] = ('seed',),
) -> tuple[Any, dict[str, Array], Array]:
  """One round of population-based training, Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846.

  Truncation selection and perturbation (section 4.1.1): each of the worst members takes the state
  and the hyper-parameters of one of the best, drawn at random, and multiplies every one of the
  latter by a factor, drawn at random. All others stay as they are. Beyond the paper, every member
  that diverged is replaced, however many there are, and none is copied; where all did, nothing
  happens.

  Args:
    key: of this round: a function of the run's seed and of the step.
    scores: [K].
    state: the members' states, or any tree of stacked arrays.
    hypers: the members' hyper-parameters.
    bounds: the range of each that is perturbed, inclusive; others are copied as they are.
    fraction: of the members that count as the best, and as the worst; at least one member and at
      most half of them.
    factors: what a perturbed value is multiplied by, each as likely as the others. 0 stays 0.
    own: those that a member keeps when it becomes another's copy. With its own seed, it sees other
      examples than its parent.

  Returns:
    The states, the hyper-parameters, and `parents`, int32 [K]: whose state each member has now, its
    own index where nothing was copied.
  """
  members = len(scores)
  group = min(max(1, int(fraction * members)), members // 2)
  order = ranking(scores)
  place = jnp.argsort(order)
  healthy = jnp.isfinite(scores).sum()
  draw_key, explore_key = jax.random.split(key)
  drawn = jax.random.randint(draw_key, (members,), 0, jnp.minimum(group, healthy))
  replaced = (healthy > 0) & (place >= jnp.minimum(members - group, healthy))
  parents = jnp.where(replaced, order[drawn], jnp.arange(members))

  changed = {k: v if k in own else v[parents] for k, v in hypers.items()}
  names = sorted(set(hypers) & set(bounds) - set(own))
  picked = jax.random.randint(explore_key, (len(names), members), 0, len(factors))
  for name, factor in zip(names, jnp.asarray(factors, jnp.float32)[picked], strict=True):
    value = changed[name]
    moved = jnp.clip(value * factor, *bounds[name])
    if jnp.issubdtype(value.dtype, jnp.integer):
      moved = jnp.rint(moved)
    changed[name] = jnp.where(replaced, moved.astype(value.dtype), value)
  return take(state, parents), changed, parents
