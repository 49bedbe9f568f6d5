"""ResNet-50 (v1.5) on ImageNet: the standard 90-epoch recipe.

Paper: He et al. 2015, https://arxiv.org/abs/1512.03385; warm-up and linear scaling of the learning
rate with the batch: Goyal et al. 2017, https://arxiv.org/abs/1706.02677.
Command: python -m cnnjax.datasets prepare tfds:imagenet2012 (after placing the archives by hand)
         python -m cnnjax.main --config=experiments/imagenet/resnet50.py --workdir=DIR
Result: accuracy wasn't measured here; the tests run real steps on generated images.
"""

from cnnjax import config


def get_config():
  c = config.default()
  c.data.name = 'tfds:imagenet2012:train,validation'
  c.data.image_size = (224, 224)
  c.data.resize = 'random_resized_crop'
  c.data.mean = (0.485, 0.456, 0.406)
  c.data.std = (0.229, 0.224, 0.225)
  c.data.workers = 16
  c.model.name = 'resnet50'
  c.dtype = 'bfloat16'
  c.augment = 'flip_horizontal'

  c.batch_size = 1024
  c.epochs = 90
  c.loss.label_smoothing = 0.1
  c.optimizer.name = 'nesterov'
  c.optimizer.learning_rate = 0.4  # 0.1 per 256 examples
  c.optimizer.weight_decay = 5e-5
  c.schedule.name = 'cosine'
  c.schedule.warmup_epochs = 5
  return c
