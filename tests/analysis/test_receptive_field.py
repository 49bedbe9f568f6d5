"""Fields against published numbers, and against the support of the gradient."""

import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cnnjax import analysis, models
from cnnjax.errors import UserError
from cnnjax.layers.pool import adaptive_avg_pool, avg_pool, blur_pool
from tests.models import quick

# Araujo, Norris & Sim 2019, table 1; torchvision's v1.5 and one-tower AlexNet, and VGG-16's
# conv5_3, by its equation 2. Inception v3 there and here differ in padding, not in windows.
KNOWN = {
  ('resnet50_v1', 'stage4'): 483,
  ('resnet50', 'stage4'): 427,
  ('resnet101_v1', 'stage4'): 1027,
  ('vgg16', 'stage5/conv3'): 196,
  ('vgg16', 'stage5'): 212,
  ('alexnet', 'stage5/conv'): 163,
  ('alexnet', 'stage5'): 195,
  ('mobilenetv1_100', 'stage5'): 315,
  ('inception_v3', 'stage3'): 1311,
}


@pytest.mark.parametrize('name', dict.fromkeys(name for name, _ in KNOWN))
def test_known_values(name):
  found = {f.name: f for f in analysis.fields(models.create(name), models.REGISTRY[name].image)}
  for (model, layer), size in KNOWN.items():
    if model == name:
      assert found[layer].size == (size, size)
      assert found[layer].stride == ((16, 16) if 'conv' in layer else (32, 32))
  side, _, _ = models.REGISTRY[name].image
  assert found[''] == found['head']._replace(name='')
  assert found['head'][2:] == ((side, side), (0, 0), ((side - 1) / 2,) * 2)


KERNEL = np.random.default_rng(0).uniform(0.5, 1, (3, 2, 2, 4)).astype(np.float32)
SQUARE = np.random.default_rng(1).uniform(0.5, 1, (2, 2, 2, 2)).astype(np.float32)


def conv(x, kernel=KERNEL, *, strides=(2, 1), padding=((2, 0), (0, 1)), **options):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers, **options)


def same(x):
  return conv(x, SQUARE, strides=(1, 1), padding=((1, 0), (0, 1)))


