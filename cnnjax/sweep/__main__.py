"""Command line: tries many values of a config's keys, and says which are best.

  python -m cnnjax.sweep --config=FILE[:ARGUMENT] --space=FILE --workdir=DIR [--trials=N]
      [--workers=1] [--storage=URL] [--name=STUDY] [--sampler=NAME] [--pruner=NAME] [--seeds=N]
      [--config.KEY=VALUE ...] [--mode=search|population [--evolve=none|halving|pbt]]

The same command goes on where it was stopped, and joins in where other processes work on the same
sweep. Exit status as in cnnjax.main: 0 done; 2 a mistake, in one line; 130 and 143 after a signal.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from cnnjax import cli, errors
from cnnjax import config as config_lib
from cnnjax.sweep import space as space_lib

if TYPE_CHECKING:
  from cnnjax.sweep.worker import Sweep

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'A file with get_config(), what trials start from; --config.KEY=VALUE overrides a key.',
  lock_config=False,
  accept_new_attributes=True,
)
_SPACE = flags.DEFINE_string('space', None, 'A file with get_space(): which keys vary, and how.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the sweep keeps all that it leaves.')
_WORKERS = flags.DEFINE_integer('workers', 1, 'Trials at a time, here.', lower_bound=1)
_STORAGE = flags.DEFINE_string(
  'storage',
  None,
  'sqlite:///FILE (one worker), journal:FILE (one machine) or postgresql://... (any number); a file'
  ' of the workdir if not given.',
)
_NAME = flags.DEFINE_string(
  'name', None, "Of the study in the storage; the workdir's if not given."
)
_TRIALS = flags.DEFINE_integer('trials', None, "Points to try; the space's if not given.")
_SEEDS = flags.DEFINE_integer('seeds', None, "Runs for each point; the space's if not given.")
_SAMPLER = flags.DEFINE_string('sampler', None, "Who chooses points; the space's if not given.")
_PRUNER = flags.DEFINE_string('pruner', None, "Who gives up trials; the space's if not given.")
_MODE = flags.DEFINE_enum(
  'mode',
  'search',
  ('search', 'population'),
  'Trials one by one, each a process, or all together in one program.',
)
_EVOLVE = flags.DEFINE_enum(
  'evolve',
  'none',
  ('none', 'halving', 'pbt'),
  'What becomes of the worse members of a population: they train on, stop, or become copies.',
)
_NOTES = {  # on the best command, by mode and evolution
  ('search', 'none'): '(It has run; with another --workdir it trains again, to the same bits.)',
  ('population', 'none'): '(It trains the same network alone.)',
  ('population', 'halving'): '(It trains the same network alone.)',
  ('population', 'pbt'): '(Values are those that members began with, and so is what this trains.)',
}


def main() -> None:
  """Runs the sweep that the flags say."""
  if _CONFIG.value is None:
    raise errors.UserError(
      '--config is missing: name a config file, e.g. experiments/digits/lenet5.py'
    )
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  if not os.path.isfile(file.partition(':')[0]):
    raise errors.UserError(f'--config={file.partition(":")[0]!r} does not exist')
  if not _SPACE.value:
    raise errors.UserError(
      '--space is missing: name a space file, e.g. experiments/sweeps/digits_learning_rate.py'
    )
  if not _WORKDIR.value:
    raise errors.UserError('--workdir is missing: name a directory for the sweep')
  if _EVOLVE.value != 'none' and _MODE.value != 'population':
    raise errors.UserError(f'--evolve={_EVOLVE.value} needs --mode=population')
  if _WORKERS.value > 1 and _MODE.value == 'population':
    raise errors.UserError(f'--workers={_WORKERS.value}: a population is one process')
  config = config_lib.validate(_CONFIG.value)
  overrides = config_flags.get_override_values(flags.FLAGS['config'])
  space = _space(_SPACE.value, config, overrides)
  _search(space, config, file, overrides, os.path.expanduser(_WORKDIR.value))


def _space(path: str, config: config_lib.Config, overrides: Mapping[str, Any]) -> space_lib.Space:
  """The file's space with what flags say in its place."""
  given = {'trials': _TRIALS, 'seeds': _SEEDS, 'sampler': _SAMPLER, 'pruner': _PRUNER}
  replaced = {field: flag.value for field, flag in given.items() if flag.value is not None}
  space = space_lib.load(path)._replace(**replaced)
  fixed = {key: value for key, value in space.fixed.items() if key not in overrides}
  space = space_lib.validate(space._replace(fixed=fixed), config)
  for key in overrides:
    if key in space.parameters and not space.parameters[key].when:
      raise errors.UserError(f'--config.{key} has no effect: --space={path!r} varies {key}')
  return space


