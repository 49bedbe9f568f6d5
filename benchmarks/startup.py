"""Seconds from a command's start to the end of its first training step, cold and cached.

  python benchmarks/startup.py [--config=experiments/digits/lenet5.py] [--rounds=5] [--json]

Every round runs `python -m cnnjax.main` twice, each time in a new working directory: cold, with an
empty cache of compiled programs, then cached, with what the first run left there. The clock stops
when the line of step 1 is printed (`--config.log_every=1`). One run before the rounds, not counted,
leaves Python's bytecode and the files in memory; the machine should be quiet.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent


def first_step(config: str, cache: str) -> float:
  """Seconds until a new process has made its first step; it is told to stop then."""
  environment = {**os.environ, 'XDG_CACHE_HOME': cache}
  for name in ('PYTHONDONTWRITEBYTECODE', 'GLIBC_TUNABLES'):  # as where nobody has set them
    environment.pop(name, None)
  with tempfile.TemporaryDirectory() as workdir:
    command = [sys.executable, '-m', 'cnnjax.main', f'--config={config}', f'--workdir={workdir}']
    start = time.perf_counter()
    process = subprocess.Popen(
      [*command, '--config.log_every=1'],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    line = process.stdout.readline()
    seconds = time.perf_counter() - start
    process.terminate()
    _, err = process.communicate()
  if not line.split()[1:2] or not line.split()[1].startswith('1/'):
    raise RuntimeError(f'no first step: {line}{err}')
  return seconds


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--config', default='experiments/digits/lenet5.py')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--json', action='store_true')
  arguments = parser.parse_args()
  times = {'cold': [], 'cached': []}
  for i in range(arguments.rounds + 1):
    with tempfile.TemporaryDirectory() as cache:
      for kind in times:
        seconds = first_step(arguments.config, cache)
        if i:
          times[kind].append(round(seconds, 3))
        elif kind == 'cold':
          break
  if arguments.json:
    print(json.dumps(times))
    return
  for kind, seconds in times.items():
    shown = f'{min(seconds):.2f} to {max(seconds):.2f}'
    print(f'{kind:8}{statistics.median(seconds):6.2f} s  ({shown})')


if __name__ == '__main__':
  main()
