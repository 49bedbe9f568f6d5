"""The space of digits_learning_rate.py as a grid of 7 learning rates and 4 weight decays.

Command: python -m cnnjax.sweep --config=experiments/digits/lenet5.py
             --space=experiments/sweeps/digits_grid.py --workdir=DIR
"""

from cnnjax.sweep import space


def get_space():
  return space.Space(
    parameters={
      'optimizer.learning_rate': space.grid(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
      'optimizer.weight_decay': space.grid(1e-4, 1e-2, 1e-1, 1e0),
    },
    sampler='grid',
    trials=28,
    fixed={'epochs': 20, 'eval_every': 45},  # two epochs
  )
