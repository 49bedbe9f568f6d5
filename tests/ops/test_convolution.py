"""Every case is compared with XLA's convolution in float64, derivatives included."""

import pathlib
import resource
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cnnjax import ops
from cnnjax.errors import UserError
from cnnjax.ops import plugin

NUMBERS = ('NHWC', 'HWIO', 'NHWC')
needs_plugin = pytest.mark.skipif(plugin.load() is None, reason='cnnjax-onednn is not installed')


def draw(seed):
  """A random convolution: images, kernel, options."""
  rng = np.random.default_rng(seed)
  pick = lambda *values: values[rng.integers(len(values))]
  groups = pick(1, 1, 1, 2, 4)
  if pick(True, False, False):
    groups = channels = pick(1, 3, 8, 16, 24, 33)
    features = channels * pick(1, 1, 2)
  else:
    channels, features = (groups * pick(1, 2, 3, 5, 8, 16, 17) for _ in range(2))
  kernel = (pick(1, 1, 2, 3, 3, 5, 7), pick(1, 1, 2, 3, 3, 5, 7))
  dilation = (pick(1, 1, 1, 2), pick(1, 1, 1, 3))
  extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
  size = [k + int(rng.integers(12)) for k in extent]
  padding = pick('SAME', 'VALID', [tuple(rng.integers(0, k + 1, 2).tolist()) for k in extent])
  x = rng.standard_normal((pick(1, 2, 3, 8), *size, channels))
  w = rng.standard_normal((*kernel, channels // groups, features))
  options = {
    'window_strides': (pick(1, 1, 2, 3), pick(1, 1, 2, 3)),
    'padding': padding,
    'rhs_dilation': dilation,
    'feature_group_count': groups,
    'dimension_numbers': NUMBERS,
  }
  return x, w, options


def with_gradients(fn, x, w, options):
  """The output, and the gradients of its product with fixed numbers."""
  y = fn(x, w, **options)
  factors = np.random.default_rng(0).integers(-2, 3, y.shape).astype(y.dtype)  # exact in any type
  loss = lambda x, w: (fn(x, w, **options) * factors).sum()
  return y, *jax.grad(loss, (0, 1))(x, w)


def reference(fn, *args):
  with jax.enable_x64(True):
    return jax.jit(fn)(*(jnp.asarray(a, jnp.float64) for a in args))


def close(ours, theirs, tolerance=1e-5):
  theirs = np.asarray(theirs)
  assert ours.shape == theirs.shape
  assert np.abs(np.asarray(ours, np.float64) - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize('seed', range(64))
def test_sweep(seed):
  x, w, options = draw(seed)
  exact = reference(lambda x, w: with_gradients(lax.conv_general_dilated, x, w, options), x, w)
  ours = jax.jit(lambda x, w: with_gradients(ops.conv_general_dilated, x, w, options))(
    x.astype(np.float32), w.astype(np.float32)
  )
  for a, b in zip(ours, exact, strict=True):
    close(a, b)


OPTIONS = {'window_strides': (2, 1), 'padding': 'SAME', 'dimension_numbers': NUMBERS}


@pytest.fixture
def small():
  rng = np.random.default_rng(0)
  images = rng.standard_normal((3, 7, 6, 4)).astype(np.float32)
  return images, rng.standard_normal((3, 3, 4, 5)).astype(np.float32)


def loss(fn):
  return lambda x, w: jnp.square(jnp.sin(fn(x, w, **OPTIONS))).sum()


@pytest.mark.parametrize(
  'transform',
  [
    lambda f: lambda x, w: jax.jvp(f, (x, w), (x, w))[1],
    lambda f: lambda x, w: jax.jvp(jax.grad(f, (0, 1)), (x, w), (x, w))[1],
    lambda f: jax.grad(lambda x, w: sum((g**2).sum() for g in jax.grad(f, (0, 1))(x, w)), (0, 1)),
    lambda f: jax.grad(jax.checkpoint(f), (0, 1)),
    lambda f: (
      lambda x, w: lax.scan(lambda c, _: (c - 1e-3 * jax.grad(f)(c, w), 0.0), x, None, 3)[0]
    ),
    lambda f: lambda x, w: jax.vmap(f, (0, None))(jnp.stack([x, 2 * x]), w),
    lambda f: lambda x, w: jax.vmap(jax.grad(f, (0, 1)), (None, 0))(x, jnp.stack([w, 2 * w])),
    lambda f: (
      lambda x, w: jax.vmap(jax.grad(f, (0, 1)), (1, 3))(
        jnp.stack([x, 2 * x], 1), jnp.stack([w, -w], 3)
      )
    ),
    lambda f: lambda x, w: jax.vmap(jax.grad(f, 1), (0, None))(x[:, None], w),
  ],
  ids=[
    'forward',
    'forward over reverse',
    'reverse over reverse',
    'remat',
    'scan',
    'vmap images',
    'vmap kernels',
    'vmap both',
    'gradient of each example',
  ],
)
def test_transformations(transform, small):
  exact = reference(transform(loss(lax.conv_general_dilated)), *small)
  ours = jax.jit(transform(loss(ops.conv_general_dilated)))(*small)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
    close(a, b)


def test_examples_mapped_over_devices_are_one_call(small):
  x, w = small
  mapped = jax.vmap(lambda x: ops.conv_general_dilated(x, w, **OPTIONS))
  assert str(jax.make_jaxpr(mapped)(jnp.stack([x, x]))).count('conv') <= 2


def test_without_jit(small):
  close(ops.conv_general_dilated(*small, **OPTIONS), lax.conv_general_dilated(*small, **OPTIONS))


def test_bfloat16(small):
  half = [jnp.asarray(a, jnp.bfloat16) for a in small]
  ours = with_gradients(ops.conv_general_dilated, *half, OPTIONS)
  exact = reference(lambda x, w: with_gradients(lax.conv_general_dilated, x, w, OPTIONS), *half)
  for a, b in zip(ours, exact, strict=True):
    assert a.dtype == jnp.bfloat16
    close(a, b, 2**-6)


def test_what_onednn_does_not_take_goes_to_xla(small):
  x, w = small
  cases = [
    (x, w, {**OPTIONS, 'padding': [(-1, 0), (0, 0)]}),
    (x, w, {**OPTIONS, 'lhs_dilation': (2, 1), 'padding': [(0, 0), (1, 2)]}),
    (x.transpose(0, 3, 1, 2), w, {**OPTIONS, 'dimension_numbers': ('NCHW', 'HWIO', 'NHWC')}),
    (x[:, 0], w[0], {'window_strides': (1,), 'padding': 'SAME', 'dimension_numbers': None}),
    (x.astype(np.float16), w.astype(np.float16), OPTIONS),
    (x[:0], w, OPTIONS),
  ]
  for x, w, options in cases:
    if options['dimension_numbers'] is None:
      options = {**options, 'dimension_numbers': ('NWC', 'WIO', 'NWC')}
    ours = ops.conv_general_dilated(x, w, **options)
    np.testing.assert_array_equal(ours, lax.conv_general_dilated(x, w, **options))


def test_mistakes_are_xlas(small):
  x, w = small
  with pytest.raises((TypeError, ValueError)):
    ops.conv_general_dilated(x[..., :3], w, **OPTIONS)


@needs_plugin
def test_the_choice(small):
  program = jax.jit(lambda x, w: ops.conv_general_dilated(x, w, **OPTIONS))
  assert 'cnnjax_onednn_forward' in program.lower(*small).as_text()
  with ops.using('xla'):
    assert 'cnnjax_onednn' not in program.lower(*small).as_text()
  with ops.using('mkl'), pytest.raises(UserError, match=r"ops='mkl' is unknown. Allowed: 'auto'"):
    program(*small)


def test_insisting_on_a_plugin_that_is_missing(small, monkeypatch):
  monkeypatch.setattr(plugin, 'load', lambda: None)
  with ops.using('onednn'), pytest.raises(UserError, match='needs the distribution cnnjax-onednn'):
    ops.conv_general_dilated(*small, **OPTIONS)
  close(ops.conv_general_dilated(*small, **OPTIONS), lax.conv_general_dilated(*small, **OPTIONS))


def test_exported_programs_hold_no_foreign_function(small):
  program = jax.jit(jax.grad(loss(ops.conv_general_dilated)))
  exported = export.export(program)(*small)
  assert 'onednn' not in exported.mlir_module()
  close(exported.call(*small), program(*small))


@pytest.mark.skipif(jax.device_count() < 2, reason='needs two devices')
@pytest.mark.parametrize('check_vma', [True, False])
def test_shard_map(small, check_vma):
  x, w = small
  x = np.concatenate([x, x[:1]])
  mesh = jax.make_mesh((2,), ('batch',), (AxisType.Auto,), devices=jax.devices()[:2])
  sharded = jax.shard_map(
    lambda x, w: ops.conv_general_dilated(x, w, **OPTIONS),
    mesh=mesh,
    in_specs=(P('batch'), P()),
    out_specs=P('batch'),
    check_vma=check_vma,
  )
  both = jax.jit(jax.value_and_grad(lambda x, w: jnp.square(sharded(x, w)).sum(), (0, 1)))(x, w)
  plain = lambda x, w: jnp.square(lax.conv_general_dilated(x, w, **OPTIONS)).sum()
  exact = reference(jax.value_and_grad(plain, (0, 1)), x, w)
  for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(exact), strict=True):
    close(a, b)


@pytest.mark.skipif(jax.device_count() < 2, reason='needs two devices')
def test_pmap(small):
  x, w = small
  x = np.stack([x, -x])
  gradient = jax.pmap(
    lambda x, w: lax.pmean(jax.grad(loss(ops.conv_general_dilated), 1)(x, w), 'i'),
    axis_name='i',
    in_axes=(0, None),
    out_axes=None,
    devices=jax.devices()[:2],
  )(x, w)
  exact = lambda x, w: sum(jax.grad(loss(lax.conv_general_dilated), 1)(y, w) for y in x) / 2
  close(gradient, reference(exact, x, w))


def in_threads(work):
  """Eight threads, each with its number."""
  threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()


def draw_1x1(rng):
  n, size, channels, features = rng.integers(1, 9, 4)
  x = rng.standard_normal((n, size, size, channels)).astype(np.float32)
  return x, rng.standard_normal((1, 1, channels, features)).astype(np.float32)


def convolve_1x1(x, w):
  return ops.conv_general_dilated(x, w, (1, 1), 'VALID', dimension_numbers=NUMBERS)


def right_1x1(x, w, y):
  return np.abs(y - x @ w[0, 0]).max() <= 1e-5 * np.abs(y).max()


def test_many_threads_and_shapes():
  """Shapes that change with every call: right results in all threads."""
  wrong = []

  def work(thread):
    rng = np.random.default_rng(thread)
    for i in range(12):
      x, w = draw_1x1(rng)
      if not right_1x1(x, w, convolve_1x1(x, w)):
        wrong.append((thread, i))

  in_threads(work)
  assert not wrong


@needs_plugin
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_more_shapes_than_are_kept():
  """Every call makes anew what the one before dropped: memory stays, from eight threads too."""
  rng = np.random.default_rng(0)
  arrays = [draw_1x1(rng) for _ in range(400)]
  run, wrong, resident = jax.jit(lambda arrays: [convolve_1x1(*pair) for pair in arrays]), [], []

  def work(thread):
    for (x, w), y in zip(arrays, run(arrays), strict=True):
      if not right_1x1(x, w, y):
        wrong.append((thread, x.shape, w.shape))

  for _ in range(4):
    in_threads(work)
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    resident.append(pages * resource.getpagesize() / 2**20)
  assert not wrong
  assert resident[-1] - resident[0] < 64  # MiB; 20 in the caches of threads


def test_calls_outside_of_jit_compile_once(small, caplog):
  x, w = jnp.asarray(small[0][:, 1:]), jnp.asarray(small[1])  # a shape that no other test has
  with jax.log_compiles():
    first = ops.conv_general_dilated(x, w, **OPTIONS)
    assert 'Compiling' in caplog.text
    caplog.clear()
    again = ops.conv_general_dilated(x, w, **OPTIONS)
    assert not caplog.records
  np.testing.assert_array_equal(first, again)


@needs_plugin
def test_wrong_shapes_are_an_error_and_no_crash():
  call = jax.ffi.ffi_call(
    'cnnjax_onednn_forward',
    jax.ShapeDtypeStruct((1, 9, 9, 4), np.float32),
    vmap_method='sequential',
  )
  attributes = {
    'strides': np.array([1, 1]),
    'padding': np.array([0, 0, 0, 0]),
    'dilation': np.array([1, 1]),
    'groups': np.int64(1),
    'threads': np.int64(1),
  }
  x, w = np.ones((1, 4, 4, 3), np.float32), np.ones((3, 3, 3, 4), np.float32)
  for change in (
    {},
    {'strides': np.array([0, 1])},
    {'groups': np.int64(0)},
    {'threads': np.int64(0)},
  ):
    with pytest.raises(Exception, match='cnnjax_onednn: '):
      jax.block_until_ready(call(x, w, **{**attributes, **change}))
