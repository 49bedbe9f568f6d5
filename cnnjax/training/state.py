"""The state of training: everything that the next step needs and that a checkpoint holds."""

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
    ema: an average of the parameters, or None.
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


def init(
  key: jax.Array, task: Task, optimizer: optax.GradientTransformation, batch: dict[str, Any]
) -> State:
  """The state before the first step.

  Args:
    key: for the parameters' random initialisation.
    task: whose `init` makes the variables.
    optimizer: whose state goes along.
    batch: one example batch, or its shapes; `image` is [N, H, W, C], float.
  """
  variables = task.init(key, batch)
  params = variables['params']
  return State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables.get('batch_stats', {}),
    opt_state=optimizer.init(params),
  )
