"""The one configuration schema: every key with its default, and the check that a config obeys it.

An experiment starts from `default()` and sets what differs; `validate` names the first mistake.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cnnjax import errors

Config = Any  # a ConfigDict; type checkers know nothing of its attributes


def default() -> Config:
  """A fresh config holding every key there is, unlocked so that an experiment may fill `model`."""
  c: Config = ConfigDict()
  c.seed = 0
  c.task = 'classification'
  c.epochs = 10.0  # passes over the training set ...
  c.steps = placeholder(int)  # ... or, when given, the exact number of steps
  c.batch_size = 64  # examples per step over all devices; -1: the whole training set (plain GD)
  c.dtype = 'float32'  # what is computed in; parameters are float32 always
  c.ops = 'auto'  # convolutions on the CPU: auto (oneDNN where cnnjax-onednn is), onednn, xla
  c.compilation_cache = True  # compiled programs are kept per user between runs

  # The name and, beside it, any field of that model, e.g. c.model.features = (32, 64).
  c.model = ConfigDict({'name': 'lenet5'})

  # Transfer learning. Published weights (cnnjax.pretrained.get), a file of PyTorch weights (.pth,
  # .pt, .safetensors, .npz) or the working directory of an earlier run, its newest checkpoint.
  c.init_from = ''
  c.init_skip = ()  # regexes on paths of variables that aren't taken from there, e.g. '^head/'
  c.init_zero = ()  # regexes on parameter paths that start at zero: the new head of a transfer
  c.freeze = ()  # regexes on parameter paths that training leaves alone, e.g. '^(stem|stage[12])/'
  c.freeze_statistics = False  # training uses batch norm's running statistics and leaves them alone

  c.data = ConfigDict()
  c.data.name = 'digits'  # digits, mnist, fashion_mnist, tfds:NAME[:TRAIN,TEST], folder:PATH
  c.data.data_dir = ''  # where TFDS keeps its sets; '': TFDS_DATA_DIR or ~/tensorflow_datasets
  c.data.image_size = ()  # (height, width); (): as stored, which must be one size
  c.data.resize = 'resize'  # resize (stretch), center_crop, random_resized_crop (tests: centre)
  c.data.mean = ()  # per channel, images in [0, 1]; (): computed on the training set
  c.data.std = ()
  c.data.resident_megabytes = 1024  # sets up to this size live on the device; 0: always stream
  c.data.workers = 0  # processes that read and decode a streamed set; 0: threads of this one
  c.data.prefetch = 2  # streamed batches on the device ahead of their step
  c.data.timeout = 300.0  # seconds after which worker processes that give no batch are killed
  c.data.max_unreadable = 10  # training refuses when more images than this can't be read

  c.micro_batches = 1  # parts of a batch that go through the network one after the other
  c.ema_decay = 0.0  # of the moving average of the parameters that is evaluated; 0: off
  c.sam_radius = 0.0  # of sharpness-aware minimisation; 0: off

  # Per image, on the device (docs/recipes.md): random_crop, random_resized_crop, flip_horizontal,
  # flip_alternating, translate, rotate, affine, color_jitter, rand_augment, trivial_augment,
  # cutout, random_erasing.
  c.augment = ''  # e.g. 'random_crop(padding=4)|flip_horizontal'
  c.mix = ''  # of examples: 'mixup(alpha=0.2)', 'cutmix(alpha=1.0)'; both with |: one at random

  c.loss = ConfigDict()
  c.loss.name = 'softmax_cross_entropy'
  c.loss.label_smoothing = 0.0

  c.optimizer = ConfigDict()
  c.optimizer.name = 'adamw'
  c.optimizer.learning_rate = 1e-3
  c.optimizer.momentum = placeholder(float)  # None: that optimizer's usual value, as below
  c.optimizer.b1 = placeholder(float)
  c.optimizer.b2 = placeholder(float)
  c.optimizer.eps = placeholder(float)
  c.optimizer.weight_decay = 0.0
  c.optimizer.no_decay = (
    r'(^|/)(bias|scale)$',
  )  # regexes on parameter paths left out of weight decay
  c.optimizer.clip_norm = 0.0  # largest global gradient norm; 0: off
  c.optimizer.rate_factors = ()  # 'PATTERN=FACTOR' on parameter paths, e.g. ('^stage1/=0.1',)
  c.optimizer.layer_decay = 1.0  # each block's learning rate is so many times the next one's
  c.optimizer.lookahead = 0  # updates between two looks back (slow weights); 0: off

  c.schedule = ConfigDict()
  c.schedule.name = 'constant'  # constant, linear, step, cosine, one_cycle
  c.schedule.warmup_epochs = 0.0
  c.schedule.options = ConfigDict()  # that schedule's own arguments

  c.max_seconds = 0.0  # after so long the run saves, exits with status 75 and can go on; 0: off
  c.log_every = 50  # steps
  c.profile = ''  # 'FIRST:LAST': these steps are profiled, for TensorBoard, into workdir/profile
  c.eval_every = placeholder(int)  # steps; None: once an epoch. The last step is always evaluated.
  c.eval_mirror = False  # predict by the mean of the logits of an image and of its mirror image
  c.eval_shift = 0  # ... and of windows moved by so many pixels along both diagonals (five crops)
  c.eval_statistics = 0  # evaluate with batch statistics taken anew from so many training batches
  c.eval_probes = ()  # 'knn', 'linear': classifiers on frozen features, after the last step

  c.checkpoint = ConfigDict()
  c.checkpoint.every = placeholder(int)  # steps; None: at each evaluation
  c.checkpoint.keep_last = 2
  c.checkpoint.keep_best = 1
  c.checkpoint.best_metric = 'accuracy'  # of the test split; higher is better

  c.parallel = ConfigDict()
  c.parallel.strategy = 'pmap'  # pmap, shard_map
  c.parallel.devices = 0  # 0: all
  return c


_FREE = ('model.', 'schedule.options.')  # checked by whoever takes them


def leaves(config: Config, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields `('optimizer.learning_rate', 0.1)` pairs, depth first in the config's own order."""
  for key in config:
    value = config[key]
    if isinstance(value, Mapping | ConfigDict):
      yield from leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _kind(config: Config, path: str) -> type:
  *groups, key = path.split('.')
  for group in groups:
    config = config[group]
  return config.get_type(key)


