"""The command, end to end: killed, stopped, resumed, and its best run repeated to the bit."""

import json
import re
import shlex
import shutil
import subprocess
import time

import pytest

from tests.commands import ROOT, environment, refused, run, start

SPACE = """
from cnnjax.sweep import space

def get_space():
  return space.Space(
    parameters={'optimizer.learning_rate': space.log_uniform(1e-4, 1e-2)},
    sampler='random',
    trials=3,
    fixed={'epochs': 9, 'optimizer.weight_decay': 0.1},
  )
"""
SHORT = (
  '--config=experiments/digits/lenet5.py', '--config.model={"name": "mlp"}',
  '--config.data.image_size=()', '--config.augment=', '--config.steps=40', '--config.eval_every=20',
  '--config.log_every=10', '--config.schedule.warmup_epochs=0', '--config.optimizer.weight_decay=0',
)  # fmt: skip


@pytest.fixture
def space(tmp_path):
  path = tmp_path / 'space.py'
  path.write_text(SPACE)
  return path


def rows(workdir):
  timed = ('seconds', 'images_per_second', 'eta_seconds')
  with open(workdir / 'metrics.jsonl') as file:
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in file]


def wait_for(condition):
  deadline = time.monotonic() + 120
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def test_killed_stopped_and_resumed(tmp_path, space):
  directory = tmp_path / 'runs' / 'sweep'
  command = ('sweep', *SHORT, f'--space={space}', f'--workdir={directory}', '--workers=2')

  # Killed while two trials train: their runs save and end, and the next process goes on with them.
  process = start(*command)
  wait_for(lambda: (directory / 'trials' / '0000' / 'metrics.jsonl').exists())
  process.kill()
  process.communicate()

  # Stopped as soon as a trial is running again.
  process = start(*command)
  line = ''
  while 'starts' not in line:
    line = process.stdout.readline()
    assert line
  assert '(attempt 2)' in line
  process.terminate()
  _, err = process.communicate(timeout=120)
  assert process.returncode == 143, err
  assert re.fullmatch(
    r'cnnjax\.sweep: SIGTERM: stopped with \d of 3 trials done; the same command goes on\n', err
  )

  status, out, err = run(*command)
  assert status == 0, err
  assert '3 of 3 trials done: 3 complete; best test/accuracy' in out
  assert out.endswith((directory / 'summary.txt').read_text())
  assert '<html' in (directory / 'sweep.html').read_text()
  assert 'optimizer.learning_rate' in out
  assert f'optuna-dashboard {directory}/sweep.journal' in out
  for slot in range(3):
    assert len(rows(directory / 'trials' / f'{slot:04d}')) == 6

  # The best command again, in another directory: the same bits, though that one was interrupted.
  best = re.search(r'^Best trial: (.*)$', out, re.MULTILINE)[1]
  if shutil.which('taskset'):
    assert best.startswith('taskset -c ')
  words = shlex.split(best)
  (slot,) = [w for w in words if w.startswith('--workdir=')]
  assert '--config.optimizer.weight_decay=0.0' in words  # a flag is stronger than what is fixed
  again = [w.replace(slot, f'--workdir={tmp_path}/again') for w in words]
  done = subprocess.run(again, cwd=ROOT, env=environment(), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  trial = directory / 'trials' / slot[-4:]
  assert rows(tmp_path / 'again') == rows(trial)
  for name in ('config.json', 'data.json'):
    assert (tmp_path / 'again' / name).read_bytes() == (trial / name).read_bytes()
  config = json.loads((trial / 'config.json').read_text())
  assert config['epochs'] == 9

  # Once more: nothing is left to do.
  status, out, err = run(*command)
  assert status == 0, err
  assert f'Best trial: {best}\n' in out
  assert 'starts' not in out
  line = refused(*command, '--sampler=tpe')
  assert "space.sampler was 'random', is 'tpe'" in line


def test_mistakes_are_one_line(tmp_path, space):
  given = (*SHORT, f'--workdir={tmp_path}/sweep')
  assert '--space' in refused('sweep', *given)
  line = refused('sweep', *given, f'--space={space}', '--config.optimizer.learning_rate=0.1')
  assert '--config.optimizer.learning_rate' in line
  line = refused('sweep', *given, f'--space={space}', '--pruner=medium')
  assert 'medium' in line
  assert 'median' in line
  assert not (tmp_path / 'sweep').exists()


def test_a_sweep_in_which_nothing_completes(tmp_path, space):
  space.write_text(SPACE.replace("'optimizer.weight_decay': 0.1", "'model.width': 3"))
  line = refused('sweep', *SHORT, f'--space={space}', f'--workdir={tmp_path}/s', '--trials=1')
  assert 'no trial is complete: trial 0 failed: ' in line
  assert 'model.width' in line
