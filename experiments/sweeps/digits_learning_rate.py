"""LeNet-5's learning rate and weight decay on the digits, by TPE with successive halving.

Command: python -m cnnjax.sweep --config=experiments/digits/lenet5.py
             --space=experiments/sweeps/digits_learning_rate.py --workdir=DIR --trials=12
"""

from cnnjax.sweep import space


def get_space():
  return space.Space(
    parameters={
      'optimizer.learning_rate': space.log_uniform(1e-4, 1e-1),
      'optimizer.weight_decay': space.log_uniform(1e-4, 1e0),
    },
    objectives=(space.maximize('test/accuracy'),),
    sampler='tpe',
    pruner='halving',
    trials=30,
    fixed={'epochs': 20, 'eval_every': 45},  # two epochs
  )
