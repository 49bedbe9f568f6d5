"""Chunks of members are as large as memory allows."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.sweep import program


@pytest.mark.parametrize(
  ('room', 'chunk', 'tried'),
  [
    (1000, 12, [12]),  # 100 for what all work on, 50 for each member
    (500, 6, [12, 6]),  # 8 fit, and 6 divides 12
    (320, 4, [12, 4]),
    (10, 1, [12, 1]),  # nothing fits: one at a time, whatever comes
  ],
)
def test_chunks_fit_into_memory(room, chunk, tried):
  compiled = []

  def compile(members):
    compiled.append(members)
    need = types.SimpleNamespace(
      argument_size_in_bytes=90,
      output_size_in_bytes=40,
      alias_size_in_bytes=30,
      temp_size_in_bytes=50 * members,
    )
    return types.SimpleNamespace(memory_analysis=lambda: need, members=members)

  found, run = program.fit(compile, 12, room)
  assert (found, run.members, compiled) == (chunk, chunk, tried)


@pytest.mark.parametrize('chunk', [1, 2, 9])
def test_each_is_the_same_in_any_chunks(chunk):
  x = jnp.arange(10.0).reshape(5, 2)
  found = program.each(lambda x: {'sum': x.sum(), 'x': 2 * x}, x, chunk)
  np.testing.assert_array_equal(found['sum'], x.sum(1))
  np.testing.assert_array_equal(found['x'], 2 * x)
