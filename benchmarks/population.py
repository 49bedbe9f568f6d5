"""A population trained in one program against the same runs one after another in one process.

  python benchmarks/population.py [--cases=lenet5,digits,small] [--members=16] [--rounds=10]
      [--programs=population*10,vmap:auto,map*10@2,...] [--json]

All cases train with AdamW, every member with a learning rate and an order of examples of its
own: `lenet5` is LeNet-5 on 28x28 images with batch 64, `digits` the zoo's `cnn` on the shipped 8x8
digits with batch 16, `small` the same with fewer features. `alone` is the ordinary jitted step,
called from Python for one member after the other. Programs are named FORM*STEPS@DEVICES: `vmap:WAY`
maps the step over the members, their convolutions computed as `ops.members(WAY)` says, `vmap4:WAY`
over four at a time, chunk after chunk; `map` loops over members inside the program; *10 takes ten
steps a call (`lax.scan`), a chunk's before the next one's; @2 spreads the members over two virtual
devices of the CPU. `population` is what `cnnjax.sweep.population` makes of the same recipe, with
`strategy='auto'` (*10: `steps_per_call=10`; LeNet-5 on Fashion-MNIST, which must be prepared).

Programs for one and for two devices need processes of their own, which take turns: the others
sleep. Every round runs every program for the same number of steps, in an order that rotates.
Reported: medians of steps of members per second, and of the ratio to `alone` in the same round.
Compilation isn't counted. After their first run the mean losses of all programs but `population`,
which reads in another order, must agree.
"""

import argparse
import functools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np

from cnnjax import memory

PROGRAMS = 'population*10,population*10@2,vmap:auto,vmap:auto*10,map*10,vmap:auto*10@2,map*10@2'


class Case(NamedTuple):
  """What is trained; `steps` of every member in a round."""

  model: str
  image: tuple[int, int, int]
  batch_size: int
  steps: int
  options: dict[str, Any]


CASES = {
  'lenet5': Case('lenet5', (28, 28, 1), 64, 20, {}),
  'digits': Case('cnn', (8, 8, 1), 16, 50, {}),
  'small': Case('cnn', (8, 8, 1), 16, 50, {'features': (16, 32), 'dense': (64,)}),
}


class Program(NamedTuple):
  """See the module's docstring."""

  form: str
  steps: int
  devices: int


def parse(name: str) -> Program:
  """A program by its name, FORM*STEPS@DEVICES."""
  match = re.fullmatch(r'([\w:]+)(?:\*(\d+))?(?:@(\d+))?', name)
  if not match:
    raise SystemExit(f'--programs: {name!r} is no FORM*STEPS@DEVICES')
  return Program(match[1], int(match[2] or 1), int(match[3] or 1))


def serve() -> None:
  """Reads lines of JSON, runs the programs they ask for, and writes their seconds and losses."""
  runs = {}
  for line in sys.stdin:
    case, members, name = json.loads(line)
    if (case, name) not in runs:
      runs[case, name] = build(CASES[case], members, parse(name))
    start = time.perf_counter()
    losses = runs[case, name]()
    print(json.dumps([time.perf_counter() - start, losses]), flush=True)


def build(case: Case, members: int, program: Program):
  """A function that trains all members for `case.steps`, and gives their last losses."""
  if program.form == 'population':
    return build_population(case, members, program.steps)
  import jax
  from jax.sharding import Mesh, NamedSharding
  from jax.sharding import PartitionSpec as P

  from cnnjax import models, ops
  from cnnjax.data import preprocess, sources
  from cnnjax.tasks.classification import classification
  from cnnjax.training import optimizers, state, steps

  rng = np.random.default_rng(0)
  images = rng.integers(256, size=(2048, *case.image)).astype(np.uint8)
  labels = rng.integers(10, size=2048).astype(np.int32)
  if case.model == 'cnn':
    source = sources.load('digits', 'train')
    images, labels = source.images, source.labels
  data = jax.device_put((images, labels))
  task = classification(models.create(case.model, num_classes=10, **case.options))
  normalise = preprocess.make_preprocess(None, (0.5,), (0.25,))
  create = functools.partial(optimizers.create, 'adamw', weight_decay=1e-2)

  def step(state, rate, batch, images, labels):
    key, ids = jax.random.key(0), batch['id']
    train = steps.make_train_step(task, create(rate), key=key, preprocess=normalise)
    return train(state, {**batch, 'image': images[ids], 'label': labels[ids]})

  example = {'image': np.zeros((1, *case.image), np.float32)}
  init = lambda key: state.init(key, task, create(1e-3), example)
  states = jax.jit(jax.vmap(init))(jax.random.split(jax.random.key(0), members))
  rates = np.geomspace(1e-4, 3e-3, members).astype(np.float32)
  ids = rng.integers(len(images), size=(case.steps, members, case.batch_size)).astype(np.int32)
  batches = {'id': ids, 'mask': np.ones(ids.shape, np.float32)}
  at = lambda tree, *index: jax.tree.map(lambda x: x[index], tree)

  if program.form == 'alone':
    jitted = jax.jit(step, donate_argnums=0)
    own = [at(states, k) for k in range(members)]
    feed = [[at(batches, t, k) for t in range(case.steps)] for k in range(members)]

    def alone():
      losses = []
      for k in range(members):
        before = values = None
        for batch in feed[k]:
          own[k], values = jitted(own[k], rates[k], batch, *data)
          jax.block_until_ready(before)  # as the training loop: one step ahead
          before = values
        losses.append(float(values['loss']))
      return losses

    return alone

  form, _, way = program.form.partition(':')
  one = program.steps == 1
  size = None if form == 'map' else int(form.removeprefix('vmap') or members)

  def several(state, rate, batches, *data):
    return jax.lax.scan(lambda state, batch: step(state, rate, batch, *data), state, batches)

  def call(states, rates, batches, *data):
    # All steps of a chunk of members before the next chunk's: its states stay in the cache.
    own = lambda member: (step if one else several)(*member, *data)
    turned = batches if one else jax.tree.map(lambda x: x.swapaxes(0, 1), batches)
    if size and size >= len(rates):
      return jax.vmap(own)((states, rates, turned))
    return jax.lax.map(own, (states, rates, turned), batch_size=size)

  along = P('members') if one else P(None, 'members')
  if program.devices > 1:
    mesh = Mesh(np.asarray(jax.devices()[: program.devices]), ('members',))
    states = jax.device_put(states, NamedSharding(mesh, P('members')))
    data = jax.device_put(data, NamedSharding(mesh, P()))
    call = jax.shard_map(
      call,
      mesh=mesh,
      in_specs=(P('members'), P('members'), along, P(), P()),
      out_specs=P('members'),
      check_vma=False,
    )
  jitted = jax.jit(call, donate_argnums=0)
  feed = [
    at(batches, t) if one else at(batches, slice(t, t + program.steps))
    for t in range(0, case.steps, program.steps)
  ]

  def together():
    nonlocal states
    before = values = None
    for batch in feed:
      if way:
        with ops.members(way):
          states, values = jitted(states, rates, batch, *data)
      else:
        states, values = jitted(states, rates, batch, *data)
      jax.block_until_ready(before)
      before = values
    losses = np.asarray(values['loss'])
    return (losses if one else losses[:, -1]).tolist()

  return together


