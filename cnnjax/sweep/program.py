"""The steps of many members as one compiled program: side by side, in chunks, or one after another.

Here a member is two functions: `update(state, hypers, batch, data) -> (state, metrics)`, one step,
and `judge(state, batch, data) -> sums`, one batch of evaluation. A state of many has a leading axis
of members in all arrays but `step`. Several steps are one call, in a loop within the program.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.training import parallel, workdir
from cnnjax.training.state import State

Function = Callable[..., Any]

# Axes of members, as `vmap` has them
STATE: Any = State(step=None, params=0, batch_stats=0, opt_state=0, ema=0)  # pyright: ignore

_FEW = 4  # members side by side whose activations are still in the cache when they are needed
_TIMED_SECONDS, _TIMED_CALLS = 0.2, 3  # of a call, if it takes so many steps; and how many


def each(function: Function, members: Any, chunk: int) -> Any:
  """A function of one member for all: up to `chunk` members side by side, chunk after chunk."""
  count = len(jax.tree.leaves(members)[0])
  if chunk == 1:
    return lax.map(function, members)
  if chunk < count:
    return lax.map(function, members, batch_size=chunk)
  return jax.vmap(function)(members)


def trainer(update: Function, *, chunk: int, most_steps: int, separate: bool) -> Function:
  """Makes `train(state, hypers, batch, number, data) -> (state, metrics)`.

  Args:
    update: of one member.
    chunk: members side by side.
    most_steps: S, of one call; 1: there is no loop of steps.
    separate: `id` in the batch is [S, K, N], not [S, N].

  Returns:
    A function that takes `number` steps, an int32 scalar, at most S; its batch has rows for each
    step, and so have its metrics, [S, K]; those beyond `number` mean nothing.
  """

  update = jax.jit(update)  # traced once, for its shapes and for the loop

  def train(state: State, hypers: Any, batch: Any, number: jax.Array, data: Any) -> Any:
    # All steps of a chunk of members before the next chunk's: its states stay in the cache.
    def one(member: Any) -> Any:
      own, values, ids = member
      rows = {**batch, 'id': batch['id'] if ids is None else ids}
      step = lambda i, state: update(state, values, jax.tree.map(lambda x: x[i], rows), data)
      own = dataclasses.replace(own, step=state.step)
      if most_steps == 1:
        new, found = step(0, own)
        return _without_step(new), jax.tree.map(lambda x: x[None], found)

      def body(i: jax.Array, carry: Any) -> Any:
        new, found = step(i, carry[0])
        return new, jax.tree.map(lambda all, x: all.at[i].set(x), carry[1], found)

      _, shapes = jax.eval_shape(step, 0, own)
      empty = jax.tree.map(lambda x: jnp.zeros((most_steps, *x.shape), x.dtype), shapes)
      new, found = lax.fori_loop(0, number, body, (own, empty))
      return _without_step(new), found

    ids = batch['id'].swapaxes(0, 1) if separate else None
    new, found = each(one, (_without_step(state), hypers, ids), chunk)
    taken = 1 if most_steps == 1 else number
    found = jax.tree.map(lambda x: x.swapaxes(0, 1), found)
    return dataclasses.replace(new, step=state.step + taken), found

  return train


def evaluator(judge: Function, *, chunk: int) -> Function:
  """Makes `evaluate(state, batch, data) -> sums [K, B, ...]` of B batches for all members."""

  def evaluate(state: State, batch: Any, data: Any) -> Any:
    def one(own: State) -> Any:
      sums = lambda rows: judge(dataclasses.replace(own, step=state.step), rows, data)
      if len(batch['id']) > 1:
        return lax.map(sums, batch)
      return jax.tree.map(lambda x: x[None], sums(jax.tree.map(lambda x: x[0], batch)))

    return each(one, _without_step(state), chunk)

  return evaluate


def _without_step(state: State) -> State:
  return dataclasses.replace(state, step=None)  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def choosing(choice: str, chunk: int, convolutions: Any) -> Iterator[None]:
  """Where programs are traced: with the ops of a config, and convolutions of many members in the
  ways of `ops.members`; one member at a time computes as it would alone."""
  with contextlib.ExitStack() as stack:
    stack.enter_context(ops.using(choice))
    if chunk > 1:
      stack.enter_context(ops.members(convolutions))
    yield


def choose(
  compiled: Callable[[int], Any],
  strategy: str,
  limit: int,
  where: parallel.Members,
  arguments: Sequence[Any],
  most_steps: int,
) -> tuple[int, Any, dict[str, float]]:
  """How many members are to be side by side.

  Args:
    compiled: chunk -> the compiled trainer.
    strategy: 'vmap': as many as fit into memory; 'loop': one; 'auto': what takes the least time
      per step of these two and a few at a time.
    limit: the largest chunk.
    where: the devices.
    arguments: for the program.
    most_steps: of one call.

  Returns:
    The chunk, its program, and the seconds per step of each chunk that was timed.
  """
  if strategy == 'loop':
    return 1, compiled(1), {}
  chunk, run = fit(compiled, limit, parallel.free_memory(where.devices))
  if strategy == 'vmap' or chunk == 1:
    return chunk, run, {}
  programs = {chunk: run, **{size: compiled(size) for size in (_FEW, 1) if size < chunk}}
  timed = {size: _seconds(p, where, arguments, most_steps) for size, p in programs.items()}
  best = min(timed, key=lambda size: timed[size])
  return best, programs[best], {str(size): time for size, time in timed.items()}


def fit(compiled: Callable[[int], Any], chunk: int, room: int) -> tuple[int, Any]:
  """The largest chunk, at most `chunk`, whose program needs no more memory than there is.

  Args:
    compiled: chunk -> a compiled program, which says what it needs.
    chunk: to begin with; what is tried after it divides it.
    room: bytes.
  """
  while True:
    run = compiled(chunk)
    need = run.memory_analysis()
    if chunk == 1 or need is None:
      return chunk, run
    fixed = need.argument_size_in_bytes + need.output_size_in_bytes - need.alias_size_in_bytes
    if fixed + need.temp_size_in_bytes <= room:
      return chunk, run
    fits = chunk * (room - fixed) // need.temp_size_in_bytes
    chunk = max(d for d in range(1, chunk) if chunk % d == 0 and d <= max(1, fits))


def _seconds(
  run: Function, where: parallel.Members, arguments: Sequence[Any], most_steps: int
) -> float:
  """Of one step, the least of a few calls; the state stays as it was."""
  state, hypers, batch, _, data = arguments
  state = jax.tree.map(jnp.copy, where.place(state))  # calls consume it

  def call(number: int) -> float:
    nonlocal state
    start = time.perf_counter()
    state, _ = jax.block_until_ready(run(state, hypers, batch, jnp.int32(number), data))
    return (time.perf_counter() - start) / number

  call(1)
  number = min(most_steps, max(1, int(_TIMED_SECONDS / call(1))))
  return min(call(number) for _ in range(_TIMED_CALLS))


class Record:
  """population.json: the points, and how the program of each number of members was chosen, so that
  a run that is resumed computes the same."""

  def __init__(self, directory: str, points: Sequence[Mapping[str, Any]], order: str):
    """Reads it, or writes it.

    Raises:
      UserError: it is of other points.
    """
    self._directory = directory
    new = json.loads(json.dumps({'points': [dict(point) for point in points], 'order': order}))
    self._found = workdir.read_json(directory, 'population.json') or {**new, 'programs': {}}
    for key, value in new.items():
      if self._found.get(key) != value:
        raise UserError(
          f'--workdir={directory!r} holds another population, with other {key}: choose another'
          ' workdir'
        )
    workdir.write_json(directory, 'population.json', self._found)

  def program(self, members: int) -> dict[str, Any]:
    """How it was chosen for so many; {} if it wasn't."""
    return self._found['programs'].get(str(members), {})

  def add(self, members: int, choice: Mapping[str, Any]) -> None:
    """Notes how it was chosen for so many."""
    self._found['programs'][str(members)] = dict(choice)
    workdir.write_json(self._directory, 'population.json', self._found)