_CHOICES = {
  'task': ('classification',),
  'dtype': ('float32', 'bfloat16', 'float16'),
  'ops': ('auto', 'xla', 'onednn'),
  'data.resize': ('resize', 'center_crop', 'random_resized_crop'),
  'checkpoint.best_metric': ('accuracy', 'top5_accuracy'),
  'parallel.strategy': ('pmap', 'shard_map'),
}


_PIXELS = 1 << 26  # of an image; Pillow's limit for what it decodes is near


def _ascending(steps: str) -> bool:
  first, last = map(int, steps.split(':'))
  return first <= last


def _words(values: Any) -> bool:
  return all(isinstance(value, str) for value in values)


def _numbers(values: Any) -> bool:
  return all(type(x) in (int, float) and abs(x) < math.inf for x in values)


_PATTERNS = (_words, 'a tuple of regular expressions')
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
  'steps': (lambda v: 1 <= v < 2**31, 'at least 1 and below 2**31'),
  'epochs': (lambda v: v > 0, 'more than 0'),
  'batch_size': (lambda v: v >= 1 or v == -1, 'at least 1, or -1 for the whole training set'),
  'seed': (lambda v: 0 <= v < 2**32, 'from 0 to 2**32 - 1'),
  'max_seconds': (lambda v: v >= 0, 'at least 0'),
  'log_every': (lambda v: v >= 1, 'at least 1'),
  'eval_every': (lambda v: v >= 1, 'at least 1'),
  'checkpoint.every': (lambda v: v >= 1, 'at least 1'),
  'checkpoint.keep_last': (lambda v: v >= 1, 'at least 1'),
  'checkpoint.keep_best': (lambda v: v >= 0, 'at least 0'),
  'data.image_size': (
    lambda v: (
      len(v) in (0, 2) and all(type(n) is int and n > 0 for n in v) and math.prod(v) <= _PIXELS
    ),
    f'() or two positive integers (height, width), at most {_PIXELS} pixels',
  ),
  'data.resident_megabytes': (lambda v: v >= 0, 'at least 0'),
  'data.workers': (lambda v: v >= 0, 'at least 0'),
  'data.prefetch': (lambda v: v >= 1, 'at least 1'),
  'data.timeout': (lambda v: v > 0, 'more than 0'),
  'data.max_unreadable': (lambda v: v >= 0, 'at least 0'),
  'data.mean': (_numbers, 'a tuple of numbers'),
  'data.std': (lambda v: _numbers(v) and all(x > 0 for x in v), 'a tuple of positive numbers'),
  'loss.label_smoothing': (lambda v: 0 <= v < 1, 'in [0, 1)'),
  'optimizer.weight_decay': (lambda v: v >= 0, 'at least 0'),
  'optimizer.clip_norm': (lambda v: v >= 0, 'at least 0'),
  'optimizer.layer_decay': (lambda v: 0 < v <= 1, 'in (0, 1]'),
  'optimizer.lookahead': (lambda v: v >= 0, 'at least 0'),
  'optimizer.no_decay': _PATTERNS,
  'optimizer.rate_factors': (_words, "a tuple of 'PATTERN=FACTOR'"),
  'freeze': _PATTERNS,
  'init_skip': _PATTERNS,
  'init_zero': _PATTERNS,
  'micro_batches': (lambda v: v >= 1, 'at least 1'),
  'ema_decay': (lambda v: 0 <= v < 1, 'in [0, 1)'),
  'sam_radius': (lambda v: v >= 0, 'at least 0'),
  'eval_shift': (lambda v: v >= 0, 'at least 0'),
  'eval_statistics': (lambda v: v >= 0, 'at least 0'),
  'eval_probes': (
    lambda v: all(name in ('knn', 'linear') for name in v),
    "a tuple of 'knn' and 'linear'",
  ),
  'profile': (
    lambda v: not v or bool(re.fullmatch(r'[1-9]\d*:[1-9]\d*', v) and _ascending(v)),
    "'' or 'FIRST:LAST', two steps, e.g. '100:110'",
  ),
  'schedule.warmup_epochs': (lambda v: v >= 0, 'at least 0'),
  'parallel.devices': (lambda v: v >= 0, 'at least 0'),
}


