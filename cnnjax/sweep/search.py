"""The search behind a sweep: Optuna's samplers, pruners and storages behind plain tuples.

The budget is a queue in the storage: a waiting trial for every slot. Whoever claims one takes it by
the storage's own atomic step from waiting to running, and only then does the sampler choose, so
however many processes work, no trial comes into being beyond the budget and none runs twice.

An attempt that was cut off ends as 'retried' and its slot waits again, one attempt higher and with
the same values. Two processes that make the same attempt of a slot make it twice; the older one
counts, the other is closed unrun and hidden.

What a trial draws is a function of the sweep's seed, its slot and the trials told before; samplers
and pruners see one trial a slot, in the order of slots, whatever was interrupted in between. With
one worker a sweep is therefore reproducible, and one that was stopped goes on as if it weren't.
With several, 'random', 'quasi_random' and 'grid' still are; the others learn from what happens to
be finished.
"""

import contextlib
import copy
import fcntl
import importlib.util
import json
import math
import os
import pathlib
import re
import shlex
import threading
import time
import types
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from cnnjax.errors import MachineError, UserError
from cnnjax.sweep import points
from cnnjax.sweep.space import Parameter, Space

try:
  import optuna
  from optuna.storages import journal
  from optuna.storages.journal._file import BaseJournalFileLock
  from optuna.trial import FrozenTrial, TrialState
except ImportError as e:
  raise UserError("a sweep needs the package 'optuna': pip install 'cnnjax[sweep]'") from e

HEARTBEAT, GRACE = 5, 30  # seconds between signs of life; without one for so long, a trial is stale
_STORAGES = 'sqlite:///FILE, journal:FILE or postgresql://USER:PASSWORD@HOST/DATABASE'
_PACKAGES = {'cma_es': 'cmaes', 'gaussian_process': 'torch'}
_TABLES = 20412  # of the advisory lock under which tables are made: any number of our own
_FEW = 10  # complete trials below which importances say nothing


class Trial(NamedTuple):
  """An attempt of a slot, as anyone may read it.

  Attributes:
    slot: its place in the budget, the same for all attempts.
    attempt: 0, then one more for each time it was taken up again.
    state: 'waiting', 'running', 'complete', 'pruned', 'diverged', 'failed' or 'retried'.
    values: by config key; {} as long as the sampler hasn't chosen.
    objectives: of a complete trial, in the space's order.
    reports: number of the evaluation (1, 2, ...) to the objective; none kept of several objectives.
    started: Unix seconds, by the clock of the process that ran it.
    finished: likewise.
    reason: why it was pruned, diverged, failed, retried.
    owner: the sweep process that runs or ran it.
  """

  slot: int
  attempt: int
  state: str
  values: dict[str, Any]
  objectives: tuple[float, ...] | None = None
  reports: Mapping[int, float] = types.MappingProxyType({})
  started: float | None = None
  finished: float | None = None
  reason: str = ''
  owner: str = ''


class Claim(NamedTuple):
  """The right to run a trial; `values` is what its config has, by key."""

  trial_id: int
  slot: int
  attempt: int
  values: dict[str, Any]


def open(space: Space, *, url: str, name: str, description: dict[str, Any], seed: int) -> 'Study':
  """Opens a sweep's study, which comes into being the first time.

  Args:
    space: validated.
    url: `sqlite:///FILE` (one process), `journal:FILE` (several on one machine) or
      `postgresql://...` (any number of machines).
    name: of the study; a storage can hold many.
    description: JSON; a study of this name that was opened with another one is refused.
    seed: at least 0; part of the description.

  Raises:
    UserError: an unknown, unreachable or broken storage, a package that isn't installed, a sampler
      or pruner that can't work on this space, or another sweep of this name.
  """
  optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # it raises errors as well
  _check(space)
  with _quiet():
    try:
      storage = _journal(url) if url.startswith('journal:') else _database(url)
    except UserError:
      raise
    except Exception as e:  # whatever a driver raises: the URL says which
      raise UserError(f'--storage={redact(url)!r}: {_first_line(e, url)}') from e
  try:
    study = optuna.create_study(
      storage=storage,
      study_name=name,
      directions=[cast(Any, objective.direction) for objective in space.objectives],
      load_if_exists=True,
    )
    _check_same(study, {**description, 'seed': seed}, f'{name!r} in {redact(url)}')
    return Study(space, storage, name, seed, url)
  except UserError:
    _close(storage)
    raise
  except optuna.exceptions.StorageInternalError as e:
    raise UserError(f'--storage={redact(url)!r}: {_first_line(e, url)}') from e


