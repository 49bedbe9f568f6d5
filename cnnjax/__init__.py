"""cnnjax: functional convolutional-network research on JAX and Flax.

Subpackages load when they are first used: `cnnjax.models.create('resnet50')`.
"""

import importlib
from typing import Any

_SUBPACKAGES = (
  'analysis',
  'config',
  'data',
  'errors',
  'layers',
  'models',
  'pretrained',
  'tasks',
  'training',
)


def __getattr__(name: str) -> Any:
  if name in _SUBPACKAGES:
    return importlib.import_module(f'cnnjax.{name}')
  if name == '__version__':
    from importlib import metadata

    return metadata.version('cnnjax')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return [*globals(), *_SUBPACKAGES, '__version__']
