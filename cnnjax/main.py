"""Command line: trains or evaluates the network that a config describes.

  python -m cnnjax.main --config=FILE[:ARGUMENT] --workdir=DIR [--config.KEY=VALUE ...]
      [--mode=train|eval]

The same command with the same workdir resumes where it stopped.
"""

import json
import os
import sys

from absl import flags
from ml_collections import config_flags

from cnnjax import cli, errors, memory
from cnnjax import config as config_lib

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'A file with get_config(); --config.KEY=VALUE overrides a key.',
  lock_config=False,
  accept_new_attributes=True,
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run keeps all that it leaves.')
_MODE = flags.DEFINE_enum('mode', 'train', ('train', 'eval'), 'Train, or evaluate a checkpoint.')


def main() -> None:
  """Runs the mode that the flags say."""
  if _CONFIG.value is None:
    raise errors.UserError(
      '--config is missing: name a config file, e.g. experiments/digits/lenet5.py'
    )
  file = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')[0]
  if not os.path.isfile(file):
    raise errors.UserError(f'--config={file!r} does not exist')
  if not _WORKDIR.value:
    raise errors.UserError('--workdir is missing: name a directory for the run')
  config = config_lib.validate(_CONFIG.value)
  workdir = os.path.expanduser(_WORKDIR.value)
  if config.compilation_cache:
    _use_compilation_cache()

  from cnnjax.training import loop

  if _MODE.value == 'eval':
    print(json.dumps(loop.evaluate_checkpoint(config, workdir)))
    return
  row = loop.train(config, workdir)
  accuracy = f'test accuracy {row["accuracy"]:.4f}, loss {row["loss"]:.4f} at step {row["step"]}'
  print(f'{accuracy}\nmetrics      {workdir}/metrics.jsonl\ncheckpoints  {workdir}/checkpoints')
  print(f'TensorBoard  tensorboard --logdir {workdir}')


def _use_compilation_cache() -> None:
  import jax

  cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  # The user's own directory: in a shared one, another user could plant compiled code.
  jax.config.update('jax_compilation_cache_dir', os.path.join(cache, 'cnnjax', 'xla'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def _start_again() -> None:
  """Starts this command again if its memory isn't managed as it should be."""
  if variables := memory.environment():
    os.environ |= variables
    os.execv(sys.executable, sys.orig_argv)


if __name__ == '__main__':
  _start_again()
  cli.run(main)
