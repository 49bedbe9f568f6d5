"""The matrix against the layer and its Jacobian; the Fourier transform against the dense SVD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental import sparse

from cnnjax.analysis import toeplitz
from cnnjax.errors import UserError
from tests.models import quick


def draw(rng, circular=False):
  """A random convolution: kernel, image shape and options."""
  groups = int(rng.choice([1, 1, 2, 3]))
  inner, outer = rng.integers(1, 4, 2)
  strides, dilation = (tuple(map(int, rng.integers(1, 4, 2))) for _ in range(2))
  kernel = rng.standard_normal((*rng.integers(1, 5, 2), inner, outer * groups))
  if circular:
    size = tuple(int(s * n) for s, n in zip(strides, rng.integers(1, 4, 2), strict=True))
  else:
    size = tuple(map(int, rng.integers(8, 13, 2)))
  options = {'strides': strides, 'dilation': dilation, 'groups': groups}
  return np.float32(kernel), (*size, int(inner) * groups), options


def layer(kernel, options, padding):
  """flax's convolution as a function of one image."""
  conv = nn.Conv(
    kernel.shape[3],
    kernel.shape[:2],
    strides=options['strides'],
    kernel_dilation=options['dilation'],
    feature_group_count=options['groups'],
    padding=padding,
    use_bias=False,
  )
  return lambda image: conv.apply({'params': {'kernel': kernel}}, image)


PADDINGS = ('SAME', 'VALID', 'CIRCULAR', 'drawn')


def test_200_random_layers():
  cases = []
  for seed in range(200):
    rng, padding = np.random.default_rng(seed), PADDINGS[seed % 4]
    kernel, shape, options = draw(rng)
    if padding == 'VALID':
      kernel, options['dilation'] = kernel[:3, :3], (min(options['dilation'][0], 2), 1)
    elif padding == 'drawn':
      padding = tuple(map(tuple, rng.integers(3, 6, (2, 2)).tolist()))
    cases.append((kernel, np.float32(rng.standard_normal(shape)), options, padding))

  def layers(images):
    return [
      layer(kernel, options, padding)(image)
      for image, (kernel, _, options, padding) in zip(images, cases, strict=True)
    ]

  # One program: compiling 200 takes ten times as long.
  run = jax.jit(layers, compiler_options=quick.UNOPTIMISED)
  found = run([image for _, image, _, _ in cases])
  for expected, (kernel, image, options, padding) in zip(found, cases, strict=True):
    product = toeplitz.matrix(kernel, image.shape, padding=padding, **options) @ image.ravel()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(product, expected.ravel(), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize('padding', ['SAME', 'CIRCULAR'])
def test_it_is_the_jacobian(padding):
  kernel, shape, options = draw(np.random.default_rng(1))
  image = jnp.zeros(shape)
  jacobian = jax.jacobian(layer(kernel, options, padding))(image)
  found = toeplitz.matrix(kernel, shape, padding=padding, **options)
  np.testing.assert_array_equal(found.toarray(), np.asarray(jacobian).reshape(found.shape))
  by_jax = sparse.BCOO.from_scipy_sparse(found).todense()
  np.testing.assert_array_equal(by_jax, found.toarray())


def test_by_hand():
  kernel = np.float32([1, 2, 3]).reshape(1, 3, 1, 1)
  same = toeplitz.matrix(kernel, (1, 4, 1)).toarray()
  expected = [[2, 3, 0, 0], [1, 2, 3, 0], [0, 1, 2, 3], [0, 0, 1, 2]]
  np.testing.assert_array_equal(same, np.float32(expected))
  assert toeplitz.rank(kernel, (1, 4, 1), padding='VALID') == 2
  # A difference of neighbours on a circle doesn't see the mean.
  difference = np.float32([-1, 1]).reshape(1, 2, 1, 1)
  assert toeplitz.rank(difference, (1, 6, 1), padding='CIRCULAR') == 5
  values = toeplitz.singular_values(difference, (1, 6))
  np.testing.assert_allclose(values[[0, -1]], [2, 0], atol=1e-12)


def test_singular_values_are_the_dense_ones():
  for seed in range(40):
    kernel, shape, options = draw(np.random.default_rng(seed), circular=True)
    dense = toeplitz.matrix(np.float64(kernel), shape, padding='CIRCULAR', **options).toarray()
    found = toeplitz.singular_values(kernel, shape[:2], **options)
    expected = np.linalg.svd(dense, compute_uv=False)
    size = max(len(found), len(expected))
    found, expected = (np.pad(v, (0, size - len(v))) for v in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * expected[0])


def test_the_bound_holds_and_is_near():
  for seed in range(20):
    kernel, (_, _, channels), options = draw(np.random.default_rng(seed))
    shape = (6, 5, channels)
    bound = toeplitz.lipschitz_bound(kernel, shape[:2], **options)
    for padding in ('SAME', ((5, 4), (6, 5))):
      dense = toeplitz.matrix(np.float64(kernel), shape, padding=padding, **options).toarray()
      norm = np.linalg.norm(dense, 2)
      assert norm <= bound * (1 + 1e-9)
  kernel, size = np.float32(np.ones((3, 3, 1, 1))), (64, 64)
  norm = np.linalg.norm(toeplitz.matrix(kernel[:1], (1, 64, 1)).toarray(), 2)
  assert toeplitz.lipschitz_bound(kernel[:1], (1, 64)) == pytest.approx(norm, rel=0.01)
  assert toeplitz.lipschitz_bound(kernel, size) == pytest.approx(9)


@pytest.mark.parametrize(
  ('kernel', 'shape', 'options', 'message'),
  [
    ((3, 3, 2, 4), (8, 8, 3), {}, 'images of 2 channels, not 3'),
    ((3, 3, 2, 3), (8, 8, 4), {'groups': 2}, 'multiple of groups=2'),
    ((3, 3, 1, 1), (2, 8, 1), {'padding': 'VALID'}, 'no place on 2 pixels'),
    ((3, 3, 1, 1), (8, 8, 1), {'padding': 'FULL'}, 'allowed'),
  ],
)
def test_refused(kernel, shape, options, message):
  with pytest.raises(UserError, match=message):
    toeplitz.matrix(np.zeros(kernel), shape, **options)
