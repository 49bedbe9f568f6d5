"""What a trial's network costs, known from its config without training: objectives of a sweep."""

import threading

from cnnjax.config import Config
from cnnjax.errors import UserError

_LOCK = threading.Lock()
_KNOWN: dict[str, dict[str, float]] = {}  # by what of a config they depend on


def count(config: Config) -> dict[str, float]:
  """`parameters`, trainable ones, and `macs` of one image, in evaluation mode.

  Args:
    config: validated.

  Raises:
    UserError: the model or the data is wrong.
  """
  parts = (config.model, config.data)
  key = ' '.join([*(part.to_json(sort_keys=True) for part in parts), config.dtype])
  with _LOCK:  # one worker opens the data, and one at a time
    if key not in _KNOWN:
      _KNOWN[key] = _count(config)
    return _KNOWN[key]


def _count(config: Config) -> dict[str, float]:
  from cnnjax import analysis, models
  from cnnjax.training import experiment

  source = experiment.source(config, 'train')
  shape = source.image_shape
  if shape is None:  # sizes vary, and data.image_size is what they are brought to
    height, width = config.data.image_size
    shape = (height, width, source[0]['image'].shape[-1])
  overrides = {name: value for name, value in config.model.items() if name != 'name'}
  model = models.create(
    config.model.name, num_classes=len(source.class_names), dtype=config.dtype, **overrides
  )
  try:
    found = analysis.count(model, shape)
  except (TypeError, ValueError) as e:
    raise UserError(
      f'config.model={dict(config.model)} has no size for images of {shape}: {e}'
    ) from e
  return {'parameters': found.parameters, 'macs': found.macs}
