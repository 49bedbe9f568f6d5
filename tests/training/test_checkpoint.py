"""Checkpoints: exact round trip, retention, fingerprints, damage; the wrong model is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnnjax.errors import MachineError, UserError
from cnnjax.training import checkpoint
from cnnjax.training.state import State
from tests.commands import limited_files


def make_state(step=0, width=3, fill=0.5):
  params = {'head': {'kernel': jnp.full((2, width), fill), 'bias': jnp.arange(width) / 7}}
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
  return State(
    step=jnp.asarray(step, jnp.int32), params=params, batch_stats={'norm': {'mean': jnp.ones(2)}},
    opt_state=optimizer.init(params),
  )  # fmt: skip


def open_checkpoints(path, **options):
  return checkpoint.Checkpoints(str(path), **options)


def test_round_trip_is_exact(tmp_path):
  state, progress = make_state(step=7, fill=0.1), {'loss': 0.1 + 0.2, 'unreadable': 3}
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, progress)
  with open_checkpoints(tmp_path, read_only=True) as checkpoints:
    restored, saved = checkpoints.restore(make_state(fill=9.0))
  assert saved == progress
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
    np.testing.assert_array_equal(a, b)
    assert a.dtype == b.dtype


def test_a_donated_state_does_not_change_what_is_being_saved(tmp_path):
  state = jax.device_put(make_state(step=1))
  clear = jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)
  expected = np.array(state.params['head']['kernel'])
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(state, {})
    clear(state)
  with open_checkpoints(tmp_path, read_only=True) as checkpoints:
    np.testing.assert_array_equal(checkpoints.read()['params/head/kernel'], expected)


def test_retention_keeps_the_last_and_the_best(tmp_path):
  with open_checkpoints(tmp_path, keep_last=2, keep_best=1) as checkpoints:
    for step, accuracy in enumerate([0.1, 0.9, 0.3, 0.4, 0.5], start=1):
      checkpoints.save(make_state(step), {}, {'accuracy': accuracy})
    checkpoints.save(make_state(6), {})  # on a signal: no figures
  with open_checkpoints(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.steps() == [2, 5, 6]


def test_another_models_checkpoint_is_refused(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(make_state(1), {})
  with open_checkpoints(tmp_path, read_only=True) as checkpoints:
    with pytest.raises(UserError, match='head/bias'):
      checkpoints.restore(make_state(width=4))
    with pytest.raises(UserError, match=r'step 5 .*\[1\]'):
      checkpoints.restore(make_state(), step=5)


def test_fingerprint_sees_every_bit_name_and_type():
  flat = {'params/a': np.arange(3.0, dtype=np.float32), 'opt_state/m': np.zeros(2, np.float32)}
  same = checkpoint.fingerprint(dict(reversed(flat.items())))
  base = checkpoint.fingerprint(flat)
  assert base == same
  flipped = flat['params/a'].copy()
  flipped.view(np.uint32)[1] ^= 1
  for other in (
    {**flat, 'params/a': flipped},
    {**flat, 'params/a': flat['params/a'].reshape(3, 1)},
    {**flat, 'params/a': flat['params/a'].view(np.int32)},
    {'params/b': flat['params/a'], 'opt_state/m': flat['opt_state/m']},
  ):
    found = checkpoint.fingerprint(other)
    assert found['params'] != base['params']
    assert found['opt_state'] == base['opt_state']


def equal(a, b):
  return all(
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def every_damage(file):
  """The bytes of a file: cut to half, gone, and with a bit flipped in four places."""
  data = file.read_bytes()
  yield data[: len(data) // 2]
  yield b''
  for at in np.linspace(0, len(data) - 1, 4).astype(int):
    yield data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def test_damage_in_any_file_never_gives_wrong_weights(tmp_path, caplog):
  # Random numbers, as weights are: compressed constants would fail to unpack without any checksum.
  numbers = jax.random.normal(jax.random.key(0), (2, 2, 3000))
  old, new = (make_state(s, width=3000, fill=numbers[s - 1]) for s in (1, 2))
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(old, {'loss': 1.5}, {'accuracy': 0.5})
    checkpoints.save(new, {'loss': 2.5}, {'accuracy': 0.75})
  files = [f for f in (tmp_path / 'checkpoints' / '2').rglob('*') if f.is_file()]
  fell_back, reasons = set(), ''
  for file in files:
    whole = file.read_bytes()
    for broken in every_damage(file):
      caplog.clear()
      file.write_bytes(broken)
      with open_checkpoints(tmp_path, read_only=True) as checkpoints:
        state, progress = checkpoints.restore(make_state(width=3000))
      step = int(state.step)
      assert equal(state, {1: old, 2: new}[step]), file
      assert progress == {'loss': step + 0.5}
      assert (step == 1) == any('2 is damaged' in line for line in caplog.messages)
      if step == 1:
        fell_back.add(file.parent.name)
        reasons += caplog.text
    file.write_bytes(whole)
  assert {'progress', 'd'} <= fell_back  # the JSON and the arrays
  assert 'params: its SHA-256 is another' in reasons  # what no other checksum had seen


def test_a_damaged_checkpoint_is_set_aside_and_made_anew(tmp_path):
  with open_checkpoints(tmp_path, keep_last=1, keep_best=1) as checkpoints:
    for step, accuracy in ((1, 0.9), (2, 0.5)):
      checkpoints.save(make_state(step), {}, {'accuracy': accuracy})
  (tmp_path / 'checkpoints' / '2' / 'progress' / 'metadata').write_text('{}')
  with open_checkpoints(tmp_path, keep_last=1, keep_best=1) as checkpoints:
    state, _ = checkpoints.restore(make_state())
    assert (int(state.step), checkpoints.steps()) == (1, [1])
    checkpoints.save(make_state(2, fill=0.125), {}, {'accuracy': 0.5})
  assert (tmp_path / 'damaged' / '2').is_dir()
  with open_checkpoints(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.read()['params/head/kernel'][0, 0] == 0.125


def test_where_every_checkpoint_is_damaged_nothing_is_touched(tmp_path):
  with open_checkpoints(tmp_path) as checkpoints:
    checkpoints.save(make_state(1), {})
  (tmp_path / 'checkpoints' / '1' / 'progress' / 'metadata').write_text('{')
  for read_only in (True, False):
    with open_checkpoints(tmp_path, read_only=read_only) as checkpoints:
      with pytest.raises(UserError, match=r'step 1 \(progress'):
        checkpoints.restore(make_state())
      with pytest.raises(UserError, match='1 is damaged'):
        checkpoints.read()
      assert checkpoints.steps() == [1]


def test_the_best_is_kept_by_a_run_that_resumes(tmp_path):
  for step, accuracy in enumerate([0.1, 0.9, 0.3, 0.4, 0.5], start=1):
    with open_checkpoints(tmp_path, keep_last=1, keep_best=1) as checkpoints:
      checkpoints.save(make_state(step), {}, {'accuracy': accuracy})
  with open_checkpoints(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.steps() == [2, 5]


def test_a_save_that_fails_is_told_and_harms_nothing(tmp_path):
  with open_checkpoints(tmp_path, keep_last=1) as checkpoints:
    checkpoints.save(make_state(1), {})
  with (
    pytest.raises(MachineError, match=r'cannot be saved in .*: File too large'),
    limited_files(200),
    open_checkpoints(tmp_path, keep_last=1) as checkpoints,
  ):
    checkpoints.save(make_state(2), {})
  with open_checkpoints(tmp_path, read_only=True) as checkpoints:
    assert checkpoints.steps() == [1]
    assert equal(checkpoints.restore(make_state())[0], make_state(1))
