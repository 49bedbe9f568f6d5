"""Command line: trains or evaluates the network that a config describes.

  python -m cnnjax.main --config=FILE[:ARGUMENT] --workdir=DIR [--config.KEY=VALUE ...]
      [--mode=train|eval] [--distributed]

The same command with the same workdir resumes where it stopped. docs/scaling.md says how to start
it as several processes.
"""

import contextlib
import json
import os

from absl import flags
from ml_collections import config_flags

from cnnjax import cli, errors
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
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed',
  None,
  'One run of several processes, found by what launched them; by default where they are found.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator_address', None, 'HOST:PORT of process 0, where no launcher tells.'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many, where no launcher tells.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which this is, where no launcher tells.')
_PEER_TIMEOUT = flags.DEFINE_float(
  'peer_timeout', 30.0, 'Seconds of silence after which a process counts as dead.', lower_bound=1
)


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
    cli.use_compilation_cache()

  with _processes():
    _run(config, workdir)


def _processes() -> contextlib.AbstractContextManager[None]:
  from cnnjax.training import processes

  given = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  explicit = [value is not None for value in given]
  if any(explicit) and not all(explicit):
    raise errors.UserError(
      '--coordinator_address, --num_processes and --process_id are given together or not at all'
    )
  wanted = (
    any(explicit) or processes.launched() if _DISTRIBUTED.value is None else _DISTRIBUTED.value
  )
  if not wanted:
    return contextlib.nullcontext()
  return processes.together(*given, peer_timeout=_PEER_TIMEOUT.value)


def _run(config: config_lib.Config, workdir: str) -> None:
  import jax

  from cnnjax.training import loop

  evaluating = _MODE.value == 'eval'
  row = loop.evaluate_checkpoint(config, workdir) if evaluating else loop.train(config, workdir)
  if jax.process_index() != 0:
    return
  if evaluating:
    print(json.dumps(row))
    return
  accuracy = f'test accuracy {row["accuracy"]:.4f}, loss {row["loss"]:.4f} at step {row["step"]}'
  print(f'{accuracy}\nmetrics      {workdir}/metrics.jsonl\ncheckpoints  {workdir}/checkpoints')
  print(f'TensorBoard  tensorboard --logdir {workdir}')


if __name__ == '__main__':
  cli.start_again()
  cli.run(main)
