"""Fashion-MNIST with two convolutions and 89,930 parameters.

Paper: Xiao et al. 2017, https://arxiv.org/abs/1708.07747 (the data).
Command: python -m cnnjax.datasets prepare fashion_mnist
         python -m cnnjax.main --config=experiments/fashion_mnist/small.py --workdir=DIR
Result: 0.9276 test accuracy, mean of 3 seeds (0.9262, 0.9280, 0.9287); 125 s of training on two
CPU cores (docs/results.md).
"""

from cnnjax import config


def get_config():
  c = config.default()
  c.data.name = 'fashion_mnist'
  c.model = {
    'name': 'cnn',
    'features': (32, 48),
    'norm': 'batch',
    'pool_first': True,
    'dense': (32,),
    'dropout': 0.3,
  }
  c.augment = 'flip_horizontal'

  c.batch_size = 64
  c.epochs = 12
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 3e-3
  c.optimizer.weight_decay = 0.05
  c.schedule.name = 'one_cycle'
  c.schedule.options.peak = 0.2
  c.schedule.options.end_factor = 1e-4

  c.log_every = 200
  return c
