import json

import jax
import numpy as np
import pytest

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.ops import ways


def convolve(x, w):
  """Images [K, 2, 5, 4, 2], kernels [K, 3, 3, 2, 6]: the outputs' sum and its gradients."""
  numbers = ('NHWC', 'HWIO', 'NHWC')

  def one(x, w):
    y = ops.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=numbers)
    return np.float32(0.5) * (y**2).sum()

  return jax.vmap(jax.value_and_grad(one, (0, 1)))(x, w)


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  shapes = (3, 2, 5, 4, 2), (3, 3, 3, 2, 6)
  return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.fixture
def picks(monkeypatch):
  """No case picked yet."""
  monkeypatch.setattr(ways, '_picked', {})
  return ops.picked


def program():
  """A function that JAX hasn't traced yet."""
  return jax.jit(lambda x, w: convolve(x, w))


def by_kind(table):
  return {case.split()[1]: way for case, way in table.items()}


ALL_KINDS = ['forward', 'input_gradient', 'weight_gradient']


def test_the_quickest_is_timed_once_and_remembered(arrays, picks, monkeypatch):
  timed = []

  def seconds(candidates, arguments):
    kind = candidates['loop'].keywords['call'].result
    timed.append((kind, [a.shape for a in arguments], list(candidates)))
    return {'loop': 1.0, 'fold': 0.95 if kind == 'w' else 0.5, 'batch': 0.6 if kind == 'x' else 2.0}

  monkeypatch.setattr(ways, '_time', seconds)
  with ops.using('xla'), ops.members('auto'):
    found = program()(*arrays)
    program()(*arrays)  # another function of the same shapes
  x, w, y = (3, 2, 5, 4, 2), (3, 3, 3, 2, 6), (3, 2, 5, 4, 6)
  every = ['loop', 'fold', 'batch']
  assert sorted(timed) == [('w', [x, y], every), ('x', [w, y], every), ('y', [x, w], every)]
  # Nobody would notice 0.95 of the loop's time.
  expected = {'forward': 'fold', 'input_gradient': 'fold', 'weight_gradient': 'loop'}
  assert by_kind(picks()) == expected
  described = '3 of wxy x=2x5x4x2 w=3x3x2x6 y=2x5x4x6 strides=1x1 padding=1x1x1x1 dilation=1x1'
  assert all(described in case for case in picks())

  # The table, through a file, builds the same program without timing; what it lacks is looped.
  timed.clear()
  table = json.loads(json.dumps(picks()))
  with ops.using('xla'), ops.members(table):
    again = program()(*arrays)
    text = program().lower(*arrays).as_text()
  assert not timed
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(found), strict=True):
    np.testing.assert_array_equal(a, b)
  with ops.using('xla'), ops.members({}):
    assert program().lower(*arrays).as_text() != text
  with ops.using('xla'), ops.members('loop'):
    looped = program().lower(*arrays).as_text()
  with ops.using('xla'), ops.members({}):
    assert program().lower(*arrays).as_text() == looped


def test_real_timing(arrays, picks):
  exact = program()(*arrays)
  with ops.members('auto'):
    found = program()(*arrays)
  assert sorted(by_kind(picks())) == ALL_KINDS
  assert set(picks().values()) <= set(ways.WAYS)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_large_convolutions_are_not_timed_on_a_cpu(arrays, picks, monkeypatch):
  monkeypatch.setattr(ways, '_LARGE', 2 * 5 * 4 * 6 * 3 * 3 * 2)
  monkeypatch.setattr(ways, '_time', None)
  with ops.members('auto'):
    program().trace(*arrays)
  assert by_kind(picks()) == dict.fromkeys(ALL_KINDS, 'loop')


def test_only_so_many_cases_are_kept(arrays, picks, monkeypatch):
  monkeypatch.setattr(ways, '_KEPT', 2)
  monkeypatch.setattr(ways, '_time', lambda *_: {'loop': 1.0})
  with ops.members('auto'):
    program().trace(*arrays)
  assert sorted(by_kind(picks())) == ALL_KINDS[1:]


def test_what_memory_is_too_small_for_is_no_way(picks):
  def full(x):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED')

  candidates = {'loop': lambda x: x + 1, 'fold': full}
  case = ways.Case('some', 1, (jax.ShapeDtypeStruct((2,), np.float32),), candidates)
  with ops.members('auto'):
    assert ways.choose(lambda: case) == 'loop'


@pytest.mark.parametrize('choice', ['grouped', {'cpu forward': 'grouped'}])
def test_a_way_that_does_not_exist(choice):
  with pytest.raises(UserError, match=r"ops.members='grouped' is unknown: Allowed: "):
    ops.members(choice)
