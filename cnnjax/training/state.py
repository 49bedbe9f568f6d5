"""The state of training: everything that the next step needs and that a checkpoint holds."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from cnnjax.tasks import Task


@flax.struct.dataclass
class State:
  """Parameters and what goes with them. The random key isn't here: it derives from seed and step.

  Attributes:
    step: int32 [], the number of updates made.
    params: the trainable parameters, float32.
    batch_stats: running statistics of batch normalisation; empty without it.
    opt_state: the optimizer's state.
    ema: moving averages of `variables`, which are evaluated in their place, or None.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any = None

  @property
  def variables(self) -> dict[str, Any]:
    """What `model.apply` takes."""
    return {'params': self.params, 'batch_stats': self.batch_stats}

  @property
  def evaluated(self) -> dict[str, Any]:
    """What evaluation uses: the moving averages, or the variables where there are none."""
    return self.variables if self.ema is None else self.ema


def init(
  key: jax.Array,
  task: Task,
  optimizer: optax.GradientTransformation,
  batch: dict[str, Any],
  *,
  ema: bool = False,
) -> State:
  """The state before the first step.

  Args:
    key: for the parameters' random initialisation.
    task: whose `init` makes the variables.
    optimizer: whose state goes along.
    batch: one example batch, or its shapes; `image` is [N, H, W, C], float.
    ema: whether to keep moving averages.
  """
  variables = task.init(key, batch)
  params = variables['params']
  state = State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables.get('batch_stats', {}),
    opt_state=optimizer.init(params),
  )
  return dataclasses.replace(state, ema=start_average(state.variables)) if ema else state


def start_average(variables: Any) -> Any:
  """A copy: two arrays of a state can't share memory, which the step that takes it reuses."""
  return jax.tree.map(jnp.copy, variables)
