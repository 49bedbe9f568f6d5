"""From a config to the objects that training needs: data, model, task, optimizer, devices."""

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
from flax import linen as nn

from cnnjax import errors, models, ops
from cnnjax.config import Config
from cnnjax.data import augment, mix, pipeline, prefetch, preprocess, sources
from cnnjax.layers import norm
from cnnjax.tasks import Task, classification
from cnnjax.training import (
  optimizers,
  parallel,
  processes,
  recalibration,
  schedules,
  steps,
  warm_start,
  workdir,
)
from cnnjax.training import state as state_lib
from cnnjax.training.state import State

_LOGGER = logging.getLogger(__name__)


class Batches(Protocol):
  """An iterator over batches on the devices, to be closed."""

  def __next__(self) -> Any: ...

  def __iter__(self) -> Any: ...

  def close(self) -> None: ...


class Plan(NamedTuple):
  """The numbers of steps that a config means for a given dataset."""

  batch_size: int
  eval_batch_size: int
  steps: int
  warmup_steps: int
  eval_every: int
  checkpoint_every: int


class Experiment(NamedTuple):
  """Everything that is fixed before the first step.

  Attributes:
    plan: numbers of steps.
    task: pure functions of the model and the loss.
    schedule: the learning rate of a step.
    devices: how a step is spread over devices.
    description: class names, sizes and statistics, as data.json has them.
    init: `() -> State`.
    train_step: compiled `(state, batch) -> (state, metrics)`, which consumes the state.
    eval_step: compiled `(state, batch) -> sums`.
    recalibrate: `state -> state` with the batch statistics that evaluation is to use.
    train_batches: `(first_step) -> Batches`, endless, on the devices.
    test_batches: `() -> Batches`, every example once.
    features: `(state, split) -> ([N, D], labels [N])` of all of a split's examples.
  """

  plan: Plan
  task: Task
  schedule: optax.Schedule
  devices: parallel.Parallel
  description: dict[str, Any]
  init: Callable[[], State]
  train_step: Callable[[State, Any], tuple[State, steps.Metrics]]
  eval_step: Callable[[State, Any], dict[str, Any]]
  recalibrate: Callable[[State], State]
  train_batches: Callable[[int], Batches]
  test_batches: Callable[[], Batches]
  features: Callable[[State, str], tuple[np.ndarray, np.ndarray]]


