"""The plugin's own convolutions, compared with XLA's in float64."""

import concurrent.futures
import ctypes
import functools
import mmap
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops
from cnnjax.ops import plugin
from cnnjax.ops.convolution import Window
from cnnjax.ops.plugin import threads as threads_for

pytestmark = pytest.mark.skipif(plugin.load() is None, reason='cnnjax-onednn is not installed')

SAME, NONE = ((1, 1), (1, 1)), ((0, 0), (0, 0))
# Images [N, H, W, C], output channels, padding. Odd sizes have tiles that reach beyond the border;
# 80 and 144 channels end in part of a panel and of a chunk; 96 and 160 are several chunks.
CASES = [
  ((12, 8, 8, 16), 16, SAME),
  ((20, 7, 5, 16), 48, SAME),
  ((7, 9, 12, 80), 144, SAME),
  ((5, 13, 11, 160), 96, SAME),
  ((3, 18, 17, 32), 32, NONE),
  ((3, 16, 17, 32), 16, ((2, 2), (2, 2))),
  ((3, 16, 17, 32), 16, ((0, 1), (2, 0))),
  ((200, 2, 1, 16), 16, SAME),
]


@pytest.mark.parametrize(
  ('products', 'values', 'expected'),
  [(0, 0, 1), (7_000_000, 0, 1), (9_000_000, 0, 2), (10**9, 0, 4), (0, 1_000_000, 4)],
)
def test_small_operations_take_few_threads(products, values, expected, monkeypatch):
  monkeypatch.setattr(plugin.load(), 'cores', lambda: 4 * jax.local_device_count('cpu'))
  assert threads_for(products, values) == expected


def shapes_of(images, features, padding, taps):
  """Shapes of images, kernel and outputs."""
  size = [s + sum(p) - taps + 1 for s, p in zip(images[1:3], padding, strict=True)]
  return images, (taps, taps, images[-1], features), (images[0], *size, features)


def implementation(kind, images, features, padding, taps=3):
  shapes = shapes_of(images, features, padding, taps)
  window = Window((1, 1), padding, (1, 1), 1)
  return plugin.load().query(plugin.problem(kind, *shapes, window, jnp.float32))[0]


def outputs_and_gradients(conv, x, w, dy, padding):
  options = {'window_strides': (1, 1), 'padding': padding}
  options['dimension_numbers'] = ('NHWC', 'HWIO', 'NHWC')
  y, transpose = jax.vjp(lambda x, w: conv(x, w, **options), x, w)
  return y, *transpose(dy)


def errors(images, features, padding, taps=3):
  """The largest errors of outputs and gradients, relative to the largest value."""
  rng = np.random.default_rng(0)
  arrays = [rng.standard_normal(s) for s in shapes_of(images, features, padding, taps)]
  with jax.enable_x64(True):
    exact = jax.jit(
      lambda *a: outputs_and_gradients(jax.lax.conv_general_dilated, *a, padding),
    )(*(jnp.asarray(a, jnp.float64) for a in arrays))
  ours = jax.jit(lambda *a: outputs_and_gradients(ops.conv_general_dilated, *a, padding))(
    *(jnp.asarray(a, jnp.float32) for a in arrays)
  )
  pairs = zip(ours, map(np.asarray, exact), strict=True)
  return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]


@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize('case', CASES, ids=str)
def test_winograd(case, threads, monkeypatch):
  monkeypatch.setattr(plugin, 'threads', lambda *_: threads)
  for kind in ('forward', 'input_gradient', 'weight_gradient', 'inference'):
    assert implementation(kind, *case) == 'winograd'
  assert max(errors(*case)) < 3e-6


def test_a_sum_over_many_tiles_is_as_exact():
  assert max(errors((64, 64, 64, 16), 16, SAME)) < 3e-6


def test_few_tiles_and_other_channels_are_onednns():
  assert implementation('forward', (8, 7, 7, 64), 64, SAME) != 'winograd'
  assert implementation('forward', (64, 8, 8, 20), 64, SAME) != 'winograd'


