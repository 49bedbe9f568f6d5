"""Command line: the steps of a working directory and a fingerprint of each state part.

  python -m cnnjax.checkpoint --workdir=DIR [--json]

Two runs made the same parameters if and only if their fingerprints are equal.
"""

import json
import os

from absl import flags

from cnnjax import cli, errors

_WORKDIR = flags.DEFINE_string('workdir', None, 'The working directory of a run.')
_JSON = flags.DEFINE_bool('json', False, 'Print JSON.')


def main() -> None:
  """Prints every step's fingerprints, newest last."""
  from cnnjax.training import checkpoint

  workdir = _WORKDIR.value
  if not workdir or not os.path.isdir(os.path.join(workdir, 'checkpoints')):
    raise errors.UserError(f'--workdir={workdir!r} must be a directory that holds checkpoints/')
  checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
  steps = checkpoints.steps()
  prints = {step: checkpoint.fingerprint(checkpoints.read(step)) for step in steps}
  if _JSON.value:
    print(json.dumps({'steps': steps, 'fingerprints': prints}, indent=2))
    return
  for step in steps:
    print(f'step {step}')
    for part, digest in prints[step].items():
      print(f'  {part:12s} {digest}')


if __name__ == '__main__':
  cli.run(main)