def to_depth(x):
  """[N, H, W, C] -> [N, H / 3, W / 2, 6 C]."""
  n, h, w, c = x.shape
  return (
    x.reshape(n, h // 3, 3, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 3, w // 2, -1)
  )


def to_space(x):
  n, h, w, c = x.shape
  return x.reshape(n, h, w, 2, c // 2).transpose(0, 1, 3, 2, 4).reshape(n, 2 * h, w, c // 2)


@jax.custom_vjp
def own_gradient(x):
  return conv(x)


own_gradient.defvjp(lambda x: (conv(x), x), lambda x, g: jax.vjp(conv, x)[1](g))


def attend(x):
  tokens = x.reshape(-1, x.shape[-1])
  return (jax.nn.softmax(tokens @ tokens.T) @ tokens).reshape(x.shape)


EXACT = {
  'convolution': conv,
  'dilated, grouped': lambda x: conv(
    x, KERNEL[:, :, :1], rhs_dilation=(2, 3), feature_group_count=2
  ),
  'two of them': lambda x: conv(conv(x), SQUARE.repeat(2, 2), strides=(1, 3)),
  'transposed': lambda x: conv(x, strides=(1, 1), lhs_dilation=(2, 3), padding=((1, 1), (2, 0))),
  'untied': lambda x: jnp.einsum(
    'nhwk,hwko->nhwo',
    lax.conv_general_dilated_patches(
      x, (3, 2), (2, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    ),
    np.ones((5, 11, 12, 1), np.float32),
  ),
  'cropped': lambda x: conv(x, padding=((-2, -1), (-1, 0))),
  'circular': lambda x: conv(
    jnp.pad(x, ((0, 0), (1, 1), (1, 0), (0, 0)), mode='wrap'), padding='VALID'
  ),
  'sums': lambda x: avg_pool(x, (3, 2), strides=(2, 1), padding=1),
  'means of tiles': lambda x: avg_pool(x, (3, 2)),
  'taps': lambda x: avg_pool(x, (2, 1)),
  'maxima': lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 5, 2, 1), (1, 2, 2, 1), 'VALID'),
  'blur': lambda x: blur_pool(x, strides=(2, 1)),
  'strided': lambda x: x[:, 1::3, 2::2],
  'flipped': lambda x: conv(x[:, ::-1, :]),
  'turned': lambda x: conv(conv(x, SQUARE).swapaxes(1, 2)).swapaxes(1, 2),
  'parts': lambda x: jnp.concatenate([y + 1 for y in jnp.split(x, [4, 6], axis=1)], 1),
  'patches': lambda x: jnp.einsum('nhwc,cd->nhwd', to_depth(x), np.ones((12, 3), np.float32)),
  'to depth and back': lambda x: to_space(conv(x, strides=(1, 1))),
  'repeated': lambda x: conv(jnp.repeat(jnp.repeat(x, 2, 1), 3, 2), strides=(1, 1)),
  'branches': lambda x: jnp.concatenate([conv(x, strides=(2, 2)), x[:, ::2, 1::2]], -1),
  'channels mixed': lambda x: jnp.cumsum(jnp.sort(conv(x), -1)[..., np.array([1, 0])], -1),
  'functions': lambda x: jax.checkpoint(jax.jit(jax.nn.relu))(own_gradient(x)),
  'turns': lambda x: lax.fori_loop(0, 3, lambda i, x: same(x), x),
  'stacked turns': lambda x: lax.scan(lambda x, _: (same(x), x), x, None, length=3)[1].sum(0),
}
LARGER = {
  'rolled': lambda x: conv(jnp.roll(x, 2, axis=1)),
  'repeated after a stride': lambda x: to_space(conv(x)),
  'a gate by rows': lambda x: conv(x, strides=(1, 1)) * x.mean((2, 3), keepdims=True),
}
# What sees all of the image, or so it must be taken for.
WHOLE = {
  'global mean': lambda x: conv(x, strides=(1, 1)).mean((1, 2)),
  'gate': lambda x: conv(x * jax.nn.sigmoid(x.mean((1, 2), keepdims=True))),
  'dense': lambda x: x.reshape(1, -1) @ np.ones((288, 3), np.float32),
  'attention': attend,
  'its own kernel': lambda x: conv(x, KERNEL * x.sum()),
  'uneven bins': lambda x: adaptive_avg_pool(x, 5),
  'channels picked by the image': lambda x: jnp.take_along_axis(
    x, jnp.argmax(x, -1, keepdims=True), -1
  ),
  'place picked by the image': lambda x: lax.dynamic_slice(
    x, (0, jnp.int32(jnp.argmax(x.sum((0, 2, 3)))), 0, 0), (1, 3, 12, 2)
  ),
  'two strides': lambda x: x[:, 6:, 6:] + x[:, ::2, ::2],
  'while': lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: 2 * x, x),
  'cond': lambda x: lax.cond(x[0, 0, 0, 0] > 0, lambda: x, lambda: 2 * x),
}
IMAGES = np.random.default_rng(2).uniform(size=(1, 12, 12, 2)).astype(np.float32)


@pytest.mark.parametrize('name', [*EXACT, *LARGER])
def test_the_support_of_the_jacobian(name):
  fn, exact = {**EXACT, **LARGER}[name], name in EXACT
  field = analysis.fields_fn(fn, IMAGES)[-1]
  jacobian = jax.jit(jax.jacrev(fn), compiler_options=quick.UNOPTIMISED)(IMAGES)
  assert field.output == jacobian.shape[:4]
  hit = np.asarray(jacobian != 0).any((0, 3, 4, 7))  # [H', W', H, W]
  for axis in (0, 1):
    along = hit.any((1 - axis, 3 - axis))  # by turns [H', H] and [W', W]
    spans = []
    for i, row in enumerate(along):
      centre = field.offset[axis] + field.stride[axis] * i
      low, high = centre - (field.size[axis] - 1) / 2, centre + (field.size[axis] - 1) / 2
      if not row.any():
        continue
      first, last = row.nonzero()[0][[0, -1]]
      if not exact:
        assert low <= first <= last <= high
      elif low >= 0 and high <= 11:
        spans.append(last - first + 1)
        if float(field.stride[axis]).is_integer():
          assert (first, last) == (low, high)
        else:  # the fields of neighbours differ in size
          assert abs((first + last) / 2 - centre) <= 0.5
    assert not exact or max(spans) == field.size[axis]


