"""Each way is compared with a loop over members in float64 NumPy, derivatives included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cnnjax import ops
from cnnjax.ops import plugin
from cnnjax.ops.ways import WAYS

NUMBERS = ('NHWC', 'HWIO', 'NHWC')
MEMBERS = 3
QUICK = {'xla_backend_optimization_level': 0}
ones, none = (1, 1), ((0, 0), (0, 0))

# images [N, H, W, C], kernel [kh, kw, C / groups, F], strides, padding, dilation, groups
CASES = {
  'strides': ((2, 8, 7, 3), (3, 2, 3, 4), (2, 3), ((0, 1), (2, 0)), ones, 1),
  'dilation': ((1, 9, 7, 2), (3, 2, 2, 3), (2, 1), ((3, 0), (1, 1)), (2, 3), 1),
  'groups': ((2, 5, 5, 6), (3, 3, 3, 4), ones, ((1, 1), (1, 1)), ones, 2),
  'depthwise': ((2, 6, 5, 3), (3, 3, 1, 6), (2, 1), ((1, 1), (1, 1)), ones, 3),
  'wide padding': ((1, 3, 4, 2), (2, 2, 2, 3), ones, ((2, 3), (3, 1)), ones, 1),
}


def options(case):
  _, _, strides, padding, dilation, groups = CASES[case]
  return {
    'window_strides': strides,
    'padding': padding,
    'rhs_dilation': dilation,
    'feature_group_count': groups,
    'dimension_numbers': NUMBERS,
  }


def arrays(case, dtype=np.float32):
  """Images, kernels, and what the outputs are multiplied by, each with an axis of members."""
  rng = np.random.default_rng(0)
  x, w = (rng.standard_normal((MEMBERS, *shape)).astype(dtype) for shape in CASES[case][:2])
  y = by_definition(case, x[0], w[0], 0.0)[0]
  return x, w, rng.standard_normal((MEMBERS, *y.shape)).astype(dtype)


def by_definition(case, x, w, factors):
  """The output, and the gradients of its sum times factors, tap by tap and group by group."""
  _, (kh, kw, *_), strides, padding, dilation, groups = CASES[case]
  x, w, factors = (np.asarray(a, np.float64) for a in (x, w, factors))
  wide = np.pad(x, ((0, 0), *padding, (0, 0)))
  sizes = [
    (length - (k - 1) * d - 1) // s + 1
    for length, k, d, s in zip(wide.shape[1:3], (kh, kw), dilation, strides, strict=True)
  ]
  y = np.zeros((len(x), *sizes, w.shape[3]))
  factors, dx, dw = np.broadcast_to(factors, y.shape), np.zeros_like(wide), np.zeros_like(w)
  c, f = w.shape[2], w.shape[3] // groups
  for i, j, g in np.ndindex(kh, kw, groups):
    rows, columns = (
      slice(k * d, k * d + (size - 1) * s + 1, s)
      for k, d, size, s in zip((i, j), dilation, sizes, strides, strict=True)
    )
    seen = (slice(None), rows, columns, slice(g * c, (g + 1) * c))
    mine = slice(g * f, (g + 1) * f)
    y[..., mine] += wide[seen] @ w[i, j, :, mine]
    dx[seen] += factors[..., mine] @ w[i, j, :, mine].T
    dw[i, j, :, mine] += np.einsum('nhwc,nhwf->cf', wide[seen], factors[..., mine])
  (top, _), (left, _) = padding
  return y, dx[:, top : top + x.shape[1], left : left + x.shape[2]], dw


def close(ours, exact, tolerance=1e-5):
  exact = np.asarray(exact)
  assert ours.shape == exact.shape
  assert np.abs(np.asarray(ours, np.float64) - exact).max() <= tolerance * np.abs(exact).max()


def with_gradients(case):
  def one(x, w, factors):
    y, transpose = jax.vjp(lambda x, w: ops.conv_general_dilated(x, w, **options(case)), x, w)
    return y, *transpose(factors)

  return one


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize(
  ('case', 'choice'),
  [*((case, 'auto') for case in CASES), ('strides', 'xla'), ('groups', 'xla')],
)
def test_each_way(case, way, choice):
  """Images and kernels mapped, kernels alone; y's cotangent shared; and images alone."""
  x, w, factors = arrays(case)
  one = with_gradients(case)
  mapped = [(0, 0, 0), (None, 0, 0), (0, 0, None)] + [(0, None, 0)] * (way == 'fold')

  @functools.partial(jax.jit, compiler_options=QUICK)
  def together(x, w, factors):
    args = (x, w, factors)
    first = lambda dims: [a[0] if d is None else a for a, d in zip(args, dims, strict=True)]
    return [jax.vmap(one, dims)(*first(dims)) for dims in mapped]

  with ops.using(choice), ops.members(way):
    found = together(x, w, factors)
  for dims, results in zip(mapped, found, strict=True):
    own = [[0] * MEMBERS if d is None else range(MEMBERS) for d in dims]
    exact = [by_definition(case, x[i], w[j], factors[k]) for i, j, k in zip(*own, strict=True)]
    for ours, theirs in zip(results, zip(*exact, strict=True), strict=True):
      close(ours, np.stack(theirs))


