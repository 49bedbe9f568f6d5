"""The order of the examples, and batches read in that order. The only file that names Grain.

Position `p = step * batch_size + j` of training belongs to epoch `p // n` and is entry `p % n` of
that epoch's permutation. Batches straddle epochs, so every epoch uses every example exactly once,
and the examples of a step are a pure function of (seed, step): resuming is only a number.
"""

import atexit
import contextlib
import functools
import itertools
import logging
import math
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
from absl import flags

from cnnjax.data import preprocess, sources
from cnnjax.errors import MachineError, UserError

_LOGGER = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

_ALIGNMENT = 64  # bytes
_ENDLESS = 1 << 40  # steps; Grain wants a length


@functools.lru_cache(maxsize=4)  # a batch touches two epochs, of two runs at most
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  # Sorting raw bits, not Generator.permutation: NumPy only promises that raw streams stay as
  # they are between its versions.
  bits = preprocess.philox(0, seed, epoch).random_raw(num_examples)
  order = np.argsort(bits, kind='stable').astype(np.int32)
  order.flags.writeable = False
  return order


def train_ids(seed: int, step: int, num_examples: int, batch_size: int) -> np.ndarray:
  """The examples of a training step; a pure function.

  Args:
    seed: the run's seed.
    step: counts from 0.
    num_examples: size of the source; may be smaller than the batch.
    batch_size: over all devices and processes.

  Returns:
    int32 `[batch_size]`.
  """
  _check_sizes(num_examples, batch_size)
  return ids_between(seed, step * batch_size, (step + 1) * batch_size, num_examples)


