"""Where metrics go: metrics.jsonl, TensorBoard events and the console. Only process 0 writes."""

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from cnnjax.errors import MachineError

Row = Mapping[str, Any]


class Jsonl:
  """`metrics.jsonl`: one JSON object a line, each on disk before the next is written."""

  def __init__(self, workdir: str, *, step: int = 0):
    """Opens the file and drops rows past `step`, which the resumed run is going to write again.

    Args:
      workdir: the run's directory.
      step: the step that training starts from.
    """
    path = os.path.join(workdir, 'metrics.jsonl')
    kept = [line for line, row in _rows(path) if row['step'] <= step]
    partial = path + '.partial'
    with open(partial, 'w') as f:
      f.writelines(line.rstrip('\n') + '\n' for line in kept)  # the last may lack its end
    os.replace(partial, path)
    self._file = open(path, 'a')  # noqa: SIM115  closed by close()

  def write(self, row: Row) -> None:
    """Appends a row; `step` and `split` are among its keys."""
    self._file.write(json.dumps(row) + '\n')
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def _rows(path: str) -> list[tuple[str, dict[str, Any]]]:
  if not os.path.exists(path):
    return []
  rows = []
  with open(path, errors='replace') as f:
    for line in f:
      try:
        row = json.loads(line)
      except (ValueError, RecursionError):
        break  # a line cut off by a crash; nothing can follow it
      if not isinstance(row, dict) or type(row.get('step')) is not int or 'split' not in row:
        break
      rows.append((line, row))
  return rows


def read(workdir: str) -> list[dict[str, Any]]:
  """The rows of `metrics.jsonl`, in order; none where there is no file."""
  return [row for _, row in _rows(os.path.join(workdir, 'metrics.jsonl'))]


class TensorBoard:
  """Scalars as `events.out.tfevents.*`, tagged `split/name`."""

  def __init__(self, workdir: str, *, step: int = 0):
    """Opens a new event file; TensorBoard hides what earlier ones hold past `step`."""
    # Not SummaryWriter: it writes in a thread, and when that dies of a full disk, the next rows
    # wait for it forever.
    from tensorboardX import record_writer, summary
    from tensorboardX.proto import event_pb2

    proto: Any = event_pb2  # its classes are made when it is imported
    self._event, self._scalar = proto.Event, summary.scalar
    name = f'events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}'
    self._file = record_writer.RecordWriter(os.path.join(workdir, name))
    self._flushed = time.monotonic()
    start = proto.SessionLog(status=proto.SessionLog.START)
    self._add(file_version='brain.Event:2')
    self._add(step=step + 1, session_log=start)

  def _add(self, **fields: Any) -> None:
    event = self._event(wall_time=time.time(), **fields)
    self._file.write(event.SerializeToString())

  def write(self, row: Row) -> None:
    """Adds every number of the row."""
    for name, value in row.items():
      if name != 'step' and isinstance(value, int | float):
        scalar = self._scalar(f'{row["split"]}/{name}', value)
        self._add(step=row['step'], summary=scalar)
    if time.monotonic() - self._flushed > 10:  # seconds; it waits for the disk
      self._file.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


class Writers:
  """All of them as one; rows are dicts that hold `step` and `split` besides their figures."""

  def __init__(self, workdir: str, total_steps: int, *, step: int = 0):
    """Opens the files.

    Args:
      workdir: the run's directory.
      total_steps: where training ends.
      step: where it starts from.
    """
    import jax

    self._workdir, self._files = workdir, []
    if jax.process_index() == 0:
      self._files = [Jsonl(workdir, step=step), TensorBoard(workdir, step=step)]
      self._files.append(Console(total_steps))

  def __enter__(self) -> 'Writers':
    return self

  def __exit__(self, kind: object, *exc: object) -> None:
    for writer in self._files:
      try:
        writer.close()
      except OSError as e:
        if kind is None:  # after an error, it is what was told already
          raise MachineError(f'metrics in {self._workdir} cannot be written: {e.strerror}') from e

  def write(self, row: Row) -> None:
    """Writes a row everywhere.

    Raises:
      MachineError: the disk is full or failing.
    """
    for writer in self._files:
      try:
        writer.write(row)
      except OSError as e:
        raise MachineError(f'metrics in {self._workdir} cannot be written: {e.strerror}') from e


class Console:
  """A progress line that rewrites itself on a terminal, and plain lines anywhere else."""

  def __init__(self, total_steps: int, stream: TextIO | None = None):
    """Prepares the line; nothing is printed before the first row.

    Args:
      total_steps: where training ends.
      stream: where to print; standard output if None.
    """
    self._total = total_steps
    self._stream = stream or sys.stdout
    self._live = self._stream.isatty()

  def write(self, row: Row) -> None:
    """Shows a row; evaluations stay on the screen, training lines are written over."""
    width = len(str(self._total))
    parts = [f'step {row["step"]:>{width}}/{self._total}', f'{row["split"]:5s}']
    figures = ('loss', 'accuracy', 'knn_accuracy', 'linear_accuracy')
    shown: dict[str, str] = dict.fromkeys(figures, '{:.4f}')
    shown['images_per_second'] = '{:,.0f} images/s'
    for name, form in shown.items():
      if name in row:
        parts.append(form.format(row[name]) if '/s' in form else f'{name} {form.format(row[name])}')
    if 'eta_seconds' in row:
      minutes, seconds = divmod(round(row['eta_seconds']), 60)
      parts.append(f'ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}')
    line = '  '.join(parts)
    if not self._live:
      print(line, file=self._stream, flush=True)
    else:
      end = '' if row['split'] == 'train' else '\n'
      print(f'\r\x1b[K{line}', end=end, file=self._stream, flush=True)

  def close(self) -> None:
    """Leaves the terminal on a fresh line."""
    if self._live:
      print(file=self._stream)