# Rows of 64 and 128 channels would share the cache's sets; 48 end in part of a panel, and 4,113
# pixels in part of a block.
@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize('channels', [(64, 128), (24, 48), (8, 16), (136, 32)], ids=str)
def test_gradient_of_pointwise_kernels(channels, threads, monkeypatch):
  monkeypatch.setattr(plugin, 'threads', lambda *_: threads)
  case = (3, 3, 457, channels[0]), channels[1], NONE, 1
  assert implementation('weight_gradient', *case) == 'pointwise'
  assert max(errors(*case)) < 3e-6


# An image without a partner; rows of several vectors and of less than one; 32 channels in several.
@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize(
  'case',
  [
    ((7, 14, 14, 6), 16, NONE, 5),
    ((2, 6, 35, 4), 32, SAME, 3),
    ((3, 5, 33, 1), 16, ((0, 2), (3, 1)), 4),
    ((4, 3, 9, 5), 48, ((2, 2), (2, 2)), 3),
    ((1, 7, 16, 3), 16, ((6, 6), (6, 6)), 7),
  ],
  ids=str,
)
def test_gradient_of_narrow_images(case, threads, monkeypatch):
  monkeypatch.setattr(plugin, 'threads', lambda *_: threads)
  assert implementation('input_gradient', *case) == 'narrow'
  assert max(errors(*case)) < 3e-6


def test_few_pixels_in_a_row_and_long_planes_are_onednns():
  assert implementation('input_gradient', (4, 9, 3, 4), 16, SAME) != 'narrow'
  assert implementation('input_gradient', (4, 90, 90, 4), 64, SAME) != 'narrow'


def depthwise_gradient(images, taps, strides, padding, dilation):
  """Its implementation, and its largest error relative to the largest value."""
  channels = images[-1]
  options = {'rhs_dilation': dilation, 'feature_group_count': channels}
  options['dimension_numbers'] = ('NHWC', 'HWIO', 'NHWC')
  shape = (*taps, 1, channels)

  def gradient(conv, x, dy):
    zeros = jnp.zeros(shape, x.dtype)
    return jax.vjp(lambda w: conv(x, w, strides, padding, **options), zeros)[1](dy)[0]

  forward = lambda x, w: ops.conv_general_dilated(x, w, strides, padding, **options)
  outputs = jax.eval_shape(forward, jnp.zeros(images), jnp.zeros(shape)).shape
  window = Window(strides, padding, dilation, channels)
  problem = plugin.problem('weight_gradient', images, shape, outputs, window, jnp.float32)
  rng = np.random.default_rng(0)
  x, dy = rng.standard_normal(images), rng.standard_normal(outputs)
  with jax.enable_x64(True):
    exact = np.asarray(gradient(jax.lax.conv_general_dilated, jnp.asarray(x), jnp.asarray(dy)))
  ours = gradient(ops.conv_general_dilated, jnp.float32(x), jnp.float32(dy))
  return plugin.load().query(problem)[0], float(np.abs(ours - exact).max() / np.abs(exact).max())


# Strides and dilation, padding on some sides alone, more rows than a block of pixels, several
# vectors of channels; the kernel's size, strides, padding and dilation.
@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize(
  'case',
  [
    ((3, 9, 11, 48), (7, 7), (1, 1), ((3, 3), (3, 3)), (1, 1)),
    ((2, 14, 13, 16), (5, 5), (2, 2), ((2, 2), (2, 2)), (1, 1)),
    ((1, 40, 33, 32), (3, 6), (1, 1), ((0, 1), (4, 0)), (1, 1)),
    ((2, 17, 19, 16), (2, 5), (3, 2), ((0, 0), (0, 0)), (2, 3)),
    ((1, 2, 700, 16), (1, 7), (1, 1), ((0, 0), (6, 6)), (1, 1)),
  ],
  ids=str,
)
def test_gradient_of_depthwise_kernels(case, threads, monkeypatch):
  monkeypatch.setattr(plugin, 'threads', lambda *_: threads)
  implementation, error = depthwise_gradient(*case)
  assert implementation == 'depthwise'
  assert error < 3e-6