def create(config: Config, directory: str) -> Experiment:
  """Builds an experiment.

  Args:
    config: validated.
    directory: the working directory, where data.json is kept so that a resumed run normalises
      as it did before.

  Raises:
    UserError: a mistake in the config or the data.
  """
  devices = parallel.create(config.parallel.strategy, devices=config.parallel.devices)
  augment_image = augment.parse(config.augment) if config.augment else None
  train, test = (source(config, split) for split in ('train', 'test'))
  mix_batch = mix.parse(config.mix, num_classes=len(train.class_names))
  plan = make_plan(config, len(train), len(test), len(devices.devices))
  schedule = make_schedule(config, plan)
  optimizer = make_optimizer(config, schedule)
  model = make_model(config, len(train.class_names))
  task = make_task(config, model, axis_name=devices.axis_name)

  limit = config.data.resident_megabytes * 2**20
  if sources.fits(train, limit) and sources.fits(test, limit):
    feed = _resident_feed(
      config, plan, devices, sources.materialise(train), sources.materialise(test)
    )
  else:
    feed = _streamed_feed(config, plan, devices, train, test)
  description = processes.share(lambda: describe(config, directory, train, test))
  normalise = preprocess.make_preprocess(
    augment_image, description['mean'], description['std'], 'float32'
  )

  init_key, step_key = jax.random.split(jax.random.key(config.seed))
  init = make_init(config, task, optimizer, train, ema=config.ema_decay > 0)
  axis = devices.axis_name
  common: Any = {'preprocess': normalise, 'axis_name': axis}
  train_step = make_train_step(config, task, optimizer, key=step_key, mix=mix_batch, **common)
  eval_step = steps.make_eval_step(task, **common)
  forgetful = norm.with_batch_norm(model, axis_name=axis, momentum=0.0)
  statistics_step = steps.make_statistics_step(
    classification.classification(forgetful), key=step_key, **common
  )
  statistics_step = feed.compile(under(config.ops, statistics_step), feed.train_data, False)

  def recalibrate(state: State) -> State:
    if not config.eval_statistics:
      return state
    with contextlib.closing(feed.train_batches(0)) as batches:
      found = (statistics_step(state, next(batches)) for _ in range(config.eval_statistics))
      statistics = devices.replicate(recalibration.pool(found))
    if state.ema is None:
      return dataclasses.replace(state, batch_stats=statistics)
    return dataclasses.replace(state, ema={**state.ema, 'batch_stats': statistics})

  features_step = under(config.ops, steps.make_features_step(task, **common))

  def features(state: State, split: str) -> tuple[np.ndarray, np.ndarray]:
    data = feed.train_data if split == 'train' else feed.test_data
    step, found = feed.compile(features_step, data, False), []
    with contextlib.closing(feed.passes(split)) as batches:
      for batch in batches:
        rows, labels, mask = jax.device_get(step(state, batch))
        found.append((rows[mask > 0], labels[mask > 0]))
    rows, labels = zip(*found, strict=True)
    return np.concatenate(rows), np.concatenate(labels)

  return Experiment(
    plan=plan,
    task=task,
    schedule=schedule,
    devices=devices,
    description=description,
    init=lambda: init(init_key),
    train_step=feed.compile(under(config.ops, train_step), feed.train_data, True),
    eval_step=feed.compile(under(config.ops, eval_step), feed.test_data, False),
    recalibrate=recalibrate,
    train_batches=feed.train_batches,
    test_batches=functools.partial(feed.passes, 'test'),
    features=features,
  )


def make_schedule(config: Config, plan: Plan) -> optax.Schedule:
  """The learning rate of a step. Of config's numbers, here and below, those may be traced that
  `cnnjax.sweep.hyper` names."""
  return schedules.create(
    config.schedule.name,
    learning_rate=config.optimizer.learning_rate,
    total_steps=plan.steps,
    warmup_steps=plan.warmup_steps,
    **config.schedule.options,
  )


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
  """The optimizer, which takes its learning rate from the schedule."""
  options = {k: v for k, v in config.optimizer.items() if k not in ('name', 'learning_rate')}
  return optimizers.create(config.optimizer.name, schedule, freeze=config.freeze, **options)


def make_model(config: Config, num_classes: int) -> nn.Module:
  """The network.

  Raises:
    UserError: an unknown model or field, or one that isn't the model's to set.
  """
  overrides = _overrides(config)
  for key in {'num_classes', 'dtype'} & overrides.keys():
    raise errors.UserError(
      f'config.model.{key}={overrides[key]!r} must not be set: num_classes is the number of the'
      " data's classes, dtype is config.dtype"
    )
  return models.create(config.model.name, num_classes=num_classes, dtype=config.dtype, **overrides)


def _overrides(config: Config) -> dict[str, Any]:
  return {k: v for k, v in config.model.items() if k != 'name'}


def make_task(config: Config, model: nn.Module, *, axis_name: str | None = None) -> Task:
  """The task of the model, whose batch normalisation is over all devices of `axis_name`."""
  # Frozen features are those of the statistics that they were learnt with, not of the batch's.
  fixed = {'use_running_average': True} if config.freeze_statistics else {}
  task = classification.classification(
    norm.with_batch_norm(model, axis_name=axis_name, **fixed),
    loss=config.loss.name,
    label_smoothing=config.loss.label_smoothing,
    mirror=config.eval_mirror,
    shift=config.eval_shift,
  )
  if config.freeze:
    task = task._replace(loss=optimizers.spare_frozen(task.loss, config.freeze))
  return task


def make_train_step(
  config: Config, task: Task, optimizer: optax.GradientTransformation, **options: Any
) -> Callable[[State, Any], tuple[State, steps.Metrics]]:
  """`steps.make_train_step` as the config has it; options are the others of that function."""
  return steps.make_train_step(
    task,
    optimizer,
    micro_batches=config.micro_batches,
    sam_radius=config.sam_radius,
    ema_decay=config.ema_decay,
    **options,
  )


