"""cnnjax against PyTorch, eager and compiled, and ONNX Runtime: the same steps, side by side.

  python benchmarks/vs_pytorch.py [--models=lenet5,cnn] [--mode=train,infer] [--steps=10]
      [--rivals=eager,compile,onnxruntime] [--torch_python=PATH] [--json=FILE]

On the CPU, in float32: the same model, batch and dropout, and in training cross entropy, batch
statistics and SGD with momentum 0.9. Images lie ready in memory; there is no input pipeline.
PyTorch runs at the fastest of several settings (`rivals/pytorch_worker.py`), chosen anew each run.

Every contestant is a process of its own. They take turns: in each of `--steps` rounds every one
takes one step (or as many as last half a second, after some that don't count, since training goes
on and threads take a while to find their cores), in an order that rotates, while the others sleep,
blocked on a pipe. Reported: the median of milliseconds per step, ratios of medians (above 1: cnnjax
is faster), their geometric means over models, and peak memory while measured. `train_ratio` and
`infer_ratio` compare with the faster of eager and compiled.

The machine must be quiet. OpenMP's threads spin where they wait for each other, so beside other
work PyTorch slows down far more than its share, and the ratios flatter cnnjax: where other work
took more than a twentieth of a CPU, a line says so.

The CPU build of PyTorch may need another Python than the newest JAX: `--torch_python` is an
interpreter with torch, torchvision (for its model definitions; `--no-deps` will do), and for ONNX
Runtime onnx, onnxruntime and onnxscript. What fails is reported, with the reason and exit status 1.
"""

import argparse
import contextlib
import datetime
import json
import math
import os
import pathlib
import platform
import selectors
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

from cnnjax import memory

RIVALS = pathlib.Path(__file__).parent / 'rivals'
SETTLE = 0.1  # seconds; before, the threads of ONNX Runtime and OpenMP still spin (30 and 5 ms)
# cnnjax runs as `python -m cnnjax.main` does: huge pages, and large arrays kept for reuse. For the
# rivals glibc can do the same, at the price of up to three times the memory: it is what makes them
# fastest (ResNet-50's step in PyTorch: 704 ms without, 662 with it).
RIVALS_MEMORY = {
  'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1'
  ':glibc.malloc.trim_threshold=17179869184'
}
WORKERS = {
  'eager': 'pytorch_worker.py',
  'compile': 'pytorch_worker.py',
  'onnxruntime': 'onnxruntime_worker.py',
  'cnnjax': 'cnnjax_worker.py',
}


class Case(NamedTuple):
  """A model at a batch [N, H, W, C]."""

  shape: tuple[int, int, int, int]
  classes: int = 1000


CASES = {
  'lenet5': Case((128, 28, 28, 1), 10),
  'cnn': Case((128, 28, 28, 1), 10),
  'resnet18_cifar': Case((64, 32, 32, 3), 10),
  'resnet50': Case((8, 224, 224, 3)),
  'vgg11_bn': Case((4, 224, 224, 3)),
  'densenet121': Case((8, 224, 224, 3)),
  'mobilenet_v2': Case((16, 224, 224, 3)),
  'efficientnet_b0': Case((8, 224, 224, 3)),
  'convnext_tiny': Case((4, 224, 224, 3)),
}


class Failure(Exception):
  """A contestant that has no result; its message says why."""


