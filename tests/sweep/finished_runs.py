"""Workdirs of runs that never ran, as training leaves them: for tests of what is read from them."""

import json
import math

from cnnjax import config as config_lib

STEPS = 20


def write(path, *, seed=0, examples=1000, last=STEPS, changes=None, **figures):
  """A run of STEPS steps that has come to step `last`.

  Args:
    path: its workdir, a pathlib.Path.
    seed: its config's.
    examples: in its test set.
    last: it was evaluated at step 10, where all figures were 0.5, and at this one.
    changes: other config keys.
    figures: of the test split at the end.
  """
  config = config_lib.default()
  config.update_from_flattened_dict({'steps': STEPS, 'seed': seed, **(changes or {})})
  data = {
    'name': 'digits',
    'class_names': ['0', '1'],
    'train_examples': 5000,
    'test_examples': examples,
    'mean': [0.5],
    'std': [0.25],
  }
  evaluations = [(10, dict.fromkeys(figures, 0.5)), (last, figures)]
  rows = [
    row
    for step, values in evaluations
    for row in (
      {'step': step, 'split': 'train', 'loss': 1 / step, 'data': '0a8757f8'},
      {'step': step, 'split': 'test', **values, 'confusion_matrix': [[1, 0], [0, 1]]},
    )
  ]
  path.mkdir(parents=True)
  for name, value in (
    ('config', json.loads(config_lib.validate(config).to_json())),
    ('data', data),
    ('environment', {'git': 'f96c9ed'}),
  ):
    (path / f'{name}.json').write_text(json.dumps(value))
  (path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


def write_seeds(path, accuracies, **options):
  """A run for each accuracy, of seed 0, 1, ..., with the loss -log(accuracy); their pattern."""
  for seed, accuracy in enumerate(accuracies):
    loss = -math.log(accuracy)
    write(path / f'seed{seed}', seed=seed, accuracy=accuracy, loss=loss, **options)
  return f'{path}/seed*'
