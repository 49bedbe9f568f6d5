"""Which way convolutions of several members take under `vmap`: as told, or the quickest here."""

import concurrent.futures
import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.errors import unknown

WAYS = ('loop', 'fold', 'batch')  # `cnnjax.ops.vmapped` says what they are
CHOICES = ('auto', *WAYS)

_LARGE = 50_000_000  # products of one member, from which a CPU is busy with it alone
_KEPT = 1024  # cases
_ROUNDS, _SECONDS = 5, 1e-3  # how often, and how long at least, a way is timed
_GAIN = 0.9  # of the loop's time: what another way must stay below

_choice = jax.make_user_context(None)  # part of jit's key, as `ops.using` is
_picked: dict[str, str] = {}
_lock = threading.Lock()  # two that are timed at once would slow each other down


def members(choice: str | Mapping[str, str] = 'auto') -> contextlib.AbstractContextManager[Any]:
  """A context: functions traced within compute convolutions of several members in this way.

  Without it members are looped over where the plugin is at hand, and XLA's own rule, a grouped
  convolution, is used where it isn't. Outside of `vmap` it changes nothing.

  Args:
    choice: 'loop', 'fold' or 'batch'; 'auto': the quickest on this machine, timed when a shape is
      met for the first time; or a table of `picked`, whose cases are then as they were (others are
      looped), so that a program can be built again just as it was.

  Raises:
    UserError: another choice.
  """
  if isinstance(choice, str):
    if choice not in CHOICES:
      raise unknown('ops.members', choice, CHOICES)
    return _choice(choice)
  for way in choice.values():
    if way not in WAYS:
      raise unknown('ops.members', way, WAYS)
  return _choice(tuple(sorted(choice.items())))


def active() -> bool:
  """Whether functions are traced here under a choice of `members`."""
  return _choice.value is not None


def picked() -> dict[str, str]:
  """What 'auto' has picked in this process, the latest 1,024 cases: {case: way}."""
  with _lock:
    return dict(_picked)


class Case(NamedTuple):
  """What there is to choose.

  Attributes:
    name: tells it from all others.
    products: multiplications for one member.
    arguments: shapes and types.
    ways: a function of the arguments for each way, 'loop' among them.
  """

  name: str
  products: int
  arguments: tuple[jax.ShapeDtypeStruct, ...]
  ways: dict[str, Callable[..., jax.Array]]


def choose(describe: Callable[[], Case]) -> str:
  """The way to take for a case, which is described only if that matters."""
  choice = _choice.value
  if choice is None or choice in WAYS:
    return choice or 'loop'
  case = describe()
  if choice != 'auto':
    return dict(choice).get(case.name, 'loop')
  with _lock:
    if case.name not in _picked:
      while len(_picked) >= _KEPT:
        del _picked[next(iter(_picked))]
      _picked[case.name] = _quickest(case)
    return _picked[case.name]


def _quickest(case: Case) -> str:
  """The way that takes the least time; 'loop' where there is nothing to gain, and where several
  processes would have to agree."""
  large = jax.default_backend() == 'cpu' and case.products >= _LARGE
  if large or jax.process_count() > 1:
    return 'loop'
  # In a thread of its own: nothing of what is being traced here, its mesh or its options is there.
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    times = thread.submit(_time, case.ways, case.arguments).result()
  best = min(times, key=lambda way: times[way])
  return best if times[best] < _GAIN * times['loop'] else 'loop'


def _time(
  ways: Mapping[str, Callable[..., jax.Array]], arguments: Sequence[jax.ShapeDtypeStruct]
) -> dict[str, float]:
  """Seconds of one call, the least of several, in turn; infinite where memory is too small."""
  rng = np.random.default_rng(0)
  arrays = [jnp.asarray(rng.standard_normal(a.shape, np.float32), a.dtype) for a in arguments]
  programs: dict[str, Any] = {}
  times, repeats = dict.fromkeys(ways, math.inf), dict.fromkeys(ways, 1)
  for way, compute in ways.items():
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      program = jax.jit(compute).lower(*arrays).compile()
      jax.block_until_ready(program(*arrays))
      programs[way] = program
  for i in range(_ROUNDS):
    for way, program in programs.items():
      if i and times[way] > 4 * min(times.values()):
        continue
      start = time.perf_counter()
      for _ in range(repeats[way]):
        result = program(*arrays)
      jax.block_until_ready(result)
      seconds = (time.perf_counter() - start) / repeats[way]
      times[way] = min(times[way], seconds)
      repeats[way] = max(1, math.ceil(_SECONDS / seconds))
  return times
