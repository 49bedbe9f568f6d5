"""LeNets, AlexNets, ZFNet and NIN against NumPy; options of these and of VGG to Xception.

What has a public PyTorch definition is tested against it in test_golden.py and test_cases.py.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from cnnjax.errors import UserError
from cnnjax.layers.norm import BatchNorm
from cnnjax.models import alexnet, lenet, nin, xception, zfnet

KEY = jax.random.key(0)

# By hand, and where there is a public definition tried out in PyTorch: the next smaller fails.
SMALLEST = {
  'alexnet': 63,
  'alexnet_2012': 67,
  'zfnet': 53,
  'nin': 39,
  'nin_cifar': 4,
  'vgg11': 32,
  'vgg19_bn': 32,
  'googlenet': 15,
  'inception_v3': 75,
  'squeezenet1_0': 21,
  'squeezenet1_1': 17,
  'xception': 7,
  'xception41': 1,
  'lenet1': 1,
  'lenet5_1998': 1,
}


def shapes(model, image):
  return jax.eval_shape(partial(model.init, KEY), jax.ShapeDtypeStruct((2, *image), jnp.float32))


def noise(model, images):
  """Variables without compiling an initialiser; the largest are zero, for time."""
  rng = np.random.default_rng(1)

  def leaf(path, like):
    if like.size > 10**6:
      return jnp.zeros(like.shape)
    values = rng.normal(size=like.shape)
    if path[-1].key == 'kernel':
      values = values * (2 / np.prod(like.shape[:-1])) ** 0.5
    elif path[-1].key in ('scale', 'var'):
      values = 1 + 0.1 * np.abs(values)
    return jnp.asarray(values, jnp.float32)

  return jax.tree_util.tree_map_with_path(leaf, shapes(model, images.shape[1:]))


def normal(*shape):
  return jnp.float32(np.random.default_rng(0).normal(size=shape))


def convolve(x, params, *, strides=1, padding=0, groups=1):
  """[N, H, W, C] by [k, k, C / groups, F], one group after the other, in float64."""
  kernel, bias = (np.asarray(params[k], np.float64) for k in ('kernel', 'bias'))
  pad = (padding, padding)
  x = np.pad(np.asarray(x, np.float64), ((0, 0), pad, pad, (0, 0)))
  parts = [
    np.einsum(
      'nhwcij,ijcf->nhwf',
      np.lib.stride_tricks.sliding_window_view(xs, kernel.shape[:2], (1, 2))[
        :, ::strides, ::strides
      ],
      ks,
      optimize=True,
    )
    for xs, ks in zip(np.split(x, groups, -1), np.split(kernel, groups, -1), strict=True)
  ]
  return np.concatenate(parts, -1) + bias


def pool(x, *, window=3, strides=2, padding=0, ceil=False, reduce=np.max):
  """Windows cut off at the image's edges; as in PyTorch, but for averages over padding."""
  size = lambda n: (n + 2 * padding - window + (strides - 1) * ceil) // strides + 1
  rows = [
    [
      reduce(
        x[
          :,
          max(i * strides - padding, 0) : i * strides - padding + window,
          max(j * strides - padding, 0) : j * strides - padding + window,
        ],
        axis=(1, 2),
      )
      for j in range(size(x.shape[2]))
    ]
    for i in range(size(x.shape[1]))
  ]
  return np.stack([np.stack(row, 1) for row in rows], 1)


