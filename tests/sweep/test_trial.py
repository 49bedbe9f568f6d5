"""Runs of a trial: commands that mean what was asked for, and the life of a child process."""

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time

import hypothesis
import pytest
from hypothesis import strategies as st
from ml_collections import ConfigDict

from cnnjax import config as config_lib
from cnnjax.errors import UserError
from cnnjax.sweep import space as space_lib
from cnnjax.sweep import trial
from tests.commands import ROOT, is_one_line


def another(key, value, kind):
  """A value of the key's kind that isn't the default, and that validates."""
  special = {
    'task': None, 'dtype': 'bfloat16', 'ops': 'xla', 'data.resize': 'center_crop',
    'checkpoint.best_metric': 'top5_accuracy', 'parallel.strategy': 'shard_map', 'profile': '3:4',
    'data.image_size': (32, 48), 'data.mean': (0.1, 1 / 3, 5e-324), 'data.std': (0.3, 1e-7, 2.0),
    'eval_probes': ('knn', 'linear'), 'augment': 'random_crop(padding=4)|flip_horizontal',
    'loss.label_smoothing': 0.1, 'ema_decay': 1 / 3, 'optimizer.layer_decay': 0.75,
    'epochs': 1 / 3,
  }  # fmt: skip
  if key in special:
    return special[key]
  if kind is bool:
    return not value
  if kind is int:
    return (value or 0) + 3
  if kind is float:
    return (value or 0.0) + 0.1 + 0.2  # 17 digits
  if kind is tuple:
    return ("it's", 'a "b"', r'^(stem|stage[12])/', 'x, y', '', '$HOME `ls` \\ é\n')
  return 'it\'s | $HOME `ls` \\ "é" --x=1\n'


def both_ways(base, values, expected):
  """What the words of a shell line with the values mean."""
  words = trial.overrides(base, values)
  line = str(trial.Command(tuple(words)))
  assert shlex.split(line) == words
  assert trial.read(base, shlex.split(line)).to_json() == expected.to_json()
  return line


def test_every_key_comes_back_from_a_command_line():
  base = config_lib.default()
  for key, value in config_lib.leaves(base):
    *groups, name = key.split('.')
    group = base
    for word in groups:
      group = group[word]
    other = another(key, value, group.get_type(name))
    if other is None:
      continue
    values = {key: other}
    if key in ('data.mean', 'data.std'):  # of the same length
      values = {'data.mean': (0.1, 1 / 3, 5e-324), 'data.std': (0.3, 1e-7, 2.0)}
    expected = space_lib.apply(config_lib.validate(base), values)
    assert expected.to_json() != config_lib.validate(base).to_json(), key
    both_ways(base, values, expected)


def test_keys_that_the_file_lacks_are_python_literals():
  base = config_lib.default()
  for value in (
    3,
    0.1 + 0.2,
    True,
    None,
    (8, 16),
    (),
    ('a', 'b'),
    'batch',
    'true',
    'None',
    '3',
    '',
  ):
    expected = space_lib.apply(config_lib.validate(base), {'model.width': value})
    both_ways(base, {'model.width': value}, expected)
    assert repr(expected.model.width) == repr(value)


words = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=12)


@hypothesis.given(words, words, st.lists(words, max_size=3))
def test_any_string_comes_back(known, free, several):
  base = config_lib.default()
  values = {'augment': known, 'model.norm': free, 'freeze': tuple(several)}
  both_ways(base, values, space_lib.apply(config_lib.validate(base), values))


def test_a_key_is_set_once_and_groups_come_first():
  base = config_lib.default()
  base.freeze = ('^stem/',)
  values = {'model': ConfigDict({'name': 'cnn'}), 'freeze': ('^head/',), 'model.features': (8, 16)}
  expected = space_lib.apply(
    config_lib.validate(base),
    {'model.name': 'cnn', 'freeze': ('^head/',), 'model.features': (8, 16)},
  )
  line = both_ways(base, values, expected)
  assert shlex.split(line) == [
    '--config.model={"name": "cnn"}', '--config.freeze=("^head/",)',
    '--config.model.features=(8, 16)',
  ]  # fmt: skip
  assert line.startswith("""--config.model='{"name": "cnn"}' --config.freeze='("^head/",)' """)


def test_none_is_left_out_where_it_is_so_and_refused_where_no_flag_says_it():
  base = config_lib.default()
  assert trial.overrides(base, {'steps': None}) == []
  base.steps = 5
  expected = space_lib.apply(config_lib.validate(base), {'steps': None})
  with pytest.raises(UserError, match=r'config\.steps') as error:
    trial.command('f.py', base, {'steps': None}, expected, workdir='d')
  is_one_line(error.value)


def test_what_flags_mean_otherwise_is_refused():
  base = config_lib.default()
  expected = space_lib.apply(config_lib.validate(base), {'model.width': float('inf')})
  with pytest.raises(UserError, match=r'model\.width'):
    trial.command('f.py', base, {'model.width': float('inf')}, expected, workdir='d')


def test_the_command_with_its_pins(monkeypatch):
  monkeypatch.setattr(sys, 'executable', '/no such/python')
  base = config_lib.default()
  values = {'optimizer.learning_rate': 1e-3 / 3}
  expected = space_lib.apply(config_lib.validate(base), values)
  pins = trial.Pins('0-1', {'CUDA_VISIBLE_DEVICES': '0'})
  found = trial.command('a.py:b', base, values, expected, workdir='my runs/0007', pins=pins)
  assert str(found) == (
    "CUDA_VISIBLE_DEVICES=0 taskset -c 0-1 '/no such/python' -m cnnjax.main --config=a.py:b"
    " --workdir='my runs/0007' --config.optimizer.learning_rate=0.0003333333333333333"
  )


