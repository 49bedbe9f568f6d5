"""Optimizers, each with a learning rate of its own range; three seeds a point.

Command: python -m cnnjax.sweep --config=experiments/digits/lenet5.py
             --space=experiments/sweeps/digits_optimizers.py --workdir=DIR --workers=2
"""

from cnnjax.sweep import space


def get_space():
  nesterov = {'optimizer.name': 'nesterov'}
  return space.Space(
    parameters={
      'optimizer.name': space.choice('adamw', 'muon', 'nesterov'),
      'optimizer.learning_rate': space.log_uniform(1e-4, 1e-1),
      'optimizer.momentum': space.uniform(0.8, 0.99, when=nesterov),
      'schedule.name': space.choice('constant', 'cosine'),
    },
    objectives=(space.minimize('test/loss'),),
    seeds=3,
    trials=20,
    fixed={'epochs': 20, 'eval_every': 225, 'optimizer.weight_decay': 0.0},
  )