def validate(config: Config) -> Config:
  """Returns a complete, locked copy of `config`; keys it lacks take their defaults.

  Raises:
    UserError: a key that doesn't exist, a value of the wrong type or out of range; the message
      names the key, the value and what is allowed.
  """
  complete = default()
  known = dict(leaves(complete))
  given = dict(leaves(config))
  for path, value in given.items():
    if path.startswith(_FREE):
      continue
    if path not in known:
      raise errors.unknown('config key', path, known)
    kind = _kind(complete, path)
    allowed = (int, float) if kind is float else (tuple, list) if kind is tuple else (kind,)
    optional = known[path] is None and value is None
    if not optional and (
      not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool)
    ):
      raise errors.UserError(f'config.{path}={value!r} must be of type {kind.__name__}')
    if kind in (int, float) and value is not None and not -(2**53) < value < 2**53:
      raise errors.UserError(f'config.{path}={value!r} must be a number of less than 2**53')
    if value is not None and path in _RANGES and not _RANGES[path][0](value):
      raise errors.UserError(f'config.{path}={value!r} must be {_RANGES[path][1]}')
    if path in _CHOICES and value not in _CHOICES[path]:
      raise errors.unknown(f'config.{path}', value, _CHOICES[path])
  with complete.unlocked():
    complete.model = ConfigDict()
    _merge(complete, config)
  if len(complete.data.mean) != len(complete.data.std):
    raise errors.UserError(
      f'config.data.mean={complete.data.mean!r} and config.data.std={complete.data.std!r} must have'
      ' the same length, or both be ()'
    )
  return complete.lock()


def _merge(into: Config, config: Config) -> None:
  for key in config:
    value = config[key]
    if isinstance(value, Mapping | ConfigDict):
      if key not in into:
        into[key] = ConfigDict()
      _merge(into[key], value)
    elif isinstance(value, float | int) and not isinstance(value, bool) and key in into:
      into[key] = float(value) if into.get_type(key) is float else value
    elif isinstance(value, list):
      into[key] = tuple(value)
    else:
      into[key] = value