def loss(conv):
  return lambda x, w: jnp.square(jnp.sin(conv(x, w, **options('strides')))).sum()


def second_derivatives(f, x, w):
  squares = lambda x, w: sum((g**2).sum() for g in jax.grad(f, (0, 1))(x, w))
  return jax.vmap(jax.grad(squares, (0, 1)))(x, w)


def around_vmap(f, x, w):
  return jax.grad(lambda x, w: jax.vmap(f)(x, w).sum(), (0, 1))(x, w)


def nested(f, x, w):
  inner = jax.vmap(jax.grad(f, (0, 1)), (None, 0))  # every kernel on the images of each
  return jax.vmap(inner, (0, None))(x, w)


def axes_elsewhere(f, x, w):
  return jax.vmap(jax.grad(f, 1), (2, 4), 3)(jnp.moveaxis(x, 0, 2), jnp.moveaxis(w, 0, 4))


def in_scan(f, x, w):
  def step(w, _):
    return w - 1e-2 * jax.vmap(jax.grad(f, 1))(x, w), 0.0

  return lax.scan(step, w, None, 2)[0]


@pytest.mark.parametrize('way', WAYS)
def test_transformations(way):
  """As XLA's convolution under the same transformations, in float64."""
  x, w, _ = arrays('strides')
  transforms = (second_derivatives, around_vmap, nested, axes_elsewhere, in_scan)
  with jax.enable_x64(True):
    exact = jax.jit(lambda x, w: [t(loss(lax.conv_general_dilated), x, w) for t in transforms])(
      x.astype(np.float64), w.astype(np.float64)
    )
  with ops.members(way):
    ours = jax.jit(lambda x, w: [t(loss(ops.conv_general_dilated), x, w) for t in transforms])(x, w)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
    close(a, b, 2e-5)


@pytest.mark.skipif(jax.device_count() < 2, reason='needs two devices')
@pytest.mark.parametrize('check_vma', [True, False])
def test_members_over_devices(check_vma):
  x, w, factors = (np.concatenate([a, a[:1]]) for a in arrays('strides'))
  one = with_gradients('strides')
  mesh = jax.make_mesh((2,), ('members',), (AxisType.Auto,), devices=jax.devices()[:2])
  for choice, way in (('xla', 'loop'), ('xla', 'fold'), ('auto', 'loop'), ('auto', 'batch')):
    with ops.using(choice), ops.members(way):
      found = jax.jit(
        jax.shard_map(
          # All members have the first one's images, whose gradient would be summed over devices.
          lambda *args: [jax.vmap(one, (None, 0, 0))(*args)[i] for i in (0, 2)],
          mesh=mesh,
          in_specs=(P(), P('members'), P('members')),
          out_specs=P('members'),
          check_vma=check_vma,
        )
      )(x[0], w, factors)
    exact = [by_definition('strides', x[0], *own) for own in zip(w, factors, strict=True)]
    for ours, i in zip(found, (0, 2), strict=True):
      close(ours, np.stack([results[i] for results in exact]))