class Study:
  """A sweep's trials; its methods may be called from several threads and processes.

  They raise MachineError when the storage no longer answers: what it holds stands, and the same
  command goes on.
  """

  def __init__(self, space: Space, storage: Any, name: str, seed: int, url: str):
    self._space, self._storage, self._seed, self._url = space, storage, seed, url
    self._study = optuna.Study(name, cast(Any, _Slots(storage)), pruner=_pruner(space.pruner))
    self._id = storage.get_study_id_from_name(name)
    self._beats = isinstance(storage, optuna.storages._CachedStorage)  # not a journal
    self._lock = threading.RLock()

  def add_budget(self, n: int) -> None:
    """Makes slots 0 to n - 1 exist, each once; what exists stays. A grid ends with its points."""
    with self._exclusive():
      there = {slot for slot, _ in _firsts(self._trials())}
      for slot, point in enumerate(points.known(self._space, n, self._seed)):
        if slot not in there:
          values = {key: _stored(self._space.parameters[key], v) for key, v in point.items()}
          self._enqueue(slot, 0, {'fixed_params': values})

  def claim(self, owner: str) -> Claim | None:
    """Takes the first waiting trial and lets the sampler choose its values; None without one."""
    with self._exclusive():
      trials = self._trials()
      firsts = _firsts(trials)
      # By slots, not in the order of the queue: a retried trial goes before what it went before.
      for trial in sorted(trials, key=lambda t: (_place(t), t.number)):
        if trial.state is not TrialState.WAITING:
          continue
        if firsts[_place(trial)] is not trial:
          self._end(trial._trial_id, TrialState.FAIL, 'retried', 'made twice')
        elif self._take(trial._trial_id):
          with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            return self._fill(trial, owner)  # unless another process took it over meanwhile
    return None

  def beat(self, claim: Claim) -> bool:
    """A sign of life; False when another process took the trial over, so that this one must end."""
    with self._told():  # without the lock: a sampler that thinks long mustn't look like death
      self._beat(claim.trial_id)
      return self._storage.get_trial(claim.trial_id).state is TrialState.RUNNING

  def report(self, claim: Claim, evaluation: int, value: float) -> bool:
    """Tells the first objective after an evaluation (1, 2, ...), again if need be.

    Returns:
      Whether to end the trial: the pruner says so, or another process took it over.
    """
    with self._exclusive():
      if len(self._space.objectives) > 1:  # no pruner, and TPE can't have them
        return False
      try:
        self._storage.set_trial_intermediate_value(claim.trial_id, evaluation, float(value))
        trial = self._study._storage.get_trial(claim.trial_id)
        return self._study.pruner.prune(self._study, trial)  # writes what rungs it completed
      except optuna.exceptions.UpdateFinishedTrialError:
        return True

  def complete(self, claim: Claim, objectives: tuple[float, ...]) -> bool:
    """Ends a trial; one that isn't finite makes it diverged.

    Like `prune`, `diverge`, `fail` and `retry`, returns whether it took effect: not when another
    process, which thought this one dead, ended the attempt before.
    """
    if not all(map(math.isfinite, objectives)):
      return self.diverge(claim, f'its objectives are {objectives}')
    values = [float(value) for value in objectives]
    with self._exclusive():
      return self._end(claim.trial_id, TrialState.COMPLETE, 'complete', '', values)

  def prune(self, claim: Claim, reason: str) -> bool:
    """Ends a trial that isn't worth going on with."""
    with self._exclusive():
      return self._end(claim.trial_id, TrialState.PRUNED, 'pruned', reason)

  def diverge(self, claim: Claim, reason: str) -> bool:
    """Ends a trial whose loss isn't finite. Samplers learn from it as from a pruned one."""
    with self._exclusive():
      return self._end(claim.trial_id, TrialState.PRUNED, 'diverged', reason)

  def fail(self, claim: Claim, reason: str) -> bool:
    """Ends a trial that broke, for good. Samplers don't learn from it."""
    with self._exclusive():
      return self._end(claim.trial_id, TrialState.FAIL, 'failed', reason)

  def retry(self, trial: Claim | Trial, reason: str) -> bool:
    """Ends an attempt that is running; its slot waits again, with the same values."""
    with self._exclusive():
      frozen = _firsts(self._trials()).get((trial.slot, trial.attempt))
      return frozen is not None and self._retry(frozen, reason)

  def recover(self, dead: Callable[[Trial], bool]) -> int:
    """Retries every running trial whose process is gone; call it now and then.

    Args:
      dead: whether the owner of a running trial is known to be dead. Where the storage has
        heartbeats, a trial without one for GRACE seconds is retried as well.

    Returns:
      How many trials wait again.
    """
    with self._exclusive():
      count, firsts = 0, _firsts(self._trials())
      stale = set(self._storage._get_stale_trial_ids(self._id)) if self._beats else set()
      for frozen in firsts.values():
        if frozen.state is not TrialState.RUNNING:
          continue
        trial, reason = self._read(frozen), ''
        if frozen._trial_id in stale:
          reason = f'no heartbeat for {GRACE} s'
        elif trial.owner:
          reason = 'its process died' if dead(trial) else ''
        elif not self._beats and frozen.datetime_start:  # killed between taking and signing it
          age = time.time() - frozen.datetime_start.timestamp()
          reason = f'without an owner for {GRACE} s' if age > GRACE else ''
        count += bool(reason) and self._retry(frozen, reason)
      # A process killed between the end of an attempt and the next one left nothing in the queue.
      for (slot, attempt), frozen in firsts.items():
        if self._read(frozen).state == 'retried' and (slot, attempt + 1) not in firsts:
          self._again(frozen)
          count += 1
      return count

  def trials(self) -> list[Trial]:
    """All attempts, by slot and attempt."""
    with self._exclusive():
      return [self._read(frozen) for _, frozen in sorted(_firsts(self._trials()).items())]

  def importances(self) -> dict[str, float]:
    """How much each parameter matters to the first objective, the most important first; sum 1.

    PED-ANOVA (Watanabe et al., 2023, arXiv 2304.10255): how far a parameter's distribution among
    the best trials is from that among all. {} below 10 complete trials.
    """
    with self._exclusive(), _quiet():
      complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
      if len(complete) < _FEW:
        return {}
      sign = _signs(self._space)[0]
      return optuna.importance.get_param_importances(
        self._study,
        # The best tenth, but at least five trials: fewer make no distribution.
        evaluator=optuna.importance.PedAnovaImportanceEvaluator(
          target_quantile=max(0.1, 5 / len(complete))
        ),
        target=lambda trial: sign * trial.values[0],
      )

  def pareto(self) -> list[Trial]:
    """The complete trials that no other one beats in everything; of one objective, the best."""
    complete = [trial for trial in self.trials() if trial.objectives is not None]
    signs = _signs(self._space)
    costs = [list(map(float.__mul__, signs, trial.objectives or ())) for trial in complete]
    if len(self._space.objectives) == 1:
      return [complete[costs.index(min(costs))]] if costs else []
    return [
      trial
      for trial, own in zip(complete, costs, strict=True)
      if not any(all(map(float.__le__, other, own)) and other != own for other in costs)
    ]

  def close(self) -> None:
    """Lets go of the storage."""
    with self._lock:
      _close(self._storage)

  @contextlib.contextmanager
  def _exclusive(self) -> Iterator[None]:
    """One thread at a time, and a storage that is gone told in one line."""
    with self._lock, self._told():
      yield

  @contextlib.contextmanager
  def _told(self) -> Iterator[None]:
    try:
      yield
    except optuna.exceptions.StorageInternalError as e:
      raise MachineError(f'storage {redact(self._url)}: {_first_line(e, self._url)}') from e

  def _trials(self) -> list[FrozenTrial]:
    """Those of the sweep, by number; a dashboard's user may have added others."""
    trials = self._storage.get_all_trials(self._id, deepcopy=False)
    return [trial for trial in trials if 'slot' in trial.user_attrs]

  def _enqueue(self, slot: int, attempt: int, system: dict[str, Any]) -> None:
    place = {'slot': slot, 'attempt': attempt}
    trial = optuna.create_trial(state=TrialState.WAITING, user_attrs=place, system_attrs=system)
    self._storage.create_new_trial(self._id, trial)

  def _beat(self, trial_id: int) -> None:
    if self._beats:
      self._storage.record_heartbeat(trial_id)

  def _take(self, trial_id: int) -> bool:
    self._beat(trial_id)  # before it runs: without any heartbeat a trial never becomes stale
    try:
      return self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
    except optuna.exceptions.UpdateFinishedTrialError:
      return False

  def _fill(self, trial: FrozenTrial, owner: str) -> Claim:
    trial_id, (slot, attempt) = trial._trial_id, _place(trial)
    start = {'owner': owner, 'time': time.time()}
    self._storage.set_trial_user_attr(trial_id, 'start', start)
    with _quiet():
      self._study._thread_local.cached_all_trials = None  # as `ask` does: read the newest
      self._study.sampler = _sampler(self._space, self._seed, slot)
      asked = optuna.Trial(self._study, trial_id)
      values = points.choose(self._space, lambda key, parameter: _suggest(asked, key, parameter))
    return Claim(trial_id, slot, attempt, values)

  def _end(
    self,
    trial_id: int,
    state: TrialState,
    outcome: str,
    reason: str,
    values: list[float] | None = None,
  ) -> bool:
    end = {'outcome': outcome, 'reason': ' '.join(reason.split())[:1000], 'time': time.time()}
    try:
      self._storage.set_trial_user_attr(trial_id, 'end', end)
      return self._storage.set_trial_state_values(trial_id, state, values)
    except optuna.exceptions.UpdateFinishedTrialError:
      return False

  def _retry(self, frozen: FrozenTrial, reason: str) -> bool:
    if frozen.state is not TrialState.RUNNING:
      return False
    ended = self._end(frozen._trial_id, TrialState.FAIL, 'retried', reason)
    if ended:
      self._again(frozen)
    return ended

  def _again(self, frozen: FrozenTrial) -> None:
    """Puts a slot back with what was chosen: all of it, or what was fixed from the start."""
    slot, attempt = _place(frozen)
    system = {'fixed_params': frozen.system_attrs['fixed_params']}
    if _chosen(self._space, frozen):
      # With CMA-ES's generation and state; without the pruner's rungs, which come again.
      kept = {k: v for k, v in frozen.system_attrs.items() if not k.startswith('completed_rung')}
      system = {**kept, 'fixed_params': frozen.params}
    self._enqueue(slot, attempt + 1, system)

  def _read(self, frozen: FrozenTrial) -> Trial:
    start, end = (frozen.user_attrs.get(key, {}) for key in ('start', 'end'))
    state = frozen.state.name.lower()
    # What someone else was about to write into `end` doesn't count against the state that won.
    if frozen.state is TrialState.PRUNED and end.get('outcome') == 'diverged':
      state = 'diverged'
    elif frozen.state is TrialState.FAIL:
      state = 'failed' if end.get('outcome', 'failed') == 'failed' else 'retried'
    ended = frozen.state.is_finished()
    slot, attempt = _place(frozen)
    return Trial(
      slot,
      attempt,
      state,
      values=_chosen(self._space, frozen),
      objectives=tuple(frozen.values) if state == 'complete' else None,
      reports=dict(frozen.intermediate_values),
      started=start.get('time'),
      finished=end.get('time') if ended else None,
      reason=end.get('reason', '') if ended and state != 'complete' else '',
      owner=start.get('owner', ''),
    )


