"""Compiled programs kept between runs, in JAX's persistent compilation cache.

JAX writes an entry where it is read. A run that is killed then, or whose disk is full, leaves half
of one, and as JAX keeps what is there, every later run warns of it and compiles that program again.
"""

import os
import tempfile

import jax
from jax._src import compilation_cache, lru_cache


class WholeEntries(lru_cache.LRUCache):
  """JAX's cache in files, whose entries are there as a whole or not at all."""

  def put(self, key: str, value: bytes) -> None:
    """Writes an entry, over a damaged one too: what could be read isn't put again."""
    if self.eviction_enabled:  # by a lock, and the times of reading
      return super().put(key, value)
    directory = str(self.path)
    file, unfinished = tempfile.mkstemp(prefix='.unfinished-', dir=directory)
    try:
      with open(file, 'wb') as entry:
        entry.write(value)
      os.replace(unfinished, os.path.join(directory, f'{key}-cache'))
    except BaseException:
      os.unlink(unfinished)
      raise


def keep(directory: str) -> None:
  """Keeps the programs that took 0.1 s to compile or more in a directory."""
  # JAX has no public way to give it another cache.
  compilation_cache.get_file_cache = lambda path: (
    WholeEntries(path, max_size=jax.config.values['jax_compilation_cache_max_size']),
    path,
  )
  jax.config.update('jax_compilation_cache_dir', directory)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