def make_init(
  config: Config,
  task: Task,
  optimizer: optax.GradientTransformation,
  train: sources.Source,
  *,
  ema: bool,
) -> Callable[[jax.Array], State]:
  """The state before the first step, as a function of its key; compiled at the first call."""
  # It runs once: what more of LLVM's optimisation would gain, it takes longer to find.
  quick: Any = {'xla_backend_optimization_level': 1} if jax.default_backend() == 'cpu' else None
  shape = _image_shape(config, train)

  @functools.cache
  def compiled() -> Callable[[jax.Array], State]:
    batch = {'image': np.zeros((1, *shape), np.float32)}
    make = functools.partial(state_lib.init, task=task, optimizer=optimizer, batch=batch, ema=ema)
    start = jax.jit(make, compiler_options=quick)
    with ops.using(config.ops):
      try:
        traced = start.lower(jax.random.key(0))
      except Exception as e:
        if isinstance(e, errors.UserError) or not _overrides(config):
          raise
        raise errors.UserError(
          f'config.model={dict(config.model)} makes no network for images of {shape}: '
          f'{type(e).__name__}: {str(e)[:300]}'
        ) from e
      return traced.compile()

  def init(key: jax.Array) -> State:
    state = compiled()(key)
    if not (config.init_from or config.init_zero):
      return state
    classes = len(train.class_names)
    return warm_start.start(state, config, optimizer, image=shape, num_classes=classes)

  return init


def under(choice: str, step: Callable[..., Any]) -> Callable[..., Any]:
  """The step, traced under a choice of `cnnjax.ops.using`."""

  def chosen(*args: Any) -> Any:
    with ops.using(choice):
      return step(*args)

  return chosen


def source(config: Config, split: str) -> sources.Source:
  """The split of the data that the config names, 'train' or 'test'."""
  return sources.load(
    config.data.name,
    split,
    data_dir=config.data.data_dir,
    image_size=config.data.image_size,
    resize=config.data.resize,
    max_unreadable=config.data.max_unreadable,
  )


def _image_shape(config: Config, source: sources.Source) -> tuple[int, int, int]:
  if source.image_shape is not None:
    return source.image_shape
  height, width = config.data.image_size  # a source of varying sizes asks for it
  return height, width, source[0]['image'].shape[-1]