def test_bfloat16():
  x, w, factors = (jnp.asarray(a, jnp.bfloat16) for a in arrays('groups'))
  exact = [by_definition('groups', *own) for own in zip(x, w, factors, strict=True)]
  for way in WAYS:
    with ops.members(way):
      found = jax.jit(jax.vmap(with_gradients('groups')))(x, w, factors)
    for ours, theirs in zip(found, zip(*exact, strict=True), strict=True):
      assert ours.dtype == jnp.bfloat16
      close(ours, np.stack(theirs), 2**-6)


def test_nothing_changes_outside_of_vmap():
  x, w, _ = (a[0] for a in arrays('strides'))
  gradient = jax.jit(lambda x, w: jax.grad(loss(ops.conv_general_dilated), (0, 1))(x, w))
  for choice in ('auto', 'xla'):
    with ops.using(choice):
      before = gradient(x, w)
      with ops.members('batch'):
        np.testing.assert_array_equal(gradient(x, w)[0], before[0])
        np.testing.assert_array_equal(gradient(x, w)[1], before[1])


def test_xla_is_left_to_xla():
  x, w, factors = arrays('groups')
  program = jax.jit(jax.vmap(with_gradients('groups')))
  with ops.using('xla'):
    assert 'conv2d' not in str(jax.make_jaxpr(program)(x, w, factors))  # as ever, without a choice
    with ops.members('loop'):
      assert 'onednn' not in program.lower(x, w, factors).as_text()
      assert 'stablehlo.while' in program.lower(x, w, factors).as_text()


@pytest.mark.skipif(plugin.load() is None, reason='cnnjax-onednn is not installed')
def test_loops_call_the_plugin():
  program = jax.jit(jax.vmap(with_gradients('groups')))
  with ops.members('loop'):
    assert 'cnnjax_onednn_members' in program.lower(*arrays('groups')).as_text()


@pytest.mark.skipif(plugin.load() is None, reason='cnnjax-onednn is not installed')
@pytest.mark.parametrize('members', [1, 3, 4, 9])
@pytest.mark.parametrize('threads', [1, 2])
def test_members_share_threads(members, threads, monkeypatch):
  """Fewer than twice the threads one after the other in all threads, more in a thread each."""
  monkeypatch.setattr(plugin, 'threads', lambda *_: threads)
  x, w, factors = (np.concatenate([a] * 3)[:members] for a in arrays('groups'))
  with ops.members('loop'):
    found = jax.jit(jax.vmap(with_gradients('groups')))(x, w, factors)
  exact = [by_definition('groups', *own) for own in zip(x, w, factors, strict=True)]
  for ours, theirs in zip(found, zip(*exact, strict=True), strict=True):
    close(ours, np.stack(theirs))


@pytest.mark.skipif(plugin.load() is None, reason='cnnjax-onednn is not installed')
def test_wrong_members_are_an_error_and_no_crash():
  call = jax.ffi.ffi_call(
    'cnnjax_onednn_members', jax.ShapeDtypeStruct((2, 1, 2, 2, 4), np.float32)
  )
  x, w = np.ones((2, 1, 4, 4, 3), np.float32), np.ones((2, 3, 3, 3, 4), np.float32)
  attributes = {
    'kind': np.int64(0),
    'members': np.int64(2),
    'strides': np.array([1, 1]),
    'padding': np.array([0, 0, 0, 0]),
    'dilation': np.array([1, 1]),
    'groups': np.int64(1),
    'threads': np.int64(1),
  }
  np.testing.assert_array_equal(call(x, w, **attributes), np.full((2, 1, 2, 2, 4), 27.0))
  np.testing.assert_array_equal(call(x[0], w, **attributes), np.full((2, 1, 2, 2, 4), 27.0))
  for change in ({'members': np.int64(3)}, {'members': np.int64(0)}, {'kind': np.int64(3)}):
    with pytest.raises(Exception, match='cnnjax_onednn: '):
      jax.block_until_ready(call(x, w, **{**attributes, **change}))
  with pytest.raises(Exception, match='cnnjax_onednn: '):
    jax.block_until_ready(call(x, w[:1], **attributes))
