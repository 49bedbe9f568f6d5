import jax
import jax.numpy as jnp
import pytest
from jax._src import compilation_cache

from cnnjax import compiled
from tests.commands import limited_files


@pytest.fixture
def kept(tmp_path, monkeypatch):
  """Programs are kept in this directory, however quickly they were compiled."""
  options = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
  before = {option: getattr(jax.config, option) for option in options}
  monkeypatch.setattr(compilation_cache, 'get_file_cache', compilation_cache.get_file_cache)
  compilation_cache.reset_cache()
  compiled.keep(str(tmp_path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  yield tmp_path
  for option, value in before.items():
    jax.config.update(option, value)
  compilation_cache.reset_cache()


def run():
  """Compiles a program that no process has compiled before, or reads it."""
  jax.clear_caches()
  program = jax.jit(lambda x: jnp.sin(x) * 3 + 41)
  return float(program(jnp.float32(2)))


def test_a_full_disk_leaves_no_half_of_a_program(kept):
  with limited_files(100), pytest.warns(UserWarning, match='Error writing persistent compilation'):
    run()
  assert list(kept.iterdir()) == []
  expected = run()
  names = sorted(entry.name for entry in kept.iterdir())
  assert names
  assert all(name.endswith('-cache') for name in names)
  assert run() == expected


def test_a_damaged_program_is_compiled_again_once(kept):
  expected = run()
  (entry,) = (e for e in kept.iterdir() if e.name.startswith('jit__lambda'))
  whole = entry.read_bytes()
  entry.write_bytes(whole[: len(whole) // 2])
  with pytest.warns(UserWarning, match='Error reading persistent compilation'):
    assert run() == expected
  assert len(entry.read_bytes()) > len(whole) // 2
  assert run() == expected  # pytest makes errors of warnings
