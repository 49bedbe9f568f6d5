"""Command line over `cnnjax.analysis`: what convolutions share, leave out and see, counted, and the
report of a run.

  python -m cnnjax.analyze --layer=conv --input=H,W,C --features=F --kernel=KH,KW
      [--strides=1,1] [--padding=SAME] [--dilation=1,1] [--groups=1] [--nobias] [--json]
  python -m cnnjax.analyze --model=NAME [--input=H,W,C] [--json]
  python -m cnnjax.analyze --workdir=DIR [--out=DIR/report.html] [--json]

Exit status: 0 done; 2 a mistake, told in one line; 4 a file can't be written.
"""

import json
import math
import os
from collections.abc import Sequence
from typing import Any

from absl import flags

from cnnjax import cli
from cnnjax.errors import UserError, unknown

_LAYER = flags.DEFINE_enum('layer', None, ['conv'], 'One layer by itself.')
_MODEL = flags.DEFINE_string('model', None, 'A model of the zoo, layer by layer.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'A trained run, to be evaluated and reported on.')
_OUT = flags.DEFINE_string(
  'out', None, "Where the run's report goes; its report.html if not given."
)
_INPUT = flags.DEFINE_list('input', None, 'H,W,C of the image; a model has its own.')
_FEATURES = flags.DEFINE_integer('features', None, 'Output channels.', lower_bound=1)
_KERNEL = flags.DEFINE_list('kernel', None, 'KH,KW.')
_STRIDES = flags.DEFINE_list('strides', ['1', '1'], 'In pixels.')
_PADDING = flags.DEFINE_enum('padding', 'SAME', ['SAME', 'VALID', 'CIRCULAR'], 'As in flax.')
_DILATION = flags.DEFINE_list('dilation', ['1', '1'], 'Distance of taps, in pixels.')
_GROUPS = flags.DEFINE_integer('groups', 1, 'Of channels.', lower_bound=1)
_BIAS = flags.DEFINE_bool('bias', True, 'A bias for each feature.')
_JSON = flags.DEFINE_bool('json', False, 'Print JSON.')

_ROW = '{:36} {:>12} {:>14} {:>18} {:>15} {:>9} {:>7} {:>6}  {:11} {}'


def _integers(name: str, words: Sequence[str] | None, count: int) -> Any:
  words = words or []
  if len(words) != count or not all(w.isascii() and w.isdigit() and int(w) for w in words):
    raise UserError(f'--{name}={",".join(words)!r} must be {count} positive integers')
  return tuple(map(int, words))


def _layer() -> None:
  from cnnjax.analysis import ledger

  if _FEATURES.value is None:
    raise UserError('--features must be given: the output channels')
  entry = ledger.convolution(
    _integers('input', _INPUT.value, 3),
    features=_FEATURES.value,
    kernel_size=_integers('kernel', _KERNEL.value, 2),
    strides=_integers('strides', _STRIDES.value, 2),
    padding=_PADDING.value,
    dilation=_integers('dilation', _DILATION.value, 2),
    groups=_GROUPS.value,
    use_bias=_BIAS.value,
  )
  if _JSON.value:
    print(json.dumps(entry._asdict(), indent=2))
    return
  kh, kw, inner, _ = entry.kernel
  each = f'({kh} x {kw} x {inner}{" + 1" * _BIAS.value}) x {_FEATURES.value}'
  inputs, outputs = math.prod(entry.input), math.prod(entry.output)
  rows = [
    ('output', _shape(entry.output), ''),
    ('parameters', f'{entry.parameters:,}', f'{each}, each filter spanning its channels'),
    ('  locally connected', f'{entry.locally_connected_parameters:,}', 'a kernel per position'),
    ('  fully connected', f'{entry.fully_connected_parameters:,}', 'with biases'),
    ('  its weights', f'{entry.fully_connected_weights:,}', f'{inputs:,} x {outputs:,}'),
    ('connections', f'{entry.connections:,}', 'pairs of input and output, padding apart'),
    ('sparsity', f'{entry.sparsity:.4%}', 'of all pairs not connected'),
    ('reuse', f'{entry.reuse:,.1f}', 'connections for each weight'),
    ('MACs', f'{entry.macs:,}', ''),
    ('bytes', f'{entry.bytes:,}', 'input, parameters and output once, float32'),
    ('intensity', f'{entry.intensity:.2f}', 'operations (2 MACs) for each byte'),
  ]
  for row in rows:
    print('{:22} {:>14}  {}'.format(*row).rstrip())
  if inner > 1 and _BIAS.value:
    print(
      f'\nTexts that count {kh} x {kw} + 1 for each filter, as on an image of one channel, say'
      f' {entry.parameters_per_channel_filter:,} parameters; this layer has {entry.parameters:,}.'
    )


def _model(name: str) -> None:
  from cnnjax import analysis, models
  from cnnjax.analysis import ledger

  if name not in models.REGISTRY:
    raise unknown('--model', name, models.REGISTRY)
  known = models.REGISTRY[name]
  image = known.image if _INPUT.value is None else _integers('input', _INPUT.value, 3)
  model = models.create(name, num_classes=known.num_classes)
  try:
    entries = ledger.entries(model, image)
    fields = {field.name: field for field in analysis.fields(model, image)}
  except (TypeError, ValueError) as error:
    raise UserError(f'--input={_shape(image)} is no image for {name!r}: {error}') from error
  if _JSON.value:
    layers = [
      {
        **entry._asdict(),
        'receptive_field': fields[entry.name].size,
        'receptive_field_stride': fields[entry.name].stride,
        'receptive_field_offset': fields[entry.name].offset,
      }
      for entry in entries
    ]
    print(json.dumps({'name': name, 'input': image, 'layers': layers}, indent=2))
    return
  print(f'{name}, image {_shape(image)}: parameters of each layer, and of the same as...\n')
  head = ('layer', 'parameters', 'untied', 'fully connected', 'connections', 'sparsity', 'reuse')
  print(_ROW.format(*head, 'ops/B', 'sees', 'every'))
  for e in entries:
    field = fields[e.name]
    figures = f'{e.sparsity:.3%}', f'{e.reuse:,.0f}', f'{e.intensity:.1f}', _shape(field.size)
    _print_row(e.name, e, *figures, f'{_shape(field.stride)} px' if any(field.stride) else '')
  _print_row('total', _total(entries), *[''] * 5)


def _run(directory: str) -> None:
  from cnnjax.analysis import findings, report

  if _JSON.value:
    print(json.dumps(findings.summary(directory), indent=2))
    return
  path = _OUT.value
  if path and (os.path.isdir(path) or not os.path.isdir(os.path.dirname(path) or '.')):
    raise UserError(f'--out={path!r} must be a file in a folder that exists')
  page = report.render(findings.collect(directory))
  path = path or os.path.join(directory, 'report.html')
  with open(path, 'w', encoding='utf-8', errors='replace') as file:
    file.write(page)
  print(f'report  {path}')


def _print_row(name: str, entry: Any, *figures: str) -> None:
  numbers = (
    entry.parameters,
    entry.locally_connected_parameters,
    entry.fully_connected_parameters,
    entry.connections,
  )
  print(_ROW.format(name, *(f'{number:,}' for number in numbers), *figures).rstrip())


def _total(entries: Sequence[Any]) -> Any:
  first = entries[0]
  sums = {
    field: sum(getattr(entry, field) for entry in entries)
    for field, value in first._asdict().items()
    if isinstance(value, int)
  }
  return first._replace(**sums)


def _shape(sizes: Sequence[float]) -> str:
  return ' x '.join(map(str, sizes))


def main() -> None:
  """Prints the ledger of a layer or a model, or writes the report of a run."""
  if sum(flag.value is not None for flag in (_LAYER, _MODEL, _WORKDIR)) != 1:
    raise UserError('--layer=conv, --model=NAME or --workdir=DIR must be given, one of them')
  if _WORKDIR.value is not None:
    _run(_WORKDIR.value)
  elif _MODEL.value is not None:
    _model(_MODEL.value)
  else:
    _layer()


if __name__ == '__main__':
  cli.run(main)
