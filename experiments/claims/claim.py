"""What the claims' scripts share: flags, training, figures over seeds, a table and a plot."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from absl import flags

from cnnjax import config as config_lib
from cnnjax.training import loop, trained

matplotlib.use('Agg')
matplotlib.rcParams |= {
  'figure.constrained_layout.use': True,
  'font.size': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'svg.hashsalt': 'cnnjax',  # the same picture is the same file
}

_WORKDIR = flags.DEFINE_string('workdir', 'runs/claims', 'Where tables, plots and runs go.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'Seeds 0, 1, ...', lower_bound=1)


def seeds() -> range:
  """The seeds that every figure is measured with."""
  return range(_SEEDS.value)


def fit(config: config_lib.Config, name: str) -> trained.Trained:
  """Trains a network, or goes on where an earlier call was cut off.

  Args:
    config: its data, model and recipe.
    name: of the run, a folder under --workdir.
  """
  directory = os.path.join(_WORKDIR.value, name)
  loop.train(config_lib.validate(config), directory)
  return trained.load(directory)


def spread(values: Sequence[float], digits: int = 4) -> str:
  """'0.9123 (0.9100 to 0.9150)': the mean over seeds, the least and the largest."""
  low, mean, high = (f'{f(values):.{digits}f}' for f in (np.min, np.mean, np.max))
  return f'{mean} ({low} to {high})' if len(values) > 1 else mean


def save(name: str, rows: Sequence[Mapping[str, Any]], figure: Any) -> None:
  """Prints a table as Markdown and writes `NAME.json` and `NAME.svg` under --workdir.

  Args:
    name: of the claim.
    rows: of the table; the keys of the first are its head.
    figure: of matplotlib.
  """
  os.makedirs(_WORKDIR.value, exist_ok=True)
  path = os.path.join(_WORKDIR.value, name)
  with open(f'{path}.json', 'w') as f:
    json.dump(list(rows), f, indent=2)
    f.write('\n')
  figure.savefig(f'{path}.svg', metadata={'Date': None})
  head = list(rows[0])
  for line in (head, ['---'] * len(head), *([row[key] for key in head] for row in rows)):
    print('|', ' | '.join(map(str, line)), '|')
