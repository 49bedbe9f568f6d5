"""ResNet-18 on CIFAR-10, with a 3x3 stem and no max-pooling.

Paper: He et al. 2015, https://arxiv.org/abs/1512.03385; this stem and recipe are common practice.
Command: python -m cnnjax.datasets prepare tfds:cifar10
         python -m cnnjax.main --config=experiments/cifar10/resnet18.py --workdir=DIR
Result: accuracy wasn't measured here; the tests run real steps on generated images.
"""

from cnnjax import config


def get_config():
  c = config.default()
  c.data.name = 'tfds:cifar10'
  c.data.mean = (0.4914, 0.4822, 0.4465)
  c.data.std = (0.2470, 0.2435, 0.2616)
  c.model.name = 'resnet18_cifar'
  c.augment = 'random_crop(padding=4)|flip_horizontal'

  c.batch_size = 128
  c.epochs = 200
  c.optimizer.name = 'momentum'
  c.optimizer.learning_rate = 0.1
  c.optimizer.weight_decay = 5e-4
  c.optimizer.no_decay = ()
  c.schedule.name = 'cosine'
  return c
