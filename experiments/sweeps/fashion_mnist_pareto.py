"""Accuracy against multiply-accumulates: how wide and how deep a small network should be.

The last 10,000 training images judge, so that the test set stays unseen.

Command: python -m cnnjax.datasets prepare fashion_mnist
         python -m cnnjax.sweep --config=experiments/fashion_mnist/fast.py
             --space=experiments/sweeps/fashion_mnist_pareto.py --workdir=DIR
"""

from cnnjax.sweep import space


def get_space():
  return space.Space(
    parameters={
      'model.features': space.choice((8, 16), (16, 32), (32, 64), (64, 128)),
      'model.convs': space.integer(1, 3),
      'model.pool_first': space.choice(False, True),
      'model.dense': space.choice((), (64,), (128,)),
    },
    objectives=(space.maximize('test/accuracy'), space.minimize('macs')),
    sampler='tpe',
    trials=24,
    fixed={'epochs': 3, 'data.name': 'fashion_mnist:train[:50000],train[50000:]'},
  )