class Worker:
  """A contestant's process; see `rivals/serve.py` for what it is told and answers."""

  def __init__(self, python: str, spec: dict[str, Any], timeout: float):
    self._timeout = timeout
    self._errors = tempfile.TemporaryFile('w+')  # noqa: SIM115  (closed by `close`)
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'CUDA_VISIBLE_DEVICES': ''}
    if 'GLIBC_TUNABLES' not in os.environ:
      ours = spec['contestant'] == 'cnnjax'
      environment |= memory.environment() if ours else RIVALS_MEMORY
    self._process = subprocess.Popen(
      [python, str(RIVALS / WORKERS[spec['contestant']]), json.dumps(spec)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      env=environment,
      text=True,
    )

  def measure(self) -> dict[str, Any]:
    """Lets it measure once; its answer."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write('measure\n')
      self._process.stdin.flush()
    return self.answer()

  def answer(self) -> dict[str, Any]:
    """Its next answer.

    Raises:
      Failure: it reports one, ended without an answer or takes too long.
    """
    with selectors.DefaultSelector() as selector:
      selector.register(self._process.stdout, selectors.EVENT_READ)
      if not selector.select(self._timeout):
        raise Failure(f'no answer within {self._timeout:.0f} s')
    line = self._process.stdout.readline()
    if not line:
      self._errors.seek(0)
      last = (self._errors.read().strip().splitlines() or [''])[-1]
      raise Failure(f'ended with status {self._process.wait()}: {last}')
    answer = json.loads(line)
    if 'failed' in answer:
      raise Failure(answer['failed'])
    return answer

  def close(self) -> None:
    """Ends the process: closes its pipe, and kills it if that isn't enough."""
    try:
      self._process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.communicate()
    self._errors.close()


def compare(name: str, mode: str, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
  """Measures one model in one mode.

  Returns:
    For each contestant what it reported and its measurements, or `failed` with the reason.
  """
  case, results, workers = CASES[name], {}, {}
  contestants = [r for r in arguments.rivals if mode == 'infer' or r != 'onnxruntime']

  def fail(contestant: str, failure: Failure) -> None:
    results[contestant] = {'failed': str(failure)}
    workers.pop(contestant).close()

  try:
    for contestant in ['cnnjax', *contestants]:
      spec = {'model': name, 'mode': mode, 'contestant': contestant, **case._asdict()}
      python = sys.executable if contestant == 'cnnjax' else arguments.torch_python
      spec['threads'] = physical_cores()
      worker = workers[contestant] = Worker(python, spec, arguments.timeout)
      try:
        results[contestant] = report = worker.answer()
        ours = results['cnnjax'].get('parameters', report['parameters'])
        if report['parameters'] != ours:
          raise Failure(f'{report["parameters"]} parameters, but {ours} in cnnjax')
      except Failure as failure:
        fail(contestant, failure)
    order = list(workers)
    rounds = {contestant: [] for contestant in order}
    for i in range(arguments.steps):
      for j in range(len(order)):
        contestant = order[(i + j) % len(order)]
        if contestant not in workers:
          continue
        time.sleep(SETTLE)
        try:
          rounds[contestant].append(workers[contestant].measure())
        except Failure as failure:
          fail(contestant, failure)
  finally:
    for worker in workers.values():
      worker.close()
  for contestant, answers in rounds.items():
    if 'failed' not in results[contestant]:
      results[contestant] |= summary(answers)
  return results


def summary(answers: list[dict[str, float]]) -> dict[str, Any]:
  """A contestant's rounds as medians and spread."""
  times = [round(answer['ms'], 4) for answer in answers]
  others = [answer['others'] for answer in answers if answer['others'] is not None]
  return {
    'milliseconds': {
      'median': statistics.median(times),
      'min': min(times),
      'max': max(times),
      'rounds': times,
    },
    'peak_mib': max(answer['peak_mib'] for answer in answers),
    'idle_cpu_ms': statistics.median(answer['idle_ms'] for answer in answers),
    'other_cpus': statistics.fmean(others) if others else None,
  }


def ratios(mode: str, results: dict[str, dict[str, Any]]) -> dict[str, float | None]:
  """What cnnjax's median is compared with; None where either side is missing."""
  medians = {c: r['milliseconds']['median'] for c, r in results.items() if 'failed' not in r}
  versus = {f'{mode}_ratio': ('eager', 'compile')}
  if mode == 'infer':
    versus['onnxruntime_ratio'] = ('onnxruntime',)
  found = {}
  for name, rivals in versus.items():
    best = min((medians[r] for r in rivals if r in medians), default=None)
    found[name] = best / medians['cnnjax'] if best and 'cnnjax' in medians else None
  return found


def entry(name: str, modes: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
  """A model's part of the JSON file."""

  def pick(key: str) -> dict[str, Any]:
    return {
      mode: {contestant: r[key] for contestant, r in results.items() if key in r}
      for mode, results in modes.items()
    }

  fields = ('milliseconds', 'steps', 'peak_mib', 'idle_cpu_ms', 'other_cpus')
  fields += ('settings', 'setup_peak_mib', 'setup_seconds')
  numbers = [r['parameters'] for results in modes.values() for r in results.values() if len(r) > 1]
  return {
    'batch': CASES[name].shape[0],
    'image': CASES[name].shape[1:],
    'parameters': numbers[0] if numbers else None,
    **{k: v for mode, results in modes.items() for k, v in ratios(mode, results).items()},
    **{field: pick(field) for field in fields},
    'failed': pick('failed'),
  }


def geometric_means(models: dict[str, dict[str, Any]]) -> dict[str, float | None]:
  """Of each ratio, over the models that have it."""
  means = {}
  for name in ('train_ratio', 'infer_ratio', 'onnxruntime_ratio'):
    values = [model[name] for model in models.values() if model.get(name)]
    mean = math.exp(statistics.fmean(map(math.log, values))) if values else None
    means[f'{name}_geomean'] = mean
  return means


def physical_cores() -> int:
  """Cores that this process may use, not counting a core's second thread."""
  if not hasattr(os, 'sched_getaffinity'):
    return os.cpu_count() or 1
  cores = set()
  for cpu in os.sched_getaffinity(0):
    topology = pathlib.Path(f'/sys/devices/system/cpu/cpu{cpu}/topology')
    try:
      cores.add(tuple((topology / f).read_text() for f in ('physical_package_id', 'core_id')))
    except OSError:
      cores.add(cpu)
  return len(cores)


def machine() -> dict[str, Any]:
  """What the measurements ran on."""
  cpu = platform.processor() or platform.machine()
  with contextlib.suppress(OSError, StopIteration), open('/proc/cpuinfo') as file:
    cpu = next(line.partition(':')[2].strip() for line in file if line.startswith('model name'))
  return {
    'cpu': cpu,
    'physical_cores': physical_cores(),
    'logical_cpus': os.cpu_count(),
    'system': platform.platform(),
  }


HEADER = f'{"":16}{"":6}' + ''.join(f'{c:>12}' for c in WORKERS) + '  ratio  vs ONNX   peak MiB'


def row(name: str, mode: str, results: dict[str, dict[str, Any]]) -> str:
  """A model's line of the table, one for each failure, one if the machine wasn't quiet."""
  cells, peaks = [], []
  for contestant in WORKERS:
    result = results.get(contestant, {})
    if 'milliseconds' in result:
      cells.append(f'{result["milliseconds"]["median"]:12.2f}')
      peaks.append(f'{result["peak_mib"]:.0f}')
    else:
      cells.append(f'{"failed" if "failed" in result else "-":>12}')
      peaks.append('-')
  found = ratios(mode, results)
  ours, onnx = found[f'{mode}_ratio'], found.get('onnxruntime_ratio')
  shown = [f'{x:{width}.3f}' if x else f'{"-":>{width}}' for x, width in ((ours, 7), (onnx, 9))]
  lines = [f'{name:16}{mode:6}{"".join(cells)}{"".join(shown)}   {" / ".join(peaks)}']
  lines += [f'  {c} failed: {r["failed"]}' for c, r in results.items() if 'failed' in r]
  others = {c: r['other_cpus'] for c, r in results.items() if r.get('other_cpus')}
  if any(cpus > 0.05 for cpus in others.values()):
    shown = ', '.join(f'{c} {cpus:.2f}' for c, cpus in others.items())
    lines.append(f'  not quiet: CPUs busy with other work while these measured: {shown}')
  return '\n'.join(lines)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
  """The command line."""

  def choices(allowed):
    def split(text):
      found = text.split(',') if text else []
      for name in found:
        if name not in allowed:
          raise argparse.ArgumentTypeError(f'{name!r} is none of {", ".join(allowed)}')
      return found

    return split

  rivals = [name for name in WORKERS if name != 'cnnjax']
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--models', type=choices(CASES), default=list(CASES))
  parser.add_argument('--mode', type=choices(('train', 'infer')), default=['train', 'infer'])
  parser.add_argument('--steps', type=int, default=10, help='rounds')
  parser.add_argument('--rivals', type=choices(rivals), default=rivals)
  parser.add_argument('--torch_python', default=sys.executable, help="the rivals' interpreter")
  parser.add_argument('--timeout', type=float, default=3600, help='seconds, for one answer')
  parser.add_argument('--json', type=pathlib.Path)
  arguments = parser.parse_args(argv)
  if arguments.steps < 1:
    parser.error('--steps starts at 1')
  return arguments


def main() -> int:
  """Measures, prints, writes; 1 if anything failed."""
  arguments = parse()
  models, versions, failed = {}, {}, False
  print('Milliseconds per step, medians; peak memory in the same order', flush=True)
  print(HEADER, flush=True)
  for name in arguments.models:
    modes = {}
    for mode in arguments.mode:
      modes[mode] = results = compare(name, mode, arguments)
      print(row(name, mode, results), flush=True)
      for result in results.values():
        versions |= result.get('versions', {})
        failed |= 'failed' in result
    models[name] = entry(name, modes)
    report = {
      'models': models,
      **geometric_means(models),
      'machine': {**machine(), 'versions': versions},
      'rounds': arguments.steps,
      'date': datetime.date.today().isoformat(),
    }
    if arguments.json:
      arguments.json.write_text(json.dumps(report, indent=2) + '\n')
  for key, mean in geometric_means(models).items():
    if mean:
      print(f'{key:26}{mean:7.3f}')
  return int(failed)


if __name__ == '__main__':
  sys.exit(main())
