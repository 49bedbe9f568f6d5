"""ResNet-20 on CIFAR-10, as in section 4.2 of the paper.

Paper: He et al. 2015, https://arxiv.org/abs/1512.03385 (91.25 % there; 64,000 steps).
Command: python -m cnnjax.datasets prepare tfds:cifar10
         python -m cnnjax.main --config=experiments/cifar10/resnet20.py --workdir=DIR
Result: accuracy wasn't measured here; the tests run real steps on generated images.
"""

from cnnjax import config


def get_config():
  c = config.default()
  c.data.name = 'tfds:cifar10'
  c.data.mean = (0.4914, 0.4822, 0.4465)
  c.data.std = (0.2470, 0.2435, 0.2616)
  c.model.name = 'cifar_resnet20'
  c.augment = 'random_crop(padding=4)|flip_horizontal'

  c.batch_size = 128
  c.steps = 64_000
  c.optimizer.name = 'momentum'
  c.optimizer.learning_rate = 0.1
  c.optimizer.weight_decay = 1e-4
  c.optimizer.no_decay = ()
  c.schedule.name = 'step'
  c.schedule.options.boundaries = (32_000, 48_000)
  return c