def response_norm(x):
  squares = np.pad(x**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
  total = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
  return x / (2 + 1e-4 * total) ** 0.75


def relu(x):
  return np.maximum(x, 0)


def narrow(layers, *features):
  return tuple(layer._replace(features=f) for layer, f in zip(layers, features, strict=True))


def close(ours, want):
  np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_two_towers_normalised_responses_then_pooling():
  # Normalised responses near 1: large inputs make the normalisation count.
  model = models.create('alexnet_2012', num_classes=5).clone(
    layers=narrow(models.REGISTRY['alexnet_2012'].build.keywords['layers'], 8, 6, 4, 4, 6)
  )
  images = 100 * normal(1, 83, 75, 3)
  variables = noise(model, images)
  found = jax.jit(partial(models.features, model, names=['stage2', 'stage3', 'stage4']))(
    variables, images
  )
  stage = lambda i: variables['params'][f'stage{i}']['conv']
  x = pool(response_norm(relu(convolve(images, stage(1), strides=4))))
  x = pool(response_norm(relu(convolve(x, stage(2), padding=2, groups=2))))
  close(found['stage2'], x)
  x = relu(convolve(x, stage(3), padding=1))
  close(found['stage3'], x)
  close(found['stage4'], relu(convolve(x, stage(4), padding=1, groups=2)))


def test_zfnet_pools_then_normalises():
  model = models.create('zfnet').clone(
    layers=narrow(models.REGISTRY['zfnet'].build.keywords['layers'], 8, 6, 4, 4, 4)
  )
  images = 100 * normal(1, 61, 67, 3)
  variables = noise(model, images)
  found = jax.jit(partial(models.features, model, names=['stage2', 'stage5']))(variables, images)
  stage = lambda i: variables['params'][f'stage{i}']['conv']
  x = response_norm(pool(relu(convolve(images, stage(1), strides=2, padding=1)), padding=1))
  x = response_norm(pool(relu(convolve(x, stage(2), strides=2)), padding=1))
  close(found['stage2'], x)
  for i in (3, 4, 5):
    x = relu(convolve(x, stage(i), padding=1))
  close(found['stage5'], pool(x))


def test_map_sizes_of_the_papers():
  for name, sizes in (('alexnet_2012', (27, 13, 13, 13, 6)), ('zfnet', (55, 13, 13, 13, 6))):
    entry = models.REGISTRY[name]
    model = entry.build()
    seen = jax.eval_shape(
      partial(models.features, model, names=[f'stage{i}' for i in range(1, 6)]),
      shapes(model, entry.image),
      jax.ShapeDtypeStruct((2, *entry.image), jnp.float32),
    )
    assert tuple(leaf.shape[1] for leaf in seen.values()) == sizes


def test_alexnet_2012_starts_as_its_paper_says():
  model = (
    models.REGISTRY['alexnet_2012']
    .build(num_classes=3)
    .clone(layers=narrow(models.REGISTRY['alexnet_2012'].build.keywords['layers'], 64, 2, 2, 2, 2))
  )

  @jax.jit  # leaves out what isn't asked for
  def start():
    params = model.init(KEY, jnp.ones((1, 67, 67, 3)))['params']
    convs, head = [params[f'stage{i}']['conv'] for i in range(1, 6)], params['head']
    biases = [layer['bias'][0] for layer in (*convs, *(head[k] for k in layers))]
    return biases, convs[0]['kernel'].std(), head['logits']['kernel'].std()

  layers = ('dense1', 'dense2', 'logits')
  biases, *deviations = start()
  assert biases == [0, 1, 0, 1, 1, 1, 1, 0]
  np.testing.assert_allclose(deviations, 0.01, rtol=0.02)


@pytest.mark.parametrize('size', [(9, 12), (14, 7)])
def test_nin(size):
  model = models.create('nin_cifar', num_classes=5)
  images = normal(2, *size, 3)
  variables = noise(model, images)
  x = images
  for i, (kernel, kind) in enumerate(((5, np.max), (5, np.mean), (3, None)), 1):
    params = variables['params'][f'stage{i}']
    x = relu(convolve(x, params['conv1'], padding=kernel // 2))
    x = relu(convolve(relu(convolve(x, params['conv2'])), params['conv3']))
    x = x if kind is None else pool(x, ceil=True, reduce=kind)
  close(jax.jit(model.apply)(variables, images), x.mean((1, 2)))


# Table I of the 1998 paper, as printed: for each map of S2 the maps of C3 that see it.
PRINTED_1998 = (
  (0, 4, 5, 6, 9, 10, 11, 12, 14, 15),
  (0, 1, 5, 6, 7, 10, 11, 12, 13, 15),
  (0, 1, 2, 6, 7, 8, 11, 13, 14, 15),
  (1, 2, 3, 6, 7, 8, 9, 12, 14, 15),
  (2, 3, 4, 7, 8, 9, 10, 12, 13, 15),
  (3, 4, 5, 8, 9, 10, 11, 13, 14, 15),
)
# Table 1 of the 1990 paper, its maps counted from 0.
PRINTED_1990 = ((0, 1, 2, 4, 5), (1, 2, 3, 4, 5), (6, 7, 8, 10, 11), (7, 8, 9, 10, 11))


@pytest.mark.parametrize(
  ('name', 'printed', 'table', 'canvas'),
  [
    ('lenet5_1998', PRINTED_1998, lenet.TABLE_1998, 32),
    ('lenet1', PRINTED_1990, lenet.TABLE_1990, 28),
  ],
)
@pytest.mark.parametrize('size', [(20, 27), (34, 33)])
def test_original_lenets(name, printed, table, canvas, size):
  seen = tuple(tuple(i for i, row in enumerate(printed) if j in row) for j in range(len(table)))
  assert table == seen
  images = normal(3, *size, 1)
  model = models.create(name, num_classes=10)
  variables = noise(model, images)
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables['params'])
  squash = lambda x: 1.7159 * np.tanh(2 / 3 * x)

  def subsample(x, p):
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    total = x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]
    return squash(total * p['scale'] + p['bias'])

  border = [(max(canvas - s, 0) // 2, (max(canvas - s, 0) + 1) // 2) for s in size]
  x = np.pad(images, ((0, 0), *border, (0, 0)))
  stage = params['stage1']
  x = subsample(squash(convolve(x, stage['conv'])), stage['pool'])
  stage, maps, used = params['stage2'], [], {}
  for inputs in table:  # one map at a time, each with its own kernel
    fan = len(inputs)
    column = used[fan] = used.get(fan, -1) + 1
    one = jax.tree.map(lambda p, c=column: p[..., c : c + 1], stage[f'conv{fan}'])
    maps.append(convolve(x[..., list(inputs)], one))
  x = subsample(squash(np.concatenate(maps, -1)), stage['pool'])
  x, head = x.reshape(len(x), -1), params['head']
  if name == 'lenet1':
    want = x @ head['logits']['kernel'] + head['logits']['bias']
  else:
    for layer in ('dense1', 'dense2'):
      x = squash(x @ head[layer]['kernel'] + head[layer]['bias'])
    want = -np.stack([((x - code) ** 2).sum(1) for code in lenet.rbf_codes(10, 84)], 1)
  close(jax.jit(model.apply)(variables, images), want)


def test_rbf_codes():
  codes = lenet.rbf_codes(100, 84)
  assert set(codes.ravel().tolist()) == {-1.0, 1.0}
  assert len(np.unique(codes, axis=0)) == 100
  np.testing.assert_array_equal(codes[:10], lenet.rbf_codes(10, 84))
  assert np.abs(codes @ codes.T - 84 * np.eye(100)).max() < 50  # nearly orthogonal
  np.testing.assert_allclose(lenet.scaled_tanh(jnp.asarray([1.0, -1.0])), [1, -1], atol=1e-4)


def test_original_lenet_starts_within_the_papers_bounds():
  params = jax.jit(models.create('lenet5_1998').init)(KEY, jnp.ones((1, 32, 32, 1)))['params']
  fans = {
    ('stage1', 'conv'): 25,
    ('stage2', 'conv3'): 75,
    ('stage2', 'conv4'): 100,
    ('stage2', 'conv6'): 150,
    ('stage2', 'pool'): 4,
    ('head', 'dense1'): 400,
    ('head', 'dense2'): 120,
  }
  for (stage, layer), fan in fans.items():
    leaves = jax.tree.leaves(params[stage][layer])
    for leaf in leaves:
      assert 0 < jnp.abs(leaf).max() <= 2.4 / fan
    assert max(float(jnp.abs(leaf).max()) for leaf in leaves) > 0.7 * 2.4 / fan


@pytest.mark.parametrize(('name', 'smallest'), SMALLEST.items())
def test_smallest_image(name, smallest):
  model = models.create(name, num_classes=3)
  channels = models.REGISTRY[name].image[-1]
  for size in ((smallest, smallest + 5), (smallest + 4, smallest)):
    image = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    logits = jax.eval_shape(model.apply, shapes(model, image.shape[1:]), image)
    assert (logits.shape, logits.dtype) == ((1, 3), jnp.float32)
  with pytest.raises(UserError, match=f'smallest that works is {smallest}x{smallest}'):
    shapes(model, (smallest + 9, smallest - 1, channels))
  if smallest > 1 and hasattr(model, 'smallest'):  # it isn't stricter than it must be
    with pytest.raises((UserError, ValueError, TypeError)):
      shapes(model.clone(smallest=1), (smallest + 9, smallest - 1, channels))


@pytest.mark.parametrize('name', sorted(SMALLEST))
def test_bfloat16_channels_and_parameters(name):
  size = max(SMALLEST[name], 8) + 3
  model = models.create(name, num_classes=3, dtype='bfloat16')
  variables = shapes(model, (size, size + 2, 5))
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  images = jax.ShapeDtypeStruct((2, size, size + 2, 5), jnp.float32)
  types = {
    v.aval.dtype for e in jax.make_jaxpr(model.apply)(variables, images).eqns for v in e.outvars
  }
  assert jnp.dtype('bfloat16') in types
  assert jax.eval_shape(model.apply, variables, images).dtype == jnp.float32


@pytest.mark.parametrize('name', ['alexnet', 'vgg11', 'nin_cifar', 'squeezenet1_1', 'googlenet'])
def test_dropout_is_where_training_needs_a_key(name):
  model = models.create(name, num_classes=3)
  images = jax.ShapeDtypeStruct((2, 70, 70, 3), jnp.float32)
  variables = shapes(model, (70, 70, 3))
  run = lambda **options: jax.eval_shape(
    lambda v, x: model.apply(v, x, train=True, mutable=True, **options)[1], variables, images
  )
  with pytest.raises(Exception, match='dropout'):
    run()
  layers = run(rngs={'dropout': KEY})['examples']
  expected = {'alexnet': 2, 'vgg11': 2, 'nin_cifar': 2}.get(name, 1)
  assert [leaf.shape for leaf in jax.tree.leaves(layers)] == [(2,)] * expected


def test_dropout_precedes_the_layers_of_the_definitions():
  for name, layers in (('alexnet', {'dropout1', 'dropout2'}), ('vgg11', {'dropout2', 'dropout3'})):
    model = models.create(name)
    variables = shapes(model, (70, 70, 3))
    _, state = jax.eval_shape(
      lambda v, m=model: m.apply(v, jnp.ones((1, 70, 70, 3)), mutable=['examples']), variables
    )
    assert set(state['examples']['head']) == layers


@pytest.mark.parametrize('name', ['googlenet', 'inception_v3', 'xception', 'xception41'])
def test_remat_keeps_the_variables(name):
  size = SMALLEST[name] + 8
  plain, again = (models.create(name, remat=remat) for remat in (False, True))
  variables = shapes(plain, (size, size, 3))
  assert variables == shapes(again, (size, size, 3))
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  for model, expected in ((plain, False), (again, True)):
    jaxpr = jax.make_jaxpr(model.apply)(variables, images)
    found = {equation.primitive.name for equation in jaxpr.eqns}
    assert any('remat' in name or 'checkpoint' in name for name in found) == expected


@pytest.mark.parametrize('name', ['vgg11', 'squeezenet1_1', 'nin_cifar', 'googlenet', 'xception'])
def test_norm_is_a_partial(name):
  for norm in (BatchNorm, None):
    variables = shapes(models.create(name, norm=norm), (70, 70, 3))
    assert ('batch_stats' in variables) == (norm is BatchNorm)


def test_the_papers_googlenet_has_wide_kernels():
  image = (32, 32, 3)
  size = lambda **options: sum(
    leaf.size for leaf in jax.tree.leaves(shapes(models.create('googlenet', **options), image))
  )
  widths = [block[3:5] for stage in models.googlenet.STAGES for block in stage]
  assert size(wide_kernel=5) - size() == sum(16 * a * b for a, b in widths)


def test_features_have_stable_names():
  model = models.create('inception_v3')
  images = jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32)
  found = jax.eval_shape(partial(models.features, model), shapes(model, (75, 75, 3)), images)
  expected = {'stem', 'stage1', 'stage2/block5', 'stage3/block2/branch3x3_2a/conv', 'head'}
  assert expected <= found.keys()
  assert found['stage3'].shape == (1, 1, 1, 2048)


def test_every_file_lists_its_models():
  for file, expected in (
    (alexnet, {'alexnet', 'alexnet_2012'}),
    (zfnet, {'zfnet'}),
    (nin, {'nin', 'nin_cifar'}),
    (lenet, {'lenet1', 'lenet5', 'lenet5_1998'}),
    (xception, {'xception', 'xception41', 'xception65'}),
  ):
    assert file.VARIANTS.keys() == expected
    assert expected <= set(models.names())