def make_plan(config: Config, train_size: int, test_size: int, devices: int) -> Plan:
  """Turns epochs into steps.

  Raises:
    UserError: a batch that the devices can't share equally, or a warm-up as long as the run.
  """
  batch_size = train_size if config.batch_size == -1 else config.batch_size
  if batch_size % devices:
    raise errors.UserError(
      f'config.batch_size={batch_size} must be divisible by the number of devices, {devices}'
    )
  if batch_size % (devices * config.micro_batches):
    raise errors.UserError(
      f'config.micro_batches={config.micro_batches} must divide the {batch_size // devices}'
      ' examples of a batch on each device'
    )
  per_epoch = train_size / batch_size
  total = config.steps if config.steps is not None else max(1, round(config.epochs * per_epoch))
  if total >= 2**31:
    raise errors.UserError(f'config.epochs={config.epochs} is {total} steps, allowed below 2**31')
  warmup = round(config.schedule.warmup_epochs * per_epoch)
  if warmup and warmup >= total:
    raise errors.UserError(
      f'config.schedule.warmup_epochs={config.schedule.warmup_epochs} is {warmup} steps and must'
      f' be fewer than the {total} steps of the run'
    )
  eval_every = config.eval_every or max(1, round(per_epoch))
  return Plan(
    batch_size=batch_size,
    eval_batch_size=min(batch_size, -(-test_size // devices) * devices),
    steps=total,
    warmup_steps=warmup,
    eval_every=eval_every,
    checkpoint_every=config.checkpoint.every or eval_every,
  )


def describe(
  config: Config, directory: str, train: sources.Source, test: sources.Source
) -> dict[str, Any]:
  """Class names, sizes and statistics: what data.json has, where there is one, else written there.

  Raises:
    UserError: data.json is of other data.
  """
  found = {
    'name': config.data.name,
    'class_names': list(train.class_names),
    'train_examples': len(train),
    'test_examples': len(test),
  }
  stored = workdir.read_json(directory, 'data.json')
  if stored is not None:
    changed = [k for k, v in found.items() if stored.get(k) != v]
    if changed:  # the order of the examples would be another
      key = changed[0]
      raise errors.UserError(
        f'config.data.name={config.data.name!r} has changed since this run began: {key} was'
        f' {stored.get(key)!r}, is {found[key]!r}; restore the data or choose another workdir'
      )
    return stored
  if config.data.mean:
    mean, std = config.data.mean, config.data.std
  else:
    mean, std = sources.statistics(train)
  description = {
    **found,
    'mean': [float(x) for x in mean],
    'std': [float(x) for x in std],
  }
  workdir.write_data(directory, description)
  return description


class _Feed(NamedTuple):
  train_data: tuple[Any, ...]  # replicated arguments after the batch
  test_data: tuple[Any, ...]
  compile: Callable[..., Any]
  train_batches: Callable[[int], Batches]
  passes: Callable[[str], Batches]  # every example of a split once


def _resident_feed(config, plan, devices, train, test) -> _Feed:
  """Images stay on the devices; a batch is example numbers, and the step gathers its images."""
  process = (jax.process_index(), jax.process_count())

  def split(**batch):
    mine = pipeline.rows(len(batch['id']), process)
    return devices.split({name: values[mine] for name, values in batch.items()})

  def train_batches(first):
    ones = np.ones(plan.batch_size, np.float32)
    for step in itertools.count(first):
      ids = pipeline.train_ids(config.seed, step, len(train), plan.batch_size)
      epochs = pipeline.train_epochs(step, len(train), plan.batch_size)
      yield split(id=ids, mask=ones, epoch=epochs)

  def passes(name):
    size = len(train if name == 'train' else test)
    for step in range(pipeline.num_eval_steps(size, plan.eval_batch_size)):
      ids, mask = pipeline.eval_ids(step, size, plan.eval_batch_size)
      yield split(id=ids, mask=mask)

  def compile(step, data, donate):
    def gathering(state, batch, images, labels):
      ids = batch['id']
      return step(state, {**batch, 'image': images[ids], 'label': labels[ids]})

    compiled = devices.compile(gathering, donate)
    return lambda state, batch: compiled(state, batch, *data)

  def replicated(source):
    return devices.replicate(source.images), devices.replicate(source.labels)

  return _Feed(replicated(train), replicated(test), compile, train_batches, passes)


def _streamed_feed(config, plan, devices, train, test) -> _Feed:
  """Batches are read and decoded while the devices work on earlier ones."""
  options = {
    'process': (jax.process_index(), jax.process_count()),
    'workers': config.data.workers,
  }

  def train_batches(first):
    batches = pipeline.train_batches(
      train,
      seed=config.seed,
      batch_size=plan.batch_size,
      start_step=first,
      transform=preprocess.train_transform(
        config.data.resize, config.data.image_size, seed=config.seed
      ),
      **options,
    )
    return ahead(batches)

  def passes(name):
    source = train if name == 'train' else test
    return ahead(pipeline.eval_batches(source, batch_size=plan.eval_batch_size, **options))

  def ahead(batches):
    return prefetch.prefetch(
      batches, devices.split, config.data.prefetch, timeout=seconds, on_timeout=end_what_hangs
    )

  seconds = config.data.timeout

  def end_what_hangs():
    if not pipeline.end_workers(seconds):
      _LOGGER.error('no batch for config.data.timeout=%g s: does the storage answer?', seconds)
      os._exit(4)  # a thread that hangs in a read would keep any other exit waiting

  def compile(step, data, donate):
    del data
    return devices.compile(step, donate)

  return _Feed((), (), compile, train_batches, passes)