@pytest.mark.parametrize('name', WHOLE)
def test_the_whole(name):
  field = analysis.fields_fn(WHOLE[name], IMAGES)[-1]
  assert field[2:] == ((12, 12), (0, 0), (5.5, 5.5))


def test_a_signal_and_scopes():
  def fn(signal, kernel):
    with jax.named_scope('a'):
      y = jnp.convolve(signal, kernel, mode='valid')
    with jax.named_scope('b'):
      return y[::2]

  signal, kernel = jnp.zeros(20), jnp.ones(5)
  found = analysis.fields_fn(fn, signal, kernel, axes=(0,))
  assert found[-3:] == (
    analysis.Field('a', (16,), (5,), (1,), (2,)),
    analysis.Field('b', (8,), (5,), (2,), (2,)),
    analysis.Field('', (8,), (5,), (2,), (2,)),
  )
  with pytest.raises(UserError, match='axes'):
    analysis.fields_fn(fn, signal, kernel)


def test_axes_of_one_element_do_not_move():
  fn = lambda x: x.reshape(1, 12, 1, 12, 2)
  assert analysis.fields_fn(fn, IMAGES)[-1][1:4] == ((1, 12, 1, 12, 2), (1, 1), (1, 1))


class _Net(nn.Module):
  """Its block is called twice; its last pixels fit into no window."""

  @nn.compact
  def __call__(self, x):
    block = nn.Conv(4, (3, 3), padding='VALID', name='block')
    x = nn.Conv(4, (2, 2), strides=3, padding='VALID', name='stem')(x)
    return block(block(x)).mean((1, 2))


def test_names_and_the_pixels_that_nothing_sees():
  assert analysis.fields(_Net(), (20, 21, 4)) == (
    analysis.Field('stem', (1, 7, 7, 4), (2, 2), (3, 3), (0.5, 0.5)),
    analysis.Field('block', (1, 3, 3, 4), (14, 14), (3, 3), (6.5, 6.5)),
    analysis.Field('', (1, 4), (20, 20), (0, 0), (9.5, 9.5)),
  )


def test_methods_are_no_modules():
  layer = nn.MultiHeadDotProductAttention(2)
  names = [f.name for f in analysis.fields(layer, (4, 6, 2))]
  assert names == ['query', 'key', 'value', 'out', '']


_FOUR = {'stage_sizes': (1, 1, 1, 1), 'features': 16}
_FOURS = {'stage_sizes': (1, 1, 1, 1), 'features': (16, 16, 16, 16)}
# By module of cnnjax.models: a model, cut down where blocks only repeat, and the image's height
# and width. Everything is exact but for fields that padding continues beyond the image's last
# pixels where no window fits; the sizes leave none.
ZOO = {
  'airbench': ('airbench', {}, (64, 64)),
  'alexnet': ('alexnet', {}, (223, 63)),
  'cnn': ('cnn', {}, (32, 32)),
  'convnext': ('convnext_tiny', _FOURS, (256, 64)),
  'convnext_v2': ('convnextv2_atto', {'stage_sizes': (1, 1), 'features': (16, 16)}, (64, 64)),
  'densenet': ('densenet121', {'stage_sizes': (2, 2, 2, 2)}, (256, 64)),
  'ecanet': ('ecaresnet50d', {'stage_sizes': (1, 1), 'features': 32}, (64, 64)),
  'efficientnet': ('efficientnet_b0', {}, (64, 64)),
  'efficientnet_lite': ('tf_efficientnet_lite0', {}, (128, 64)),
  'efficientnet_v2': ('efficientnet_v2_s', {}, (64, 64)),
  'ghostnet': ('ghostnet_050', {}, (64, 64)),
  'googlenet': ('googlenet', {}, (64, 64)),
  'inception': ('inception_v3', {}, (107, 75)),
  'lenet': ('lenet1', {}, (28, 28)),
  'mlp': ('mlp', {}, (28, 28)),
  'mnasnet': ('mnasnet0_5', {}, (64, 64)),
  'mobilenet_v1': ('mobilenetv1_100', {'width': 0.25}, (512, 64)),
  'mobilenet_v2': ('mobilenet_v2', {'width': 0.25}, (64, 64)),
  'mobilenet_v3': ('mobilenet_v3_small', {}, (64, 64)),
  'mobilenet_v4': ('mobilenetv4_conv_small', {}, (64, 64)),
  'nf_resnet': ('nf_resnet50', _FOUR, (256, 64)),
  'nin': ('nin_cifar', {}, (64, 64)),
  'regnet': ('regnet_x_400mf', {'depth': 8}, (256, 64)),
  'repvgg': ('repvgg_a0', _FOURS, (128, 64)),
  'resnet': ('resnet50_v1', _FOUR, (256, 64)),
  'resnet_blur': ('resnetblur50', _FOUR, (256, 64)),
  'resnet_d': ('resnet50d', _FOUR | {'features': 32}, (256, 64)),
  'resnetv2': ('resnetv2_50', _FOUR, (256, 64)),
  'resnext': ('resnext50_32x4d', {'stage_sizes': (1, 1, 1, 1)}, (256, 64)),
  'senet': ('seresnet50', {'stage_sizes': (1, 1), 'features': 16}, (64, 64)),
  'shufflenet_v2': ('shufflenet_v2_x0_5', {}, (64, 64)),
  'squeezenet': ('squeezenet1_0', {}, (129, 65)),
  'vgg': ('vgg11', {}, (256, 32)),
  'wide_resnet': ('wide_resnet50_2', _FOUR, (256, 64)),
  'xception': ('xception', {}, (103, 71)),
  'zfnet': ('zfnet', {}, (117, 53)),
}