@pytest.mark.parametrize(
  ('cores', 'gpus', 'workers', 'expected'),
  [
    ([0, 1], '', 2, [('0', {}), ('1', {})]),
    ([0, 1, 2, 3, 8], '', 2, [('0-1', {}), ('2-3', {})]),  # as many for each; one is left
    ([0, 2, 5, 7], '', 2, [('0,2', {}), ('5,7', {})]),
    ([4], '', 2, [('4', {}), ('4', {})]),
    (
      [0, 1],
      '3,5',
      2,
      [('0', {'CUDA_VISIBLE_DEVICES': '3'}), ('1', {'CUDA_VISIBLE_DEVICES': '5'})],
    ),
    (
      [0, 1],
      '3',
      2,
      [
        (c, {'CUDA_VISIBLE_DEVICES': '3', 'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.45'})
        for c in ('0', '1')
      ],
    ),
    ([0, 1], '0,1', 1, [('', {})]),
  ],
)
def test_shares_of_the_machine(monkeypatch, cores, gpus, workers, expected):
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', gpus)
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(cores), raising=False)
  monkeypatch.setattr('shutil.which', lambda name: f'/usr/bin/{name}')
  assert [(p.cores, dict(p.environment)) for p in trial.shares(workers)] == expected


def python(code):
  return trial.Command((sys.executable, '-I', '-S', '-c', textwrap.dedent(code)))


WRITES = """
import time
with open({path!r}, 'a') as f:
  for step in range(1, 1000):
    f.write('{{"step": %d, "split": "test", "accuracy": 0.5}}\\n' % step)
    f.flush()
    time.sleep(0.02)
"""


def never(rows):
  return False


def run(code, directory, watch=never, stop=lambda: False):
  return trial.run(python(code), str(directory), watch, stop)


def test_exit_status_and_last_words(tmp_path):
  assert (
    run('import sys; print("a", flush=True); sys.exit("cnnjax.main: it is full")', tmp_path) == 1
  )
  assert trial.last_words(str(tmp_path)) == 'it is full'
  assert trial.ran(str(tmp_path)).startswith(sys.executable)
  assert run('import os; os.kill(os.getpid(), 9)', tmp_path) == -signal.SIGKILL
  assert trial.last_words(str(tmp_path / 'nowhere')) == trial.ran(str(tmp_path / 'nowhere')) == ''


def test_a_run_is_watched_and_ended(tmp_path):
  seen = []

  def watch(rows):
    seen.append(len(rows))
    return len(rows) >= 3

  code = WRITES.format(path=str(tmp_path / 'metrics.jsonl'))
  assert run(code, tmp_path, watch) == -signal.SIGTERM
  assert seen[0] == 0  # before it began
  assert seen == sorted(seen)
  assert 3 <= seen[-1] < 999
  # What is to end by what it has written isn't started.
  os.remove(tmp_path / trial.LOG)
  assert run(code, tmp_path, watch) == 143
  assert not (tmp_path / trial.LOG).exists()


def test_the_last_rows_are_seen(tmp_path):
  seen = []
  code = WRITES.format(path=str(tmp_path / 'metrics.jsonl')).replace('1000', '3')
  assert run(code, tmp_path, lambda rows: seen.append(len(rows)) or False) == 0
  assert seen[-1] == 2


def test_an_earlier_run_of_the_directory_ends_first(tmp_path):
  holder = subprocess.Popen(
    [sys.executable, '-c', 'import fcntl, sys, time\n'
     f'f = open({str(tmp_path / ".lock")!r}, "a")\nfcntl.flock(f, fcntl.LOCK_EX)\n'
     'print("held", flush=True)\nsys.stdin.read()'],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  with holder:
    assert holder.stdout.readline() == 'held\n'
    ended = []
    thread = threading.Thread(target=lambda: ended.append(run('', tmp_path)))
    thread.start()
    time.sleep(0.5)
    assert not ended
    assert not (tmp_path / trial.COMMAND).exists()
    holder.stdin.close()
    thread.join()
    assert ended == [0]


@pytest.mark.skipif(sys.platform != 'linux', reason='prctl')
def test_a_run_ends_with_its_sweep(tmp_path):
  # A sweep that runs a trial in a thread and is killed; the trial tells of the signal it gets.
  child = """
    import os, signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), os._exit(143)))
    print('ready', flush=True)
    time.sleep(60)
  """
  code = (
    'import threading\nfrom cnnjax.sweep import trial\n'
    f'c = trial.Command({python(child).argv!r})\n'
    f'run = lambda: trial.run(c, {str(tmp_path)!r}, lambda rows: False, lambda: False)\n'
    't = threading.Thread(target=run)\nt.start()\nt.join()\n'
  )
  sweep = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT)
  log = tmp_path / trial.LOG
  deadline = time.monotonic() + 60
  while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert log.read_text() == 'ready\n'
  sweep.kill()
  sweep.wait()
  while log.read_text() != 'ready\nsaved\n' and time.monotonic() < deadline:
    time.sleep(0.05)
  assert log.read_text() == 'ready\nsaved\n'


def test_the_rows_of_a_resumed_run_replace_those_before(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  row = json.dumps({'step': 1, 'split': 'test'}) + '\n'
  path.write_text(3 * row)
  state, rows = trial._news(str(tmp_path), None)
  assert len(rows) == 3
  assert trial._news(str(tmp_path), state) == (state, None)
  (tmp_path / 'new').write_text(2 * row)
  os.replace(tmp_path / 'new', path)
  assert len(trial._news(str(tmp_path), state)[1]) == 2
