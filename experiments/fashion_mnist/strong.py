"""Fashion-MNIST with random erasing and averaged weights: `fast.py`, twice as wide and longer.

Paper: Zhong et al. 2017, https://arxiv.org/abs/1708.04896 (random erasing); Polyak and Juditsky
1992 (averaged weights); Jordan 2024, https://arxiv.org/abs/2404.00498 (pooling first, mirrored
evaluation).
Command: python -m cnnjax.datasets prepare fashion_mnist
         python -m cnnjax.main --config=experiments/fashion_mnist/strong.py --workdir=DIR
Result: 0.9461 mean test accuracy (0.9473, 0.9462, 0.9449 with seeds 0, 1, 2), each in 21 minutes of
one core. What its parts do, and how its size was chosen: docs/results.md.
"""

from cnnjax import config


def get_config():
  c = config.default()
  c.data.name = 'fashion_mnist'
  c.model = {
    'name': 'cnn',
    'features': (64, 128),
    'convs': 2,
    'norm': 'batch',
    'pool_first': True,
    'dense': (256,),
    'dropout': 0.5,
  }
  c.augment = 'flip_horizontal|random_erasing'
  c.eval_mirror = True

  c.batch_size = 64
  c.epochs = 20
  c.loss.label_smoothing = 0.1
  c.ema_decay = 0.999
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 2e-3
  c.optimizer.weight_decay = 0.05
  c.schedule.name = 'one_cycle'
  c.schedule.options.peak = 0.2
  c.schedule.options.start_factor = 0.04
  c.schedule.options.end_factor = 1e-4

  c.log_every = 100
  c.eval_every = 10**6  # once, at the end
  return c
