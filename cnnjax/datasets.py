"""Lists and prepares datasets.

  python -m cnnjax.datasets list [--data_dir=DIR]
  python -m cnnjax.datasets prepare NAME [--from=DIR] [--data_dir=DIR]

NAME is fashion_mnist, mnist, or tfds:NAME for any set of TFDS. The first two are built from their
four IDX files (plain or .gz) without TensorFlow: from --from=DIR, else from Debian's package
dataset-fashion-mnist where it is installed, else downloaded. Exit status: 0 done; 2 a mistake,
told in one line.
"""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from cnnjax.data import sources
from cnnjax.errors import UserError, unknown


def _flags() -> flags.FlagValues:
  values = flags.FlagValues()
  flags.DEFINE_string('from', '', 'Folder of the four IDX files.', flag_values=values)
  flags.DEFINE_string(
    'data_dir',
    '',
    "TFDS's data folder; by default TFDS_DATA_DIR, else ~/tensorflow_datasets.",
    flag_values=values,
  )
  flags.DEFINE_bool('help', False, 'Show this help.', flag_values=values)
  return values


def prepared(data_dir: str) -> dict[str, pathlib.Path]:
  """The prepared sets under TFDS's data folder that can be read: name to folder.

  Looks for `name[/config]/version/dataset_info.json` without importing TFDS.
  """
  root, found = pathlib.Path(data_dir), {}
  for depth in ('*/*', '*/*/*'):
    for info in sorted(root.glob(f'{depth}/dataset_info.json')):
      parts = info.parent.relative_to(root).parts
      if any(part.startswith('incomplete.') for part in parts):
        continue
      try:
        file_format = json.loads(info.read_text()).get('fileFormat')
      except (OSError, ValueError, AttributeError):
        continue
      if file_format == 'array_record':
        found['/'.join(parts[:-1])] = info.parent
  return found


def list_datasets(data_dir: str = '') -> str:
  """What `list` prints: every known set and where it is."""
  data_dir = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  found = prepared(os.path.expanduser(data_dir))
  lines = [('digits', 'ships with cnnjax: 1,797 images of 8x8')]
  lines += [
    (name, f'prepared: {found.pop(name)}')
    if name in found
    else (name, f'not prepared: python -m cnnjax.datasets prepare {name}')
    for name in sources.IDX_SETS
  ]
  lines += [(f'tfds:{name}', f'prepared: {path}') for name, path in found.items()]
  lines += [
    ('tfds:NAME', f'any image classification set of TFDS, prepared in {data_dir}'),
    ('folder:PATH', 'one folder per class of JPEG, PNG or WebP files'),
  ]
  width = max(len(name) for name, _ in lines)
  return '\n'.join(f'{name:{width}}  {what}' for name, what in lines)


@contextlib.contextmanager
def _quiet():
  """TFDS prints notices, progress bars and advice about TensorFlow; none of it is needed here."""
  import tensorflow_datasets as tfds
  from absl import logging

  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with open(os.devnull, 'w') as null, contextlib.redirect_stdout(null):
      yield
  finally:
    logging.set_verbosity(verbosity)
    tfds.enable_progress_bar()


def prepare(name: str, source_dir: str = '', data_dir: str = '') -> tuple[pathlib.Path, bool]:
  """Prepares a set as ArrayRecord.

  Args:
    name: `fashion_mnist`, `mnist` or `tfds:NAME`.
    source_dir: the folder of the IDX files, for the first two.
    data_dir: TFDS's data folder; empty for TFDS's default.

  Returns:
    The set's folder, and whether this call made it (False: it was there already).

  Raises:
    UserError: an unknown set, damaged or missing files, no network, or TensorFlow is missing.
  """
  kind, _, rest = name.partition(':')
  bare = rest if kind == 'tfds' else name
  data_dir = os.path.expanduser(data_dir)
  if bare in sources.IDX_SETS:
    from cnnjax.data import builders

    with _quiet():
      return builders.prepare(bare, os.path.expanduser(source_dir), data_dir=data_dir)
  if name == 'digits':
    raise UserError('digits ships with cnnjax: nothing to prepare')
  if kind != 'tfds' or not rest:
    raise unknown('dataset', name, ('digits', *sources.IDX_SETS, 'tfds:NAME'))
  if source_dir:
    raise UserError(f'--from={source_dir}: allowed for {" and ".join(sources.IDX_SETS)} only')

  from cnnjax.data import prepared as reader

  with contextlib.redirect_stdout(sys.stderr):  # downloads take long: TFDS may show its progress
    builder = reader.make_builder(reader.parse(rest)[0], data_dir)
    path = pathlib.Path(builder.data_dir)
    if builder.is_prepared():
      return path, False
    try:
      builder.download_and_prepare(file_format='array_record')
    except ImportError as error:
      raise UserError(reader.needs_package(f'tfds:{rest}', error)) from error
    except Exception as error:  # downloads, manual steps, disk: whatever the builder meets
      reason = ' '.join(str(error).split()) or type(error).__name__
      raise UserError(f'tfds:{rest} could not be prepared: {reason}') from error
  return path, True


def main(argv: Sequence[str]) -> int:
  """Runs the command line; returns the exit status."""
  values = _flags()
  try:
    try:
      command, *names = values(argv)[1:] or ('',)
    except flags.Error as error:
      raise UserError(str(error)) from error
    source_dir, data_dir = (str(values[name].value or '') for name in ('from', 'data_dir'))
    if values['help'].value:
      print(__doc__.strip() if __doc__ else '')
    elif command == 'list' and not names:
      print(list_datasets(data_dir))
    elif command == 'prepare' and len(names) == 1:
      path, made = prepare(names[0], source_dir, data_dir)
      print(f'{names[0]}: {"prepared in" if made else "already prepared in"} {path}')
    else:
      raise UserError(
        f'{" ".join([command, *names])!r}: allowed are "list" and "prepare NAME", with '
        '--from=DIR and --data_dir=DIR (see --help)'
      )
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv))