def ids_between(seed: int, start: int, stop: int, num_examples: int) -> np.ndarray:
  """The examples at the positions of training from `start` to before `stop`: int32."""
  parts = []
  for epoch in range(start // num_examples, (stop - 1) // num_examples + 1):
    first = epoch * num_examples
    order = _permutation(seed, epoch, num_examples)
    parts.append(order[max(start - first, 0) : stop - first])
  return np.concatenate(parts)


def train_epochs(step: int, num_examples: int, batch_size: int) -> np.ndarray:
  """How many whole epochs lie before each position of a training step: int32 `[batch_size]`."""
  _check_sizes(num_examples, batch_size)
  positions = np.arange(step * batch_size, (step + 1) * batch_size)
  return (positions // num_examples).astype(np.int32)


def eval_ids(step: int, num_examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
  """The examples of an evaluation step, in the source's order; the last batch is padded.

  Returns:
    ids int32 `[batch_size]` (0 where padded) and mask float32 `[batch_size]` (0 where padded).
  """
  _check_sizes(num_examples, batch_size)
  ids = np.arange(step * batch_size, (step + 1) * batch_size)
  mask = ids < num_examples
  return np.where(mask, ids, 0).astype(np.int32), mask.astype(np.float32)


def num_eval_steps(num_examples: int, batch_size: int) -> int:
  """Steps of one evaluation: every example once."""
  return -(-num_examples // batch_size)


def _check_sizes(num_examples: int, batch_size: int) -> None:
  if num_examples < 1:
    raise UserError('data.name: the source has no examples')
  if batch_size < 1:
    raise UserError(f'batch_size={batch_size}: allowed 1 or more')


def rows(batch_size: int, process: tuple[int, int]) -> slice:
  """The rows of the global batch that process (index, count) reads.

  Raises:
    UserError: the batch doesn't divide by the number of processes.
  """
  index, count = process
  if batch_size % count:
    raise UserError(f'batch_size={batch_size}: allowed are multiples of the {count} processes')
  share = batch_size // count
  return slice(index * share, (index + 1) * share)


class _Batches:
  """Random access to batches: item i is the batch of step `start + i`. Sent to workers."""

  def __init__(
    self,
    source: sources.Source,
    plan: Callable[[int], Batch],
    length: int,
    start: int,
    transform: preprocess.HostTransform | None,
  ):
    self.source, self.plan, self.length = source, plan, length
    self.start, self.transform = start, transform

  def __len__(self) -> int:
    return self.length

  def __repr__(self) -> str:
    return f'Batches({type(self.source).__name__}, start={self.start})'

  def __getitem__(self, index: int) -> Batch:
    step = self.start + int(index)
    plan = self.plan(step)
    ids, mask = plan['id'], plan['mask'].copy()
    if isinstance(self.source, sources.ArraySource) and self.transform is None:
      return {**self.source[ids], **plan}
    images: np.ndarray | None = None
    labels = np.zeros(len(ids), np.int32)
    for j, i in enumerate(ids.tolist()):
      if not mask[j]:  # padding is not read, and stays black
        continue
      try:
        example = sources.read(self.source, i, self.transform, step=step)
      except sources.UnreadableImage:  # the consumer names it; see _read
        mask[j] = 0.0
        continue
      image, labels[j] = example['image'], example['label']
      if images is None:
        images = _zeros((len(ids), *image.shape))
      if image.shape != images.shape[1:]:
        raise UserError(
          'data.image_size is not set, and the images have different sizes, e.g. '
          f'{images.shape[1:]} and {image.shape}: set it, e.g. data.image_size=(224, 224)'
        )
      images[j] = image
    if images is None:
      images = _zeros((len(ids), *self._shape()))
    return {'image': images, 'label': labels, **plan, 'mask': mask}

  def _shape(self) -> tuple[int, ...]:
    """The shape of an image, when there is none to look at."""
    shape = self.source.image_shape or (1, 1, 3)
    if self.transform is None:
      return shape
    return self.transform(np.zeros(shape, np.uint8), step=0, id=0).shape


def _zeros(shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
  """Zeros on a boundary of 64 bytes, from where a CPU device takes them without a copy."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  memory = np.zeros(size + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + size].view(dtype).reshape(shape)


def _copy(array: np.ndarray) -> np.ndarray:
  copy = _zeros(array.shape, array.dtype)
  copy[...] = array
  return copy


def _train_plan(step: int, *, seed: int, num_examples: int, batch_size: int, rows: slice) -> Batch:
  ids = train_ids(seed, step, num_examples, batch_size)[rows]
  epochs = train_epochs(step, num_examples, batch_size)[rows]
  return {'id': ids, 'mask': np.ones(len(ids), np.float32), 'epoch': epochs}


def _eval_plan(step: int, *, num_examples: int, batch_size: int, rows: slice) -> Batch:
  ids, mask = eval_ids(step, num_examples, batch_size)
  return {'id': ids[rows], 'mask': mask[rows]}


def _start_worker(index: int, count: int) -> None:
  """Workers end with the main process, and touch no accelerator."""
  del index, count
  import jax  # Grain has imported it; no backend is started here

  threading.Thread(target=_end_with_parent, daemon=True).start()
  jax.config.update('jax_platforms', 'cpu')


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
  """Threads and processes that begin inside leave SIGINT and SIGTERM to the main process.

  Both go to a whole group of processes: by Ctrl-C, and when a queue ends a job. A worker that one
  kills while it starts would leave its parent writing to it for ever (multiprocessing's spawn).
  """
  resource_tracker.ensure_running()  # starting it unblocks signals, in older Pythons
  before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
  """Without this, the workers of a main process that was killed would wait for it for ever."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)


def _workers() -> dict[int | None, Any]:
  """This process's worker processes that live, by process number."""
  children = multiprocessing.active_children()
  return {p.pid: p for p in children if p.name.startswith('grain-process-prefetch')}


def end_workers(seconds: float) -> bool:
  """Kills workers that gave no batch for so many seconds; their streams end in an error.

  Returns:
    Whether there were any.
  """
  workers = _workers()
  for number, worker in workers.items():
    _LOGGER.warning(
      'data worker (process %s): no batch for config.data.timeout=%g s, killed', number, seconds
    )
    worker.kill()
  return bool(workers)


_open: weakref.WeakSet[Any] = weakref.WeakSet()


def _close_at_exit() -> None:
  """Ends what nobody has closed, while Grain's modules and worker processes are still whole."""
  for stream in list(_open):
    with contextlib.suppress(ValueError):  # a prefetch thread runs it, and will close it
      stream.close()


def _batches(batches: _Batches, workers: int) -> Iterator[Batch]:
  stream = _read(batches, workers)
  _open.add(stream)
  return stream


def _read(batches: _Batches, workers: int) -> Iterator[Batch]:
  """Reads ahead in threads or worker processes; names and counts unreadable images."""
  import grain

  threads = 2 if workers else min(4, os.cpu_count() or 1)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
  dataset: Any = grain.MapDataset.source(batches).to_iter_dataset(options)
  if workers:
    if not flags.FLAGS.is_parsed():  # Grain looks at its flags; as a library, nobody parses them
      flags.FLAGS.mark_as_parsed()
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
      worker_init_fn=_start_worker,
    )
  source, step, seen = batches.source, batches.start, set()
  limit = getattr(source, 'max_unreadable', 0) - getattr(source, 'num_unreadable', 0)
  iterator: Any = iter(dataset)
  known: dict[int | None, Any] = {}
  atexit.unregister(_close_at_exit)  # the last registered is the first to run: before
  atexit.register(_close_at_exit)  # multiprocessing's, which came with Grain
  try:
    with _signals_blocked() if workers else contextlib.nullcontext():
      begun = itertools.chain(list(itertools.islice(iterator, 1)), iterator)  # starts them
    for batch in begun:
      if len(known) < workers:
        known |= _workers()
      if workers:  # out of shared memory, which is scarce and not the caller's to hold
        batch = {key: _copy(value) for key, value in batch.items()}
      if not batch['mask'].all():
        expected = batches.plan(step)['mask']
        for i in batch['id'][(batch['mask'] == 0) & (expected == 1)].tolist():
          if i not in seen:
            seen.add(i)
            _LOGGER.warning('unreadable image, left out: %s', sources.describe(source, i))
        if len(seen) > limit:
          names = ', '.join(sources.describe(source, i) for i in sorted(seen)[:3])
          raise UserError(
            f'data.max_unreadable: {len(seen)} more images are unreadable on decoding, '
            f'allowed {limit}: {names}'
          )
      yield batch
      step += 1
  except RuntimeError as e:
    if not workers or 'terminated unexpectedly' not in str(e):  # Grain's words
      raise
    dead = [f'process {n}, exit code {p.exitcode}' for n, p in known.items() if p.exitcode]
    raise MachineError(
      f'a data worker ended unexpectedly ({"; ".join(dead) or "at its start"}): killed by hand, for'
      ' its memory, or for hanging; the same command goes on from the newest checkpoint'
    ) from e
  finally:
    iterator.close()


def train_batches(
  source: sources.Source,
  *,
  seed: int,
  batch_size: int,
  start_step: int = 0,
  process: tuple[int, int] = (0, 1),
  workers: int = 0,
  transform: preprocess.HostTransform | None = None,
) -> Iterator[Batch]:
  """Endless training batches; close the iterator (or finish it) to stop its workers.

  Args:
    source: random-access examples.
    seed: the run's seed.
    batch_size: over all processes.
    start_step: the first step; the batches after it don't depend on it.
    process: (index, count): only this process's rows are read.
    workers: worker processes; 0 reads in threads. Doesn't change a bit of any batch.
    transform: `transform(image, *, step, id)`, run where the image is read; picklable.

  Returns:
    An iterator of `image` uint8 `[N, H, W, C]`, `label` int32 `[N]`, `id` int32 `[N]`, `mask`
    float32 `[N]` and `epoch` int32 `[N]`, how many whole epochs lie before; an image that can't be
    decoded is black with mask 0.

  Raises:
    UserError: the batch doesn't divide by the processes, sizes vary, or (while iterating) more
      images are unreadable than the source allows.
  """
  plan = functools.partial(
    _train_plan,
    seed=seed,
    num_examples=len(source),
    batch_size=batch_size,
    rows=rows(batch_size, process),
  )
  _check_sizes(len(source), batch_size)
  return _batches(_Batches(source, plan, _ENDLESS, start_step, transform), workers)


def eval_batches(
  source: sources.Source,
  *,
  batch_size: int,
  process: tuple[int, int] = (0, 1),
  workers: int = 0,
  transform: preprocess.HostTransform | None = None,
) -> Iterator[Batch]:
  """One pass in the source's order, every example once; as in training, but without `epoch`."""
  plan = functools.partial(
    _eval_plan,
    num_examples=len(source),
    batch_size=batch_size,
    rows=rows(batch_size, process),
  )
  _check_sizes(len(source), batch_size)
  steps = num_eval_steps(len(source), batch_size)
  return _batches(_Batches(source, plan, steps, 0, transform), workers)
