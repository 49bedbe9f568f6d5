"""metrics.jsonl survives crashes; the console is readable with and without a terminal."""

import io
import json

import pytest

from cnnjax.errors import MachineError
from cnnjax.training import writers
from tests.commands import limited_files


def write_rows(workdir, rows, step=0):
  out = writers.Jsonl(str(workdir), step=step)
  for row in rows:
    out.write(row)
  out.close()


def test_resuming_drops_what_comes_again_and_a_torn_line(tmp_path):
  rows = [{'step': s, 'split': 'train', 'loss': 1 / s} for s in (10, 20, 30)]
  write_rows(tmp_path, rows)
  with open(tmp_path / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 40, "spl')
  write_rows(tmp_path, [{'step': 21, 'split': 'test', 'loss': 0.5}], step=20)
  assert writers.read(str(tmp_path)) == [*rows[:2], {'step': 21, 'split': 'test', 'loss': 0.5}]


@pytest.mark.parametrize('end', [b'', b'\n{"step": 11, "sp\xff\x00', b'\n\x00\x00\x00'])
def test_whatever_a_crash_leaves_at_the_end_is_mended(tmp_path, end):
  first = {'step': 10, 'split': 'train', 'loss': 0.5}
  (tmp_path / 'metrics.jsonl').write_bytes(json.dumps(first).encode() + end)
  second = {'step': 20, 'split': 'train', 'loss': 0.25}
  write_rows(tmp_path, [second], step=10)
  assert writers.read(str(tmp_path)) == [first, second]


@pytest.mark.parametrize(
  ('figures', 'full'), [({'x': 'x' * 300}, 'metrics.jsonl'), (dict.fromkeys('abcde', 1), 'events')]
)
def test_a_full_disk_is_told_and_not_waited_for(tmp_path, figures, full):
  def write_many():
    with writers.Writers(str(tmp_path), 100) as out:
      for step in range(100):
        out.write({'step': step, 'split': 'train', **figures})

  with limited_files(2000), pytest.raises(MachineError, match='written: File too large'):
    write_many()
  sizes = {file.name.partition('.out')[0]: file.stat().st_size for file in tmp_path.iterdir()}
  assert max(sizes, key=lambda name: sizes[name]) == full


def test_rows_are_on_disk_at_once(tmp_path):
  out = writers.Jsonl(str(tmp_path))
  out.write({'step': 1, 'split': 'train', 'loss': 0.1})
  assert json.loads((tmp_path / 'metrics.jsonl').read_text())['loss'] == 0.1
  out.close()


class Terminal(io.StringIO):
  def isatty(self):
    return True


ROW = {'step': 50, 'split': 'train', 'loss': 0.25, 'accuracy': 0.5, 'images_per_second': 1234.5,
       'eta_seconds': 3725.2}  # fmt: skip


def test_plain_lines():
  stream = io.StringIO()
  console = writers.Console(200, stream)
  console.write(ROW)
  console.write({'step': 50, 'split': 'test', 'loss': 0.5, 'accuracy': 0.75})
  console.close()
  first, second = stream.getvalue().splitlines()
  for words in ('50/200', 'loss 0.2500', 'accuracy 0.5000', '1,234 images/s', 'ETA 1:02:05'):
    assert words in first
  assert 'test' in second
  assert 'ETA' not in second


def test_a_terminal_line_rewrites_itself_and_evaluations_stay():
  stream = Terminal()
  console = writers.Console(200, stream)
  console.write(ROW)
  assert '\n' not in stream.getvalue()
  console.write({**ROW, 'split': 'test'})
  assert stream.getvalue().endswith('\n')
  assert stream.getvalue().count('\r\x1b[K') == 2


def test_tensorboard_has_every_number(tmp_path):
  from tensorboardX.proto import event_pb2
  from tensorboardX.record_writer import masked_crc32c  # noqa: F401  the format below is TFRecord

  board = writers.TensorBoard(str(tmp_path))
  board.write({'step': 3, 'split': 'test', 'loss': 0.5, 'per_class_accuracy': [1.0, 0.0]})
  board.close()
  (file,) = tmp_path.glob('events.out.tfevents.*')
  data, tags = file.read_bytes(), {}
  while data:
    length = int.from_bytes(data[:8], 'little')
    event = event_pb2.Event.FromString(data[12 : 12 + length])
    tags.update({v.tag: (event.step, v.simple_value) for v in event.summary.value})
    data = data[12 + length + 4 :]
  assert tags == {'test/loss': (3, 0.5)}