def _search(
  space: space_lib.Space,
  config: config_lib.Config,
  file: str,
  overrides: Mapping[str, Any],
  directory: str,
) -> None:
  # Here, so that a mistake in a flag is told without Optuna.
  from cnnjax.sweep import directory as directory_lib
  from cnnjax.sweep import owners, search, table, trial, worker

  if _MODE.value == 'population':
    from cnnjax.sweep import population_mode

    population_mode.check(space, config, evolution=_EVOLVE.value)
    if not space_lib.apply(config, space.fixed).parallel.devices:
      _spread(space.trials * space.seeds)
    if config.compilation_cache:
      cli.use_compilation_cache()

  identity = directory_lib.identify(
    directory,
    space,
    config,
    storage=_STORAGE.value,
    name=_NAME.value,
    workers=_WORKERS.value,
  )
  url = identity.url
  with contextlib.ExitStack() as stack:
    owner = stack.enter_context(owners.join(directory, alone=url.startswith('sqlite:')))
    study = search.open(
      space, url=url, name=identity.name, description=identity.description, seed=config.seed
    )
    stack.enter_context(contextlib.closing(study))
    directory_lib.remember(directory, identity)
    study.add_budget(space.trials)
    sweep = worker.Sweep(
      space=space,
      config=config,
      file=file,
      base=trial.base(file),
      overrides=overrides,
      directory=directory,
      study=study,
      owner=owner,
      one_machine=not url.startswith('postgresql'),
    )
    if _MODE.value == 'population':
      population_mode.run(sweep, evolution=_EVOLVE.value)
    else:
      with table.View(space) as view:
        worker.work(sweep, _WORKERS.value, lambda running: view.update(study.trials(), running))
    _report(sweep, identity.name, search.dashboard(url))


def _spread(members: int) -> None:
  """Makes each core a device of its own, or of so many cores as can share the members equally.

  Within one device threads wait for each other at every operation (docs/sweeps.md, how fast a
  population is). What the user has said of devices stands.
  """
  import jax

  said = 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
  if said or jax.config.values['jax_num_cpu_devices'] >= 0:
    return
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  shared = max(d for d in range(1, cores + 1) if members % d == 0)
  jax.config.update('jax_num_cpu_devices', shared)


def _report(sweep: 'Sweep', name: str, dashboard: str) -> None:
  """Writes sweep.html and summary.txt, and prints the latter.

  Raises:
    UserError: no trial is complete.
  """
  from cnnjax.sweep import directory as directory_lib
  from cnnjax.sweep import page, table, worker

  space, study = sweep.space, sweep.study
  trials, front = study.trials(), study.pareto()
  commands = {}
  if front:
    found = worker.commands(sweep, table.ranking(front, space.objectives)[0])
    best = 'Best trial' if len(space.objectives) == 1 else f'Best {space.objectives[0].name}'
    commands = {f'{best}, seed {i}' if found[1:] else best: c for i, c in enumerate(found)}
  html = page.render(
    space,
    trials,
    study.importances(),
    front,
    title=name,
    commands={**commands, 'Live view': dashboard},
  )
  path = os.path.join(sweep.directory, 'sweep.html')
  directory_lib.write(path, html)
  lines = [table.summary(space, trials, front), '']
  lines += [f'{what}: {command}' for what, command in commands.items()]
  if commands:
    lines.append(_NOTES[_MODE.value, _EVOLVE.value])
  lines += [f'page       {path}', f'live view  {dashboard}']
  directory_lib.write(os.path.join(sweep.directory, 'summary.txt'), '\n'.join(lines) + '\n')
  print('\n'.join(lines))
  if not front:
    ended = next((t for t in reversed(trials) if t.reason), None)
    why = f': trial {ended.slot} {ended.state}: {ended.reason}' if ended else ''
    raise errors.UserError(f'no trial is complete{why}')


if __name__ == '__main__':
  cli.start_again()
  cli.run(main)