class _Slots:
  """A storage as samplers and pruners see it: one trial a slot, numbered by it, in that order.

  Interrupted attempts would otherwise stand where they were cut off, and those that took them up
  at the end; older trials weigh less to TPE, and pruners would count a slot's rungs twice.
  """

  def __init__(self, storage: Any):
    self._inner = storage

  def __getattr__(self, name: str) -> Any:
    return getattr(self._inner, name)

  def get_trial(self, trial_id: int) -> FrozenTrial:
    return _numbered(self._inner.get_trial(trial_id))

  def get_all_trials(
    self, study_id: int, deepcopy: bool = True, states: Any = None
  ) -> list[FrozenTrial]:
    trials = [t for t in self._inner.get_all_trials(study_id, False) if 'slot' in t.user_attrs]
    last = {slot: _numbered(t) for (slot, _), t in sorted(_firsts(trials).items())}
    found = [trial for trial in last.values() if states is None or trial.state in states]
    return copy.deepcopy(found) if deepcopy else found


class _JournalLock(BaseJournalFileLock):
  """The kernel's lock on a journal: gone with its process, after which Optuna's own waits 30 s.

  Half a line, of a process that died in writing it or met a full disk, goes: what followed would
  be unreadable. No one was told that it was written.
  """

  def __init__(self, path: str):
    self._path, self._file = path, -1

  def acquire(self) -> bool:
    self._file = os.open(self._path, os.O_RDWR)
    fcntl.flock(self._file, fcntl.LOCK_EX)
    size = os.fstat(self._file).st_size
    if size and os.pread(self._file, 1, size - 1) != b'\n':
      os.ftruncate(self._file, os.pread(self._file, size, 0).rfind(b'\n') + 1)
    return True

  def release(self) -> None:
    os.close(self._file)