# Of these the first two stages, but for the long tests.
DEEP = {
  *('efficientnet', 'efficientnet_lite', 'efficientnet_v2', 'ghostnet', 'googlenet', 'inception'),
  *('mnasnet', 'mobilenet_v2', 'mobilenet_v3', 'mobilenet_v4', 'shufflenet_v2', 'xception'),
}


def test_every_family_is_in_the_zoo():
  folder = pathlib.Path(models.__file__).parent
  families = {p.stem for p in folder.glob('*.py') if '\nVARIANTS = ' in p.read_text()}
  assert families == set(ZOO)


def open_variables(model, images):
  """Noise for kernels; biases of 1, so that of every layer some rectifiers are open."""
  rng = np.random.default_rng(1)

  def leaf(path, like):
    if path[-1].key == 'kernel' and len(like.shape) == 4:
      return jnp.float32(rng.normal(size=like.shape) * math.prod(like.shape[:-1]) ** -0.5)
    return jnp.full(
      like.shape, 0.01 if len(like.shape) == 2 else path[-1].key != 'mean', like.dtype
    )

  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
  return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.mark.parametrize(
  ('family', 'whole'),
  [
    *((family, family not in DEEP) for family in ZOO),
    *(pytest.param(family, True, marks=pytest.mark.long) for family in sorted(DEEP)),
  ],
)
def test_the_support_of_the_gradient(family, whole):
  """Of the middle output of every stage: NaN passes whatever the weights, but no shut rectifier."""
  name, overrides, side = ZOO[family]
  model = models.create(name, num_classes=4, **overrides)
  if not whole and len(getattr(model, 'stages', ())) > 3:
    model = model.clone(stages=model.stages[:2])
  shape = (*side, models.REGISTRY[name].image[2])
  found = [f for f in analysis.fields(model, shape) if f.name and '/' not in f.name]
  found = found if whole else found[:3]
  names = {f.name for f in found}
  images = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)

  def gradient(variables, images, cotangents):
    def outputs(images):
      keep = lambda module, _: '/'.join(module.path) in names
      _, state = model.apply(
        variables, images, capture_intermediates=keep, mutable=['intermediates']
      )
      return {name: state['intermediates'][name]['__call__'][0] for name in names}

    return jax.vjp(outputs, images)[1](cotangents)[0]

  gradient = jax.jit(gradient, compiler_options=quick.UNOPTIMISED)
  variables = open_variables(model, images)
  zeros = {f.name: np.zeros(f.output, np.float32) for f in found}
  for field in found:
    middle = [n // 2 for n in field.output[1:-1]]
    one = zeros[field.name].copy()
    one[(0, *middle)] = np.nan
    hit = np.asarray(gradient(variables, images, {**zeros, field.name: one}))[0].any(-1)
    for axis, i in enumerate(middle or (0, 0)):
      centre, reach = field.offset[axis] + field.stride[axis] * i, (field.size[axis] - 1) / 2
      support = hit.any(1 - axis).nonzero()[0]
      expected = (max(centre - reach, 0), min(centre + reach, side[axis] - 1))
      assert (support.min(), support.max()) == expected, field
