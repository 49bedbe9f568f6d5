"""The zoo on paper: parameters and multiply-accumulates (MACs), from shapes alone.

  python -m cnnjax.models [--json]         every model at its paper's image size
  python -m cnnjax.models NAME [--json]    one model, layer by layer

Exit status: 0 done; 2 a mistake, told in one line.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from cnnjax import analysis, models
from cnnjax.errors import UserError, unknown

_ROW = '{:26}  {:>11}  {:>15}  {:>13}  {}'
_LAYER = '{:44}  {:>11}  {:>15}  {}'


def summary(name: str) -> dict[str, Any]:
  """A model's row: name, parameters, macs, input, classes and paper."""
  entry = models.REGISTRY[name]
  counted = _count(name)
  return {
    'name': name,
    'parameters': counted.parameters,
    'macs': counted.macs,
    'input': list(entry.image),
    'classes': entry.num_classes,
    'paper': entry.paper,
  }


def layers(name: str) -> dict[str, Any]:
  """`summary` with a list of the layers.

  Raises:
    UserError: an unknown name.
  """
  if name not in models.REGISTRY:
    raise unknown('model', name, models.REGISTRY)
  rows = [{**layer._asdict(), 'output': list(layer.output[1:])} for layer in _count(name).layers]
  return {**summary(name), 'layers': rows}


def _count(name: str) -> analysis.Count:
  entry = models.REGISTRY[name]
  return analysis.count(models.create(name, num_classes=entry.num_classes), entry.image)


def _shape(sizes: Sequence[int]) -> str:
  return ' x '.join(map(str, sizes))


def _print_zoo(as_json: bool) -> None:
  if as_json:
    print(json.dumps([summary(name) for name in models.names()], indent=2))
    return
  print(_ROW.format('model', 'parameters', 'MACs', 'input', 'paper'))
  for name in models.names():  # a line at a time: the whole zoo takes a minute
    row = summary(name)
    numbers = f'{row["parameters"]:,}', f'{row["macs"]:,}', _shape(row['input'])
    print(_ROW.format(name, *numbers, row['paper']), flush=True)


def _print_model(name: str, as_json: bool) -> None:
  found = layers(name)
  if as_json:
    print(json.dumps(found, indent=2))
    return
  print(f'{name}: {found["paper"]}; input {_shape(found["input"])}, {found["classes"]} classes\n')
  print(_LAYER.format('layer', 'parameters', 'MACs', 'output'))
  for row in found['layers']:
    numbers = f'{row["parameters"]:,}', f'{row["macs"]:,}', _shape(row['output'])
    print(_LAYER.format(row['name'], *numbers))
  print(_LAYER.format('total', f'{found["parameters"]:,}', f'{found["macs"]:,}', '').rstrip())


def main(argv: Sequence[str]) -> int:
  """Runs the command line; returns the exit status."""
  options = [word for word in argv if word.startswith('-')]
  names = [word for word in argv if not word.startswith('-')]
  try:
    if '--help' in options or '-h' in options:
      print((__doc__ or '').strip())
      return 0
    for option in options:
      if option != '--json':
        raise unknown('flag', option, ['--json', '--help'])
    if len(names) > 1:
      raise UserError(f'one model at a time, not {" ".join(names)!r}')
    if names:
      _print_model(names[0], bool(options))
    else:
      _print_zoo(bool(options))
  except UserError as error:
    print(f'cnnjax.models: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
