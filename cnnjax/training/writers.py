"""Where metrics go: metrics.jsonl, TensorBoard events and the console. Only process 0 writes."""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

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
      f.writelines(kept)
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
  with open(path) as f:
    for line in f:
      try:
        rows.append((line, json.loads(line)))
      except json.JSONDecodeError:
        break  # a line cut off by a crash; nothing can follow it
  return rows


def read(workdir: str) -> list[dict[str, Any]]:
  """The rows of `metrics.jsonl`, in order; none where there is no file."""
  return [row for _, row in _rows(os.path.join(workdir, 'metrics.jsonl'))]


class TensorBoard:
  """Scalars as `events.out.tfevents.*`, tagged `split/name`."""

  def __init__(self, workdir: str, *, step: int = 0):
    """Opens a new event file; TensorBoard hides what earlier ones hold past `step`."""
    import tensorboardX

    self._writer = tensorboardX.SummaryWriter(workdir, purge_step=step + 1)

  def write(self, row: Row) -> None:
    """Adds every number of the row."""
    for name, value in row.items():
      if name != 'step' and isinstance(value, int | float):
        self._writer.add_scalar(f'{row["split"]}/{name}', value, row['step'])

  def close(self) -> None:
    """Flushes and closes the file."""
    self._writer.close()


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

    self._files = []
    if jax.process_index() == 0:
      self._files = [Jsonl(workdir, step=step), TensorBoard(workdir, step=step)]
      self._files.append(Console(total_steps))

  def __enter__(self) -> 'Writers':
    return self

  def __exit__(self, *exc: object) -> None:
    for writer in self._files:
      writer.close()

  def write(self, row: Row) -> None:
    """Writes a row everywhere."""
    for writer in self._files:
      writer.write(row)


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
    shown = dict.fromkeys(('loss', 'accuracy', 'knn_accuracy', 'linear_accuracy'), '{:.4f}')
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