def redact(url: str) -> str:
  """A storage's URL as it may be shown: without its password."""
  url = re.sub(r'(://[^:/@]*):.*@', r'\1:***@', url)
  return re.sub(r'([?&]\w*password=)[^&]*', r'\1***', url)


def dashboard(url: str) -> str:
  """The command that shows a storage's studies live; a password is left out."""
  return f'optuna-dashboard {shlex.quote(redact(_driver(url)).removeprefix("journal:"))}'


def _driver(url: str) -> str:
  """With psycopg 3, where SQLAlchemy would take the second one."""
  return re.sub(r'^postgresql(\+psycopg)?:', 'postgresql+psycopg:', url)


def _journal(url: str) -> Any:
  path = url.removeprefix('journal:')
  if not path:
    raise UserError(f'--storage={url!r} names no file: {_STORAGES}')
  start = b'{"op_code":'
  if os.path.isfile(path):
    with pathlib.Path(path).open('rb') as file:
      if not start.startswith(file.read(len(start))):
        raise UserError(f'--storage={url!r}: the file is no journal')
  backend = journal.JournalFileBackend(path, _JournalLock(path))
  return journal.JournalStorage(backend)


def _database(url: str) -> Any:
  driver = _driver(url)
  server = driver.startswith('postgresql+psycopg://')
  if not server and not re.match(r'sqlite:///[^?]', url):
    raise UserError(f'--storage={redact(url)!r} must be {_STORAGES}')
  if server and importlib.util.find_spec('psycopg') is None:
    raise UserError(
      f"--storage={redact(url)!r} needs the package 'psycopg': pip install 'cnnjax[sweep]'"
    )
  import sqlalchemy

  options = {'connect_args': {'connect_timeout': 10} if server else {'timeout': 60}}
  # Processes that start at once would all make the tables, and all but one fail: in turn, then. Of
  # a file, whether it is a database at all.
  first = f'SELECT pg_advisory_xact_lock({_TABLES})' if server else 'PRAGMA schema_version'
  engine = sqlalchemy.create_engine(driver, **options)
  try:
    with engine.connect() as connection:
      connection.execute(sqlalchemy.text(first))
      storage = optuna.storages.RDBStorage(
        driver.replace('{', '{{').replace('}', '}}'),  # it fills templates in
        {**options, 'pool_pre_ping': True},  # a server may have been started anew since
        heartbeat_interval=HEARTBEAT,
        grace_period=GRACE,
      )
  finally:
    engine.dispose()
  return optuna.storages.get_storage(storage)