def build_population(case: Case, members: int, steps: int):
  """As `build`, by what users of `cnnjax.sweep.population` get."""
  import jax

  from cnnjax import config as config_lib
  from cnnjax.sweep import population

  c = config_lib.default()
  c.data.name = 'digits' if case.model == 'cnn' else 'fashion_mnist'
  c.model = {'name': case.model, **case.options}
  c.batch_size, c.steps, c.log_every, c.eval_every = case.batch_size, 10**6, 10**6, 10**6
  c.optimizer.name, c.optimizer.weight_decay = 'adamw', 1e-2
  rates = np.geomspace(1e-4, 3e-3, members).tolist()
  points = [{'seed': i, 'optimizer.learning_rate': rate} for i, rate in enumerate(rates)]
  config, directory = config_lib.validate(c), tempfile.mkdtemp()
  made = population.create(config, points, directory, steps_per_call=steps)
  state, hypers = made.place(made.init()), made.place(made.hypers)
  first = 0

  def together():
    nonlocal state, first
    before = values = None
    for _ in range(0, case.steps, steps):
      state, values = made.train(state, hypers, first, steps)
      jax.block_until_ready(before)
      first, before = first + steps, values
    return np.asarray(values['loss'])[-1].tolist()

  return together


def start(devices: int) -> subprocess.Popen:
  """A process with so many virtual devices, and memory as `cnnjax.main` has it."""
  flags = {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
  return subprocess.Popen(
    [sys.executable, __file__, '--serve'],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, **memory.environment(), **flags},
  )


def measure(case: str, members: int, names: list[str], rounds: int, workers: dict[int, Any]):
  """By program: median steps of members per second, and median ratio to `alone`."""
  names = ['alone', *names]
  steps = members * CASES[case].steps

  def run(name: str) -> tuple[float, list[float]]:
    worker = workers[parse(name).devices]
    print(json.dumps([case, members, name]), file=worker.stdin, flush=True)
    line = worker.stdout.readline()
    if not line:
      raise SystemExit(f'{name}: the process ended with status {worker.wait()}')
    return json.loads(line)

  first = {name: run(name)[1] for name in names}  # compiles
  for name, losses in first.items():  # the members with large learning rates are chaotic
    if not name.startswith('population'):  # which reads other data, or in another order
      mean, expected = np.mean(losses), np.mean(first['alone'])
      np.testing.assert_allclose(mean, expected, rtol=0.02, err_msg=name)
  rates: dict[str, list[float]] = {name: [] for name in names}
  for i in range(rounds):
    turn = i % len(names)
    for name in names[turn:] + names[:turn]:
      rates[name].append(steps / run(name)[0])
  return {
    name: {
      'steps_per_second': statistics.median(found),
      'ratio': statistics.median(a / b for a, b in zip(found, rates['alone'], strict=True)),
    }
    for name, found in rates.items()
  }


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--cases', default='lenet5,digits,small')
  parser.add_argument('--programs', default=PROGRAMS)
  parser.add_argument('--members', type=int, default=16)
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--json', action='store_true')
  parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.serve:
    serve()
    return
  names = arguments.programs.split(',')
  workers = {n: start(n) for n in {1, *(parse(name).devices for name in names)}}
  results = {}
  try:
    for case in arguments.cases.split(','):
      results[case] = measure(case, arguments.members, names, arguments.rounds, workers)
      if not arguments.json:
        for name, found in results[case].items():
          print(
            f'{case:8} {name:20} {found["steps_per_second"]:8.0f} steps/s  {found["ratio"]:6.3f}',
            flush=True,
          )
  finally:
    for worker in workers.values():
      worker.stdin.close()
      worker.wait()
  if arguments.json:
    print(json.dumps({'members': arguments.members, 'rounds': arguments.rounds, **results}))


if __name__ == '__main__':
  main()
