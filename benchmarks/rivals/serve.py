"""What every worker of `vs_pytorch.py` does: builds its step, warms up, then measures on request.

A worker is `python WORKER.py SPEC`, SPEC a JSON object: `model`, `mode` ('train' or 'infer'),
`contestant`, `shape` [N, H, W, C], `classes`, `threads`. It answers on standard output, one JSON
object a line: once when it is ready, and once for each line `measure` on its standard input. In
between it is blocked on that pipe. An answer's `idle_ms` is the CPU time that its threads took
nevertheless, and `others` how many CPUs were busy with other work, or withheld by a hypervisor,
while it measured (None where the system doesn't say).

Runs in both interpreters: nothing here needs more than the standard library and NumPy.
"""

import gc
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

WARM_UP = 3  # steps
SHORTEST = 0.5  # seconds; a measurement takes as many steps as it needs to last so long

Run = Callable[[int], Any]  # run(n) takes n steps and returns once they are computed
Make = Callable[[dict[str, Any]], tuple[Run, dict[str, Any]]]


def batch(spec: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
  """The same normalised images [N, H, W, C] float32 and labels [N] int32 for every contestant."""
  rng = np.random.RandomState(0)
  images = rng.standard_normal(spec['shape']).astype(np.float32)
  return images, rng.randint(spec['classes'], size=spec['shape'][0]).astype(np.int32)


def check_close(name: str, found: np.ndarray, expected: np.ndarray) -> float:
  """The largest difference relative to the largest value; raises beyond 1e-4 and for NaN."""
  error = float(np.abs(found - expected).max() / np.abs(expected).max())
  if not error <= 1e-4:
    raise ValueError(f'the logits of {name} are off by {error:.1e}, relative to the largest')
  return error


def timed(run: Run, steps: int) -> float:
  """Seconds that `steps` steps take together."""
  start = time.perf_counter()
  run(steps)
  return time.perf_counter() - start


def fastest(candidates: dict[str, Callable[[], Run]]) -> tuple[str, dict[str, float | str]]:
  """Tries each setting for a moment; the best one's name, and milliseconds per step of all.

  The least of several times counts: unlike the median it hardly feels what else the machine does.
  A candidate that fails has its error in place of a time; if all do, the first one's is raised.
  """
  found: dict[str, float | str] = {}
  for name, build in candidates.items():
    gc.collect()
    try:
      run = build()
      run(2)
      times, start = [], time.perf_counter()
      while len(times) < 3 or time.perf_counter() - start < 0.3:
        times.append(timed(run, 1) * 1e3)
      found[name] = round(min(times), 3)
    except Exception as error:
      traceback.print_exc()
      found[name] = _reason(error)
    finally:
      run = None  # its memory is free before the next is built
  times = {name: ms for name, ms in found.items() if not isinstance(ms, str)}
  if not times:
    raise RuntimeError(next(iter(found.values())))
  return min(times, key=times.__getitem__), found


def serve(make: Make) -> None:
  """Answers until the pipe is closed.

  Args:
    make: builds, from the specification, the step to measure, and what to report with it
      (`parameters`, `versions`, `settings`).
  """
  start, spec = time.perf_counter(), json.loads(sys.argv[1])
  answers = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)  # what a library prints isn't an answer
  try:
    run, report = make(spec)
    run(WARM_UP)
    steps = 1
    while min(timed(run, steps) for _ in range(3)) < SHORTEST and steps < 1024:
      steps *= 2
    seconds = time.perf_counter() - start
    report |= {'steps': steps, 'setup_seconds': seconds, 'setup_peak_mib': _peak_mib()}
    gc.collect()
    _reset_peak()
    while True:
      print(json.dumps(report), file=answers)
      used = time.process_time()
      if not sys.stdin.readline():
        return
      idle = time.process_time() - used
      if steps > 1:
        run(max(1, steps // 4))  # what slept meanwhile: caches, and where threads run
      busy, used = _busy(), time.process_time()
      seconds = timed(run, steps)
      used, now = time.process_time() - used, _busy()
      report = {
        'ms': seconds / steps * 1e3,
        'idle_ms': idle * 1e3,
        'others': None if busy is None else (now - busy - used) / seconds,
        'peak_mib': _peak_mib(),
      }
  except Exception as error:
    traceback.print_exc()
    print(json.dumps({'failed': _reason(error)}), file=answers)


def _reason(error: Exception) -> str:
  return f'{type(error).__name__}: {" ".join(str(error).split())}'[:300]


def _busy() -> float | None:
  """Seconds that all CPUs together weren't idle; None where there is no `/proc`."""
  try:
    with open('/proc/stat') as file:
      user, nice, system, _, _, *rest = map(int, file.readline().split()[1:9])
  except OSError:
    return None
  return (user + nice + system + sum(rest)) / os.sysconf('SC_CLK_TCK')


def _peak_mib() -> float:
  """Peak resident memory since the start, or on Linux since `_reset_peak`."""
  try:
    with open('/proc/self/status') as status:
      return next(int(line.split()[1]) for line in status if line.startswith('VmHWM')) / 1024
  except OSError:
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _reset_peak() -> None:
  try:
    with open('/proc/self/clear_refs', 'w') as file:
      file.write('5')
  except OSError:
    pass  # then the peak includes building and compiling
