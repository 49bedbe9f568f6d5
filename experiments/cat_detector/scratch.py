"""A cat detector from scratch: convolution, pooling, fully connected layers and softmax.

Paper: LeCun et al. 1998, Gradient-based learning applied to document recognition.
Command: python -m experiments.cat_detector.photos --to=runs/cat_photos
         python -m cnnjax.main --config=experiments/cat_detector/scratch.py --workdir=DIR
Your own photos, a folder per class, one of them `cat`: --config.data.name=folder:PATH
Result: 1.0000 test accuracy (seeds 0, 1, 2), on other crops of the one cat that it was trained on;
of four other cats it finds 1, 0 and 0 (docs/claims.md, 8).
"""

from cnnjax import config


def get_config():
  c = config.default()
  c.data.name = 'folder:runs/cat_photos'
  c.data.image_size = (64, 64)
  c.data.resize = 'center_crop'
  c.model = {
    'name': 'cnn',
    'features': (16, 32, 64),
    'norm': 'batch',
    'dense': (64,),
    'dropout': 0.3,
  }
  c.augment = 'random_crop(padding=6)|flip_horizontal'

  c.batch_size = 32
  c.epochs = 20
  c.optimizer.learning_rate = 1e-3
  c.optimizer.weight_decay = 0.01
  c.schedule.name = 'cosine'
  c.schedule.warmup_epochs = 1
  c.eval_every = 10_000  # steps: after the last one alone
  return c
