"""The members of a population: from a config and K points to the functions that train them all.

The state of all is one `training.state.State` whose arrays, counts of the optimizer included, have
a leading axis of members; `step` alone they share. Hyper-parameters are a flat dict of arrays `[K]`
by config key (`sweep.hyper`). What works for K members works for those of them that are left.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax import errors, ops
from cnnjax.config import Config
from cnnjax.data import augment, mix, pipeline, preprocess, sources
from cnnjax.errors import UserError
from cnnjax.sweep import hyper, program
from cnnjax.training import checkpoint, experiment, loop, metrics, parallel, steps, workdir
from cnnjax.training.state import State

ORDERS = ('separate', 'shared')
STRATEGIES = ('auto', 'vmap', 'loop')
_MOST_STEPS = 64  # in one call

Row = dict[str, Any]
Hypers = Mapping[str, Any]


class Population(NamedTuple):
  """Everything that is fixed before the first step.

  Attributes:
    plan: numbers of steps, the same for all members.
    configs: each member's own.
    hypers: how they differ, as `hyper.read` says.
    description: class names, sizes and statistics, as data.json has them.
    most_steps: that one call of `train` can take.
    rates: of each schedule, in the order of `hypers['schedule']`: the learning rate of a step as a
      factor of a member's `optimizer.learning_rate`.
    init: `() -> State` of all members, on the host.
    place: puts a stacked tree on the devices that share its members.
    train: compiled `(state, hypers, first, number) -> (state, metrics)`: the steps `first`, ...,
      `first + number - 1`, with metrics `[most_steps, K]`, of which the first `number` rows count;
      consumes the state, which is of all members or of some.
    evaluate: `(state, hypers) ->` each member's figures over the test split, every example once.
  """

  plan: experiment.Plan
  configs: Sequence[Config]
  hypers: dict[str, np.ndarray]
  description: dict[str, Any]
  most_steps: int
  rates: Sequence[Callable[[int], Any]]
  init: Callable[[], State]
  place: Callable[[Any], Any]
  train: Callable[[State, Hypers, int, int], tuple[State, steps.Metrics]]
  evaluate: Callable[[State, Hypers], list[Row]]


class _Built(NamedTuple):
  """The compiled functions of a number of members, and the data that they work on."""

  members: int
  train: Callable[..., tuple[State, steps.Metrics]]
  evaluate: Callable[..., Any]
  train_data: Any
  test_data: Any


def create(
  config: Config,
  points: Sequence[Mapping[str, Any]],
  directory: str,
  *,
  order: str = 'separate',
  strategy: str = 'auto',
  chunk: int = 0,
  steps_per_call: int = 0,
) -> Population:
  """Builds a population.

  Args:
    config: validated.
    points: of each member, config key -> value; what may differ, `hyper.read` says.
    directory: keeps data.json, and population.json: the points and how they are computed, so that
      a run that is resumed computes as it did before.
    order: 'separate': each member reads in the order of its own seed; 'shared': all in that of
      config.seed.
    strategy: 'vmap': members side by side in each operation; 'loop': one after the other; 'auto':
      all, four or one at a time, whichever takes the least time for the real step, here and now.
    chunk: members that are side by side at most, chunk after chunk; 0: as many as fit into memory.
    steps_per_call: that one call of the program takes at most; 0: chosen.

  Raises:
    UserError: a mistake in the config, the points or the data, or a directory of other points.
  """
  configs, hypers = hyper.read(config, points)
  base = configs[0]
  _check(base, len(points), order, strategy, chunk, steps_per_call)
  train, test = (experiment.source(base, split) for split in ('train', 'test'))
  limit = base.data.resident_megabytes * 2**20
  if not (sources.fits(train, limit) and sources.fits(test, limit)):
    raise UserError(
      f'config.data.resident_megabytes={base.data.resident_megabytes}: {base.data.name!r} must fit,'
      ' with images of one size: a population reads no stream; --mode=search does'
    )
  plans = [experiment.make_plan(c, len(train), len(test), 1) for c in configs]
  plan, classes, size = plans[0], len(train.class_names), plans[0].batch_size
  record = program.Record(directory, points, order)
  description = experiment.describe(base, directory, train, test)
  normalise = functools.partial(
    preprocess.make_preprocess, mean=description['mean'], std=description['std'], dtype='float32'
  )
  train, test = sources.materialise(train), sources.materialise(test)
  with ops.using(base.ops):
    slow = ops.slow_in_loops()
  most_steps = steps_per_call or (
    1 if slow else min(_MOST_STEPS, base.log_every, plan.eval_every, plan.checkpoint_every)
  )
  eval_steps = pipeline.num_eval_steps(len(test), plan.eval_batch_size)
  eval_batches = -(-eval_steps // -(-eval_steps // most_steps))  # in one call
  separate = order == 'separate' and 'seed' in hypers
  one_order = config.seed if order == 'shared' else base.seed

  # Schedules, of a learning rate of 1
  ones = [hyper.substitute(c, {'optimizer.learning_rate': 1.0}) for c in configs]
  places = hypers.get('schedule', np.zeros(len(configs), np.int32)).tolist()
  firsts = [places.index(place) for place in range(max(places) + 1)]
  rates = [experiment.make_schedule(ones[i], plans[i]) for i in firsts]

  def table() -> jax.Array:
    """[schedules, steps], computed as the steps of separate runs do, one by one."""
    every = jnp.arange(plan.steps, dtype=jnp.int32)
    return jnp.stack([jax.jit(functools.partial(lax.map, rate))(every) for rate in rates])

  # One member
  model = experiment.make_model(base, classes)
  task = experiment.make_task(base, model)

  def update(state: State, values: Hypers, batch: steps.Batch, data: Any) -> Any:
    images, labels, factors = data
    own = hyper.substitute(base, values)
    _, key = jax.random.split(jax.random.key(own.seed))
    schedule = experiment.make_schedule(own, plan)
    if 'schedule' in values:
      schedule = lambda count: own.optimizer.learning_rate * factors[values['schedule'], count]
    changes = hyper.operations('augment', base.augment, values)
    mixes = hyper.operations('mix', base.mix, values)
    step = experiment.make_train_step(
      own,
      experiment.make_task(own, model),
      experiment.make_optimizer(own, schedule),
      key=key,
      preprocess=normalise(augment.compose(changes) if changes else None),
      mix=mix.compose(mixes, num_classes=classes) if mixes else None,
    )
    ids = batch['id']
    mask = jnp.ones(ids.shape, jnp.float32)
    return step(state, {**batch, 'image': images[ids], 'label': labels[ids], 'mask': mask})

  judge_batch = steps.make_eval_step(task, preprocess=normalise(None))

  def judge(state: State, batch: steps.Batch, data: Any) -> Any:
    images, labels = data
    ids = batch['id']
    return judge_batch(state, {**batch, 'image': images[ids], 'label': labels[ids]})

  # All members
  def init() -> State:
    # The optimizer has all that any member's has: numbers that differ may be 0 in some.
    arrays = {key: jnp.asarray(value[0]) for key, value in hypers.items()}
    optimizer = experiment.make_optimizer(hyper.substitute(base, arrays), rates[0])
    ema = any(c.ema_decay > 0 for c in configs)
    start = experiment.make_init(base, task, optimizer, train, ema=ema)
    keys = [jax.random.split(jax.random.key(c.seed))[0] for c in configs]
    states = [jax.device_get(start(key)) for key in keys]
    stacked = jax.tree.map(lambda *x: np.stack(x), *states)
    return dataclasses.replace(stacked, step=states[0].step)

  def batches(seeds: Sequence[int], first: int, number: int) -> dict[str, np.ndarray]:
    ids = np.zeros((most_steps, len(seeds), size), np.int32)
    for i, seed in enumerate(seeds):
      found = pipeline.ids_between(seed, first * size, (first + number) * size, len(train))
      ids[:number, i] = found.reshape(number, size)
    rows = range(first, first + most_steps)
    epochs = np.stack([pipeline.train_epochs(step, len(train), size) for step in rows])
    return {'id': ids if separate else ids[:, 0], 'epoch': epochs}

  def test_batches(first: int) -> tuple[dict[str, np.ndarray], int]:
    """[eval_batches, N] each, and how many of them there are in truth."""
    ids = np.zeros((eval_batches, plan.eval_batch_size), np.int32)
    mask = np.zeros(ids.shape, np.float32)
    count = min(eval_batches, eval_steps - first)
    for i in range(count):
      ids[i], mask[i] = pipeline.eval_ids(first + i, len(test), plan.eval_batch_size)
    return {'id': ids, 'mask': mask}, count

  @functools.cache
  def devices(members: int) -> parallel.Members:
    return parallel.members(members, devices=base.parallel.devices)

  def place(tree: Any) -> Any:
    members = {len(x) for x in jax.tree.leaves(tree) if np.ndim(x)}
    return devices(members.pop()).place(tree) if members else tree

  def build(members: int, state: State, values: Hypers) -> _Built:
    where, stored = devices(members), record.program(members)
    put = where.replicate
    factors = put(table()) if 'schedule' in hypers else ()
    train_data = put(train.images), put(train.labels), factors
    test_data = put(test.images), put(test.labels)
    asked = {'strategy': strategy, 'chunk': chunk, 'steps_per_call': steps_per_call}
    if stored.get('asked') != asked:
      stored = {}
    convolutions = stored.get('convolutions', 'auto')
    example = batches([base.seed] * (members if separate else 1), 0, 1)
    arguments = state, values, example, np.int32(1), train_data

    def compiled(chunk: int) -> Any:
      run = program.trainer(update, chunk=chunk, most_steps=most_steps, separate=separate)
      axes = {'id': 1 if separate else None, 'epoch': None}
      axes = program.STATE, 0, axes, None, None
      jitted = where.compile(run, axes, (program.STATE, 1), True)
      with program.choosing(base.ops, chunk, convolutions):
        return jitted.lower(*arguments).compile()

    local, seconds = members // len(where.devices), {}
    if stored:
      side, run = stored['chunk'], compiled(stored['chunk'])
    else:
      side, run, seconds = program.choose(
        compiled, strategy, min(chunk or local, local), where, arguments, most_steps
      )
    look = program.evaluator(judge, chunk=side)
    look = where.compile(look, (program.STATE, None, None), 0, False)
    with program.choosing(base.ops, side, convolutions):
      look = look.lower(state, test_batches(0)[0], test_data).compile()
    if not stored:
      choice = {'strategy': 'loop' if side == 1 else 'vmap', 'chunk': side, 'seconds': seconds}
      choice |= {'most_steps': most_steps, 'devices': len(where.devices), 'asked': asked}
      record.add(members, {**choice, 'convolutions': ops.picked() if side > 1 else {}})
    return _Built(members, run, look, train_data, test_data)

  latest: list[_Built] = []  # where members have stopped, the earlier one isn't needed

  def built(state: State, values: Hypers) -> _Built:
    members = len(jax.tree.leaves(state.params)[0])
    if not latest or latest[0].members != members:
      latest[:] = [build(members, state, values)]
    return latest[0]

  def train_steps(state: State, values: Hypers, first: int, number: int) -> Any:
    use = built(state, values)
    seeds = np.asarray(values['seed']).tolist() if separate else [one_order]
    rows = batches(seeds, first, number)
    return use.train(state, values, rows, np.int32(number), use.train_data)

  def evaluate(state: State, values: Hypers) -> list[Row]:
    use = built(state, values)
    total: metrics.Sums = {}
    for first in range(0, eval_steps, eval_batches):
      batch, count = test_batches(first)
      found = jax.device_get(use.evaluate(state, batch, use.test_data))
      for i in range(count):
        total = metrics.accumulate(total or None, {k: v[:, i] for k, v in found.items()})
    return [task.summarize({k: v[i] for k, v in total.items()}) for i in range(use.members)]

  return Population(
    plan=plan,
    configs=configs,
    hypers=hypers,
    description=description,
    most_steps=most_steps,
    rates=rates,
    init=init,
    place=place,
    train=train_steps,
    evaluate=evaluate,
  )


def _check(
  config: Config, members: int, order: str, strategy: str, chunk: int, steps_per_call: int
) -> None:
  if order not in ORDERS:
    raise errors.unknown('order', order, ORDERS)
  if strategy not in STRATEGIES:
    raise errors.unknown('strategy', strategy, STRATEGIES)
  for name, value in {'chunk': chunk, 'steps_per_call': steps_per_call}.items():
    if type(value) is not int or value < 0:
      raise UserError(f'{name}={value!r} must be an integer, at least 0')
  for key in ('eval_statistics', 'eval_probes', 'profile'):
    if config[key]:
      raise UserError(f'config.{key}={config[key]!r}: a population has none; --mode=search does')
  devices = config.parallel.devices
  if devices > 1 and members % devices:
    raise UserError(
      f'config.parallel.devices={devices} must divide the {members} members; 0 takes as many'
      ' devices as can share them equally'
    )


def take(tree: Any, members: Any) -> Any:
  """The members of these indices, or of one index a tree without the axis of members."""
  return jax.tree.map(lambda x: x[members] if np.ndim(x) else x, tree)


def save_member(population: Population, state: State, index: int, directory: str) -> None:
  """Saves a member as the checkpoint of an ordinary run, which `cnnjax.main` evaluates or goes on
  with.

  Args:
    population: whose member it is.
    state: of all members.
    index: of the member.
    directory: a working directory for it alone.

  Raises:
    UserError: the directory can't be written, or holds another run.
  """
  config, own = population.configs[index], take(jax.device_get(state), index)
  if not config.ema_decay:
    own = dataclasses.replace(own, ema=None)
  workdir.prepare(directory, config)
  workdir.write_data(directory, population.description)
  with checkpoint.Checkpoints(directory) as checkpoints:
    checkpoints.save(own, dataclasses.asdict(loop.Progress()))
