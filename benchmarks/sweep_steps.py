"""How many training steps a search needs to come near a grid's best.

  python benchmarks/sweep_steps.py --workdir=DIR [--seeds=0,1,2,3,4] [--trials=30] [--json=FILE]

`experiments/sweeps/digits_grid.py` is run whole, with the seed that the config has; then, for each
seed, `digits_learning_rate.py` over the same ranges, by TPE with successive halving, one worker.
Both are the commands that a user runs. Reported for each seed: the best test accuracy among the
trials that ended before the search had taken 40 % of the grid's steps (pruned ones' steps count,
their accuracies don't), the grid's, and after how many steps the search was within a hundredth.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
SHARE, NEAR = 0.4, 0.01


class Run(NamedTuple):
  """One trial: training steps it took, and its last test accuracy if it ended."""

  steps: int
  accuracy: float | None


def sweep(space: str, workdir: pathlib.Path, *options: str) -> None:
  """Runs the command; a sweep that has ended is left as it is."""
  command = [sys.executable, '-m', 'cnnjax.sweep', '--config=experiments/digits/lenet5.py']
  command += [f'--space=experiments/sweeps/{space}.py', f'--workdir={workdir}', *options]
  print(' '.join(command), flush=True)
  subprocess.run(command, cwd=ROOT, check=True)


def runs(workdir: pathlib.Path) -> list[Run]:
  """The trials in their order, which with one worker is that of time."""
  found = []
  for folder in sorted((workdir / 'trials').iterdir()):
    rows = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
    test = [row for row in rows if row['split'] == 'test'][-1]
    # A pruned run has saved the step at which it stopped.
    steps = max(int(step.name) for step in (folder / 'checkpoints').iterdir())
    found.append((steps, test))
  last = max(steps for steps, _ in found)  # all of them plan so many
  return [Run(steps, t['accuracy'] if t['step'] == last else None) for steps, t in found]


def best_within(trials: list[Run], budget: float) -> float | None:
  """The best accuracy of a trial that ended before the budget of steps was spent."""
  spent, best = 0, None
  for trial in trials:
    spent += trial.steps
    if spent <= budget and trial.accuracy is not None:
      best = max(best or 0.0, trial.accuracy)
  return best


def steps_until(trials: list[Run], accuracy: float) -> int | None:
  """Steps until a trial ended with at least this accuracy; None if none did."""
  spent = 0
  for trial in trials:
    spent += trial.steps
    if trial.accuracy is not None and trial.accuracy >= accuracy:
      return spent
  return None


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', default='0,1,2,3,4')
  parser.add_argument('--trials', type=int, default=30)
  parser.add_argument('--json', type=pathlib.Path)
  args = parser.parse_args()

  sweep('digits_grid', args.workdir / 'grid')
  grid = runs(args.workdir / 'grid')
  best, total = max(run.accuracy or 0.0 for run in grid), sum(run.steps for run in grid)
  print(f'grid: {len(grid)} points, {total} steps, best {best:.4f}')
  results = {}
  for seed in args.seeds.split(','):
    folder = args.workdir / f'tpe{seed}'
    options = (f'--trials={args.trials}', f'--config.seed={seed}')
    sweep('digits_learning_rate', folder, *options)
    found = runs(folder)
    within = best_within(found, SHARE * total)
    near = steps_until(found, best - NEAR)
    results[seed] = {
      'steps': sum(run.steps for run in found),
      'ended': sum(run.accuracy is not None for run in found),
      'best_within_40_percent': within,
      'steps_until_near': near,
      'share_until_near': near and near / total,
    }
    print(f'seed {seed}: {results[seed]}', flush=True)
  if args.json:
    summary = {'grid': {'steps': total, 'best': best, 'points': len(grid)}, 'tpe': results}
    args.json.write_text(json.dumps(summary, indent=2) + '\n')


if __name__ == '__main__':
  main()
