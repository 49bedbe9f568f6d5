"""Fashion-MNIST with four convolutions: the best accuracy per minute found on a CPU.

Paper: Xiao et al. 2017, https://arxiv.org/abs/1708.07747 (the data).
Command: python -m cnnjax.datasets prepare fashion_mnist
         python -m cnnjax.main --config=experiments/fashion_mnist/efficient.py --workdir=DIR
Result: 0.9371 test accuracy, mean of 3 seeds (0.9385, 0.9369, 0.9358); 214 s of training on two
CPU cores (docs/results.md).
"""

from cnnjax import config


def get_config():
  c = config.default()
  c.data.name = 'fashion_mnist'
  c.model = {
    'name': 'cnn',
    'features': (32, 64),
    'convs': 2,
    'norm': 'batch',
    'pool_first': True,
    'dense': (128,),
    'dropout': 0.4,
  }
  c.augment = 'flip_horizontal'

  c.batch_size = 64
  c.epochs = 12
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 2e-3
  c.optimizer.weight_decay = 0.05
  c.schedule.name = 'one_cycle'
  c.schedule.options.peak = 0.2
  c.schedule.options.end_factor = 1e-4

  c.log_every = 300
  return c