@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize('channels', [(384, 700), (1030, 257)], ids=str)
def test_large_pointwise_kernels_are_products(channels, threads, monkeypatch):
  monkeypatch.setattr(plugin, 'threads', lambda *_: threads)
  case = (2, 5, 7, channels[0]), channels[1], NONE, 1
  for kind in ('forward', 'input_gradient', 'weight_gradient'):
    assert implementation(kind, *case) == 'product'
  assert max(errors(*case)) < 3e-6


STRIDED = {'window_strides': (2, 2), 'padding': SAME, 'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}


def strided(images, features, dtype):
  """Outputs and gradients of a convolution with stride 2, which is oneDNN's, and the same in
  float64."""
  rng = np.random.default_rng(0)
  arrays = [rng.standard_normal(shape) for shape in (images, (3, 3, images[-1], features))]
  arrays = [np.asarray(jnp.asarray(a, dtype), np.float64) for a in arrays]

  def all_three(conv, x, w):
    y, transpose = jax.vjp(lambda x, w: conv(x, w, **STRIDED), x, w)
    return y, *transpose(jnp.ones_like(y))

  found = jax.jit(lambda *a: all_three(ops.conv_general_dilated, *a))(
    *[jnp.asarray(a, dtype) for a in arrays]
  )
  with jax.enable_x64(True):
    expected = all_three(jax.lax.conv_general_dilated, *map(jnp.asarray, arrays))
  return [np.asarray(a, np.float64) for a in found], [np.asarray(a) for a in expected]


# Batches that the threads divide, that more parts do, and that none do.
@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize('batch', [1, 4, 6, 13])
@pytest.mark.parametrize('channels', [(5, 7), (32, 64)], ids=str)
def test_parts_of_a_batch(channels, batch, threads, monkeypatch):
  monkeypatch.setattr(plugin, 'threads', lambda *_: threads)
  for ours, theirs in zip(
    *strided((batch, 9, 8, channels[0]), channels[1], jnp.float32), strict=True
  ):
    assert np.abs(ours - theirs).max() < 3e-6 * np.abs(theirs).max()


@pytest.mark.parametrize('threads', [1, 3])
def test_parts_of_a_batch_in_bfloat16(threads, monkeypatch):
  """Sums of parts aren't rounded."""
  monkeypatch.setattr(plugin, 'threads', lambda *_: threads)
  for ours, theirs in zip(*strided((6, 16, 16, 16), 16, jnp.bfloat16), strict=True):
    assert np.abs(ours - theirs).max() <= 2**-8 * np.abs(theirs).max()


def test_sums_do_not_depend_on_who_is_busy(monkeypatch):
  """The same bits from every call, alone and beside others that take XLA's threads."""
  monkeypatch.setattr(plugin, 'threads', lambda *_: 3)
  rng = np.random.default_rng(0)
  cases = [((6, 20, 20, 16), 32, 3, 2), ((6, 20, 20, 32), 32, 3, 1), ((6, 28, 28, 16), 32, 1, 1)]

  def gradients(arrays):
    results = []
    for (x, w), (_, _, _, stride) in zip(arrays, cases, strict=True):
      options = {'window_strides': (stride, stride), 'padding': 'SAME'}
      options['dimension_numbers'] = ('NHWC', 'HWIO', 'NHWC')
      y, transpose = jax.vjp(lambda x, w: ops.conv_general_dilated(x, w, **options), x, w)  # noqa: B023
      results += [y, *transpose(y)]
    return results

  arrays = [
    (
      np.float32(rng.standard_normal(images)),
      np.float32(rng.standard_normal((taps, taps, images[-1], features))),
    )
    for images, features, taps, _ in cases
  ]
  program = jax.jit(gradients)
  expected = program(arrays)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for results in pool.map(lambda _: program(arrays), range(40)):
      for ours, theirs in zip(results, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_not_a_number_stays():
  x = np.ones((64, 8, 8, 16), np.float32)
  x[3, 4, 4, 5] = np.nan
  w = np.ones((3, 3, 16, 16), np.float32)
  y = ops.conv_general_dilated(x, w, (1, 1), SAME, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  assert np.isnan(y[3, 3:6, 3:6]).all()
  assert np.isfinite(np.delete(y, 3, 0)).all()


def guarded(array, last):
  """A copy between two pages that can't be read, and beside the first or the last of them."""
  size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
  memory = mmap.mmap(-1, size + 2 * mmap.PAGESIZE)
  start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
  for page in (start, start + mmap.PAGESIZE + size):
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, 0) == 0
  offset = mmap.PAGESIZE + (size - array.nbytes if last else 0)
  copy = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
  copy[...] = array
  return copy


def touch_borders():
  """Convolves, pools and sums guarded arrays, with gradients; how many of them JAX didn't copy."""
  rng = np.random.default_rng(0)
  count = 0

  def run(function, *shapes):
    nonlocal count
    for last in (False, True):
      arrays = [guarded(np.float32(rng.standard_normal(shape)), last) for shape in shapes]
      given = [jax.device_put(array, may_alias=True) for array in arrays]
      jax.block_until_ready(jax.jit(function)(*given))
      for array, buffer in zip(arrays, given, strict=True):
        count += array.ctypes.data == buffer.unsafe_buffer_pointer()

  in_chunks, narrow = ((7, 9, 12, 72), 16, SAME), ((7, 14, 14, 6), 16, NONE, 5)
  pointwise = ((3, 3, 457, 24), 48, NONE, 1)
  for images, features, padding, *taps in (*CASES, in_chunks, narrow, pointwise):
    conv = functools.partial(outputs_and_gradients, ops.conv_general_dilated, padding=padding)
    run(conv, *shapes_of(images, features, padding, *taps or [3]))

  def depthwise(w, x, stride):
    options = {'feature_group_count': 48, 'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}
    return ops.conv_general_dilated(x, w, (stride, stride), SAME, **options).sum()

  for stride in (1, 2):
    gradients = jax.grad(functools.partial(depthwise, stride=stride), (0, 1))
    run(gradients, (5, 5, 1, 48), (3, 9, 11, 48))
  run(jax.grad(lambda x: ops.max_pool(x, (3, 3), (2, 2), SAME).sum()), (3, 9, 11, 48))
  run(ops.channel_moments, (3, 9, 11, 48))
  return count


@pytest.mark.parametrize('vectors', ['AVX512_CORE', 'AVX2'])
def test_nothing_beyond_an_array_is_read(vectors):
  """It ends the process: a page there may be nobody's."""
  program = 'from tests.ops.test_native import touch_borders; print(touch_borders())'
  environment = {**os.environ, 'ONEDNN_MAX_CPU_ISA': vectors}
  command = [sys.executable, '-c', program]
  result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  assert int(result.stdout) >= 50


def test_narrower_vectors():
  """As on processors without AVX-512, whose vectors hold 8 floats: 24 channels fit them alone."""
  program = """if True:
    from tests.ops.test_native import SAME, depthwise_gradient, errors, implementation
    cases = {'forward': ((20, 7, 9, 24), 40, SAME), 'input_gradient': ((3, 9, 11, 6), 24, SAME)}
    for kind, case in cases.items():
      print(implementation(kind, *case), max(errors(*case)) < 3e-6)
    case = (2, 9, 11, 24), (5, 7), (1, 1), ((2, 2), (3, 3)), (1, 1)
    name, error = depthwise_gradient(*case)
    print(name, error < 3e-6)
  """
  environment = {**os.environ, 'ONEDNN_MAX_CPU_ISA': 'AVX2'}
  command = [sys.executable, '-c', program]
  result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  assert result.stdout == 'winograd True\nnarrow True\ndepthwise True\n', result.stderr
