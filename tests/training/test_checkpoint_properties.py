"""Whatever a working directory holds: the exact state that was saved, or one line; never another.

Nothing in it is unpickled, and no link in a checkpoint is followed.
"""

import contextlib
import json
import os
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from cnnjax import config
from cnnjax.errors import UserError
from cnnjax.training import checkpoint, workdir, writers
from tests.commands import bounded, is_one_line
from tests.mutations import damaged
from tests.training.test_checkpoint import equal, make_state

UNPICKLED = []
sys.addaudithook(
  lambda name, arguments: UNPICKLED.append(arguments) if name == 'pickle.find_class' else None
)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A folder with two checkpoints, and their states by step."""
  folder = tmp_path_factory.mktemp('saved')
  numbers = jax.random.normal(jax.random.key(0), (2, 2, 300))
  states = {s: make_state(s, width=300, fill=numbers[s - 1]) for s in (1, 2)}
  with checkpoint.Checkpoints(str(folder)) as checkpoints:
    for step, state in states.items():
      checkpoints.save(state, {'loss': step + 0.5}, {'accuracy': step / 4})
  return folder, states


def read(folder, states):
  """Reads it in every way; what comes out must be what was saved. Returns how it went."""
  UNPICKLED.clear()
  results = []
  with bounded(), contextlib.ExitStack() as stack:
    try:
      checkpoints = stack.enter_context(checkpoint.Checkpoints(str(folder), read_only=True))
      state, progress = checkpoints.restore(make_state(width=300))
      assert equal(state, states[int(state.step)])
      assert progress == {'loss': int(state.step) + 0.5}
      results.append(f'restored {int(state.step)}')
    except UserError as error:
      is_one_line(error)
      return ['refused']
    for step in checkpoints.steps():
      try:
        flat = checkpoints.read(step)
        assert int(flat['step']) == step
        wanted = states[step].params['head']['kernel']
        np.testing.assert_array_equal(flat['params/head/kernel'], wanted)
        results.append(f'read {step}')
      except UserError as error:
        is_one_line(error)
        results.append(f'refused {step}')
  assert not UNPICKLED
  return results


json_values = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(('progress', 'figures', 'fingerprint', 'sha256', 'params', 'accuracy', '')),
    inner, max_size=4),
  max_leaves=8,
)  # fmt: skip


KINDS = ('damage', 'json', 'other', 'gone', 'pipe', 'link', 'zero', 'folder', 'extra')


def replace(file: pathlib.Path, kind: str, content: bytes, other: pathlib.Path):
  """Puts something else in the place of a file."""
  file = file.with_name('extra') if kind == 'extra' else file
  if file.is_dir():
    return
  file.unlink(missing_ok=True)
  if kind == 'pipe':
    os.mkfifo(file)
  elif kind in ('link', 'zero'):
    file.symlink_to('/dev/zero' if kind == 'zero' else other)
  elif kind == 'folder':
    file.mkdir()
  elif kind != 'gone':
    file.write_bytes(content)


@given(st.data())
def test_any_damage_gives_the_saved_state_or_a_line(saved, tmp_path_factory, data):
  folder, states = saved
  files = sorted(file for file in (folder / 'checkpoints').rglob('*') if file.is_file())
  changes = []
  for _ in range(data.draw(st.integers(1, 2))):
    kind, file = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(files))
    other = data.draw(st.sampled_from(files))
    content = other.read_bytes()
    if kind == 'damage':
      content = data.draw(damaged([file.read_bytes()]) | st.binary(max_size=40))
    elif kind == 'json':
      content = json.dumps(data.draw(json_values)).encode()
    changes.append((file, kind, content, other))
  copy = tmp_path_factory.mktemp('copy')
  shutil.copytree(folder, copy, dirs_exist_ok=True)
  for file, *how in changes:
    replace(copy / file.relative_to(folder), *how)
  event(read(copy, states)[0])
  shutil.rmtree(copy)


@given(json_values | st.fixed_dictionaries({
  'progress': json_values, 'figures': json_values, 'fingerprint': json_values}))  # fmt: skip
def test_a_manifest_with_the_right_sum_is_not_trusted(saved, value):
  folder, states = saved
  if isinstance(value, dict):
    value['sha256'] = checkpoint._sha256({k: v for k, v in value.items() if k != 'sha256'})
  file = folder / 'checkpoints' / '2' / 'progress' / 'metadata'
  whole = file.read_bytes()
  file.write_text(json.dumps(value))
  try:
    assert read(folder, states) == ['restored 1', 'read 1', 'refused 2']
  finally:
    file.write_bytes(whole)


@given(st.sampled_from(('config.json', 'data.json', 'metrics.jsonl')),
       json_values.map(json.dumps).map(str.encode) | st.binary(max_size=60)
       | st.lists(json_values.map(json.dumps), max_size=3).map('\n'.join).map(str.encode)
       | st.just(b'[' * 100_000))  # fmt: skip
def test_the_other_files_of_a_working_directory(tmp_path_factory, name, content):
  folder = tmp_path_factory.mktemp('run')
  (folder / name).write_bytes(content)
  with bounded():
    try:
      if name == 'config.json':
        workdir.check(str(folder), config.validate(config.default()))
      elif name == 'data.json':
        assert isinstance(workdir.read_json(str(folder), name), dict)
      else:
        writers.Jsonl(str(folder), step=3).close()
        assert all(row['step'] <= 3 for row in writers.read(str(folder)))
    except UserError as error:
      is_one_line(error)