def _close(storage: Any) -> None:
  if isinstance(storage, optuna.storages._CachedStorage):
    storage._backend.remove_session()
    storage._backend.engine.dispose()


def _first_line(error: BaseException, url: str) -> str:
  """What the driver says, and no password."""
  cause = error.__cause__ or error
  lines = str(getattr(cause, 'orig', None) or cause).strip().splitlines()
  text = lines[0] if lines else type(cause).__name__
  for found in re.findall(r'://[^:/@]*:(.*)@|[?&]\w*password=([^&]*)', url):
    for secret in filter(None, found):
      text = text.replace(secret, '***').replace(urllib.parse.unquote(secret), '***')
  return text


def _check(space: Space) -> None:
  """What samplers and pruners can't do."""
  sampler, package = space.sampler, _PACKAGES.get(space.sampler)
  if package and importlib.util.find_spec(package) is None:
    raise UserError(
      f'space.sampler={sampler!r} needs the package {package!r}: pip install {package}'
    )
  if len(space.objectives) > 1 and (sampler == 'cma_es' or space.pruner != 'none'):
    field = 'sampler' if sampler == 'cma_es' else 'pruner'
    raise UserError(
      f'space.{field}={getattr(space, field)!r} needs one objective, not {len(space.objectives)}'
    )
  if sampler == 'cma_es' and all(p.values or p.when for p in space.parameters.values()):
    raise UserError("space.sampler='cma_es' needs a number that always varies: there is none")


def _check_same(study: optuna.Study, description: dict[str, Any], where: str) -> None:
  ours = json.loads(json.dumps(description))
  if 'sweep' not in study.user_attrs:
    if study.get_trials(deepcopy=False):
      raise UserError(f'study {where} was not made by a sweep: give this one another name')
    study.set_user_attr('sweep', ours)
  different = list(_differences(study.user_attrs['sweep'], ours))
  if different:
    key, there, here = different[0]
    more = f' (and {len(different) - 1} more)' if different[1:] else ''
    raise UserError(
      f'study {where} is another sweep: {key} is {there!r} there and {here!r} here{more}.'
      ' Give this one another name'
    )


def _differences(there: Any, here: Any, path: str = '') -> Iterator[tuple[str, Any, Any]]:
  if isinstance(there, dict) and isinstance(here, dict):
    for key in {**there, **here}:
      yield from _differences(there.get(key), here.get(key), f'{path}.{key}'.lstrip('.'))
    if there.keys() == here.keys() and list(there) != list(here):  # the order of points
      yield path, list(there), list(here)
  elif repr(there) != repr(here):
    yield path, there, here


def _sampler(space: Space, seed: int, slot: int) -> optuna.samplers.BaseSampler:
  """A new one for each trial, so that what it draws doesn't hang on what this process drew."""
  seed = int(np.random.SeedSequence((seed, slot)).generate_state(1)[0])
  if space.sampler == 'tpe':
    # Jointly, and where parameters are conditional, jointly within the groups that vary together.
    conditional = any(parameter.when for parameter in space.parameters.values())
    return optuna.samplers.TPESampler(
      seed=seed, multivariate=True if conditional else None, group=conditional
    )
  if space.sampler == 'cma_es':
    return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
  if space.sampler == 'gaussian_process':
    return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
  return optuna.samplers.RandomSampler(seed=seed)


def _pruner(name: str) -> optuna.pruners.BasePruner:
  """Its resource is the number of evaluations."""
  if name == 'median':
    return optuna.pruners.MedianPruner(n_startup_trials=5)
  if name == 'halving':
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
  if name == 'hyperband':
    return optuna.pruners.HyperbandPruner(min_resource=1, reduction_factor=3)
  return optuna.pruners.NopPruner()


def _suggest(trial: optuna.Trial, key: str, parameter: Parameter) -> Any:
  if parameter.values:
    texts = [_stored(parameter, value) for value in parameter.values]
    return parameter.values[texts.index(trial.suggest_categorical(key, texts))]
  if parameter.kind == 'integer':
    return trial.suggest_int(key, parameter.low, parameter.high, log=parameter.log)
  log = parameter.kind == 'log_uniform'
  return float(trial.suggest_float(key, parameter.low, parameter.high, log=log))


def _stored(parameter: Parameter, value: Any) -> Any:
  """As the storage has it: choices by their text, which tells True, 1, 1.0 and tuples apart."""
  return repr(value) if parameter.values else value


def _chosen(space: Space, frozen: FrozenTrial) -> dict[str, Any]:
  """The values of a trial; {} unless all that vary are chosen."""
  stored = {**frozen.system_attrs.get('fixed_params', {}), **frozen.params}

  def value(key: str, parameter: Parameter) -> Any:
    texts = {_stored(parameter, v): v for v in parameter.values}
    return texts[stored[key]] if parameter.values else stored[key]

  try:
    return points.choose(space, value)
  except KeyError:
    return {}


def _place(trial: FrozenTrial) -> tuple[int, int]:
  return trial.user_attrs['slot'], trial.user_attrs['attempt']


def _firsts(trials: list[FrozenTrial]) -> dict[tuple[int, int], FrozenTrial]:
  """By slot and attempt the trial that counts: of two that processes made at once, the older."""
  firsts: dict[tuple[int, int], FrozenTrial] = {}
  for trial in sorted(trials, key=lambda trial: trial.number):
    firsts.setdefault(_place(trial), trial)
  return firsts


def _numbered(trial: FrozenTrial) -> FrozenTrial:
  trial = copy.copy(trial)
  trial.number = _place(trial)[0]
  return trial


def _signs(space: Space) -> list[float]:
  return [-1.0 if o.direction == 'maximize' else 1.0 for o in space.objectives]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Optuna warns of its experimental parts, and of what it can't sample jointly."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield
