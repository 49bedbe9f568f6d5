"""Maps against hand-computed ones, and on photographs."""

from importlib import metadata

import flax.linen as nn
import jax
import numpy as np
import pytest
import scipy.stats

from cnnjax import models, pretrained
from cnnjax.analysis import attribution
from cnnjax.errors import UserError

LABELS = np.array([2, 0])


def pictures(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Linear(nn.Module):
  @nn.compact
  def __call__(self, images, train=False):
    return nn.Dense(3)(images.reshape(len(images), -1))


class Quadratic(nn.Module):
  """A class's score is its weights times the squares of the pixels."""

  @nn.compact
  def __call__(self, images, train=False):
    return Linear(name='linear')(images**2)


class Net(nn.Module):
  """A convolution, an activation and a head; `again` calls the convolution a second time."""

  head: str = 'gap'
  act: str = 'relu'
  stride: int = 1
  again: bool = False
  remat: bool = False

  @nn.compact
  def __call__(self, images, train=False):
    block = nn.remat(Block) if self.remat else Block
    block = block(models.ACTIVATIONS[self.act], self.stride, name='block')
    x = block(images)
    x = block(x) if self.again else x
    x = x.mean((1, 2)) if self.head == 'gap' else x.reshape(len(x), -1)
    return nn.Dense(3, name='head')(x)


class Block(nn.Module):
  act: object
  stride: int

  @nn.compact
  def __call__(self, x):
    return self.act(nn.Conv(2, (3, 3), (self.stride, self.stride), name='conv')(x))


def start(model, images):
  """Variables, also of biases that aren't 0."""
  variables = model.init(jax.random.key(0), images)
  leaves, tree = jax.tree.flatten(variables)
  values = [x + 0.1 * pictures(*x.shape, seed=i) for i, x in enumerate(leaves)]
  return jax.tree.unflatten(tree, values)


def kernel_of(variables, layer='head'):
  return np.asarray(variables['params'][layer]['kernel'])


def test_saliency_of_a_linear_model_is_its_weights():
  images = pictures(2, 3, 4, 2)
  variables = start(model := Linear(), images)
  w = kernel_of(variables, 'Dense_0').T[LABELS].reshape(images.shape)
  found = attribution.saliency(model, variables, images, LABELS)
  np.testing.assert_allclose(found, np.abs(w).max(-1), rtol=1e-6)


def quadratic():
  images = pictures(2, 16, 16, 2)
  variables = start(model := Quadratic(), images)
  w = np.asarray(variables['params']['linear']['Dense_0']['kernel'])
  return model, variables, images, w.T[LABELS].reshape(images.shape)


def test_integrated_gradients_of_a_quadratic():
  """Along the way the gradient is linear, so that its mean is the middle's, in any equal parts."""
  model, variables, images, w = quadratic()
  baseline = pictures(16, 16, 2, seed=1)
  found = attribution.integrated_gradients(
    model, variables, images, LABELS, steps=2, baseline=baseline
  )
  np.testing.assert_allclose(found, w * (images**2 - baseline**2), atol=1e-5)


def test_integrated_gradients_are_complete():
  images = pictures(2, 6, 6, 2)
  variables = start(model := Net(head='flat', act='tanh'), images)
  found = attribution.integrated_gradients(model, variables, images, LABELS, steps=100)
  scores = [model.apply(variables, x)[np.arange(2), LABELS] for x in (images, 0 * images)]
  assert np.abs(scores[0] - scores[1]).min() > 0.1
  np.testing.assert_allclose(found.sum((1, 2, 3)), scores[0] - scores[1], atol=1e-4)


def test_smooth_grad_of_a_quadratic():
  """The gradient is 2 w x, so that it shows the noise: its mean over 16 has a quarter of it."""
  model, variables, images, w = quadratic()
  smooth = jax.jit(
    lambda key, noise: attribution.smooth_grad(
      key, model, variables, images, LABELS, samples=16, noise=noise
    )
  )
  np.testing.assert_allclose(smooth(jax.random.key(0), 0.0), 2 * w * images, atol=1e-6)
  one, same, other = (np.asarray(smooth(jax.random.key(seed), 0.2)) for seed in (1, 1, 2))
  np.testing.assert_array_equal(one, same)
  assert (one != other).all()
  shares = (one / (2 * w) - images) / np.ptp(images, (1, 2, 3), keepdims=True)
  np.testing.assert_allclose(shares.std((1, 2, 3)), 0.2 / 4, rtol=0.15)


def test_grad_cam_of_average_pooling_is_cam():
  """Zhou et al. 2016: each channel counts with its weight in the head (here by the pixels)."""
  images = pictures(2, 5, 6, 2)
  variables = start(model := Net(), images)
  maps = np.asarray(models.features(model, variables, images, ['block'])['block'])
  expected = np.einsum('nhwk,nk->nhw', maps, kernel_of(variables).T[LABELS]) / 30
  assert (expected < 0).any()
  assert (expected > 0).any()
  for layer in (None, 'block'):
    found = attribution.grad_cam(model, variables, images, LABELS, layer=layer)
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-6)


def test_grad_cam_plus_plus_by_its_equation():
  images = pictures(2, 4, 3, 2)
  variables = start(model := Net(head='flat'), images)
  maps = np.asarray(models.features(model, variables, images, ['block'])['block'], np.float64)
  expected = np.zeros((2, 4, 3))
  for n, label in enumerate(LABELS):
    slopes = kernel_of(variables)[:, label].reshape(4, 3, 2).astype(np.float64)
    for k in range(2):
      a, g = maps[n, :, :, k], slopes[:, :, k]
      alpha = g**2 / (2 * g**2 + a.sum() * g**3)
      expected[n] += (alpha * np.maximum(g, 0)).sum() * a
  found = attribution.grad_cam(model, variables, images, LABELS, plus_plus=True)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert found.max() > 0.1


def test_grad_cam_is_resized_to_the_image():
  """A map [1, 2] on four columns: bilinear, with the values at the middle of their halves."""
  images = pictures(2, 2, 4, 2)
  model = Net(stride=2)
  variables = start(model, images)
  found = np.asarray(attribution.grad_cam(model, variables, images, LABELS))
  maps = np.asarray(models.features(model, variables, images, ['block'])['block'])
  heat = np.maximum(np.einsum('nhwk,nk->nhw', maps, kernel_of(variables).T[LABELS]) / 2, 0)
  mix = np.array([[1, 0.75, 0.25, 0], [0, 0.25, 0.75, 1]])
  np.testing.assert_allclose(found, np.repeat(heat @ mix, 2, 1), atol=1e-6)
  assert found.max() > 0


def test_grad_cam_of_a_layer_called_twice_is_of_its_last_call():
  """With rematerialisation and under jit too."""
  images = pictures(2, 4, 4, 2)
  variables = start(model := Net(again=True), images)
  maps = np.asarray(models.features(model, variables, images, ['block'])['block'])
  expected = np.einsum('nhwk,nk->nhw', maps, kernel_of(variables).T[LABELS]) / 16
  for copy in (model, Net(again=True, remat=True)):
    found = jax.jit(lambda v, x, copy=copy: attribution.grad_cam(copy, v, x, LABELS, layer='block'))
    np.testing.assert_allclose(found(variables, images), np.maximum(expected, 0), atol=1e-6)


def test_grad_cam_names_what_there_is():
  images = pictures(2, 4, 4, 2)
  variables = start(model := Net(), images)
  for layer in ('blok', 'head'):
    with pytest.raises(UserError, match=f"layer='{layer}' is unknown.*Allowed: block, block/conv$"):
      attribution.grad_cam(model, variables, images, LABELS, layer=layer)
  with pytest.raises(UserError, match='Linear has no submodule that returns a map'):
    attribution.grad_cam(Linear(), start(Linear(), images), images, LABELS)


class Dense(nn.Module):
  """Two layers with a ReLU each, the second bounded; a gate that has a relu6 in it."""

  gate: bool = False

  @nn.compact
  def __call__(self, images, train=False):
    x = nn.relu(nn.Dense(20, name='first')(images.reshape(len(images), -1)))
    x = nn.remat(Dense.bounded)(self, x)
    x = x * nn.hard_sigmoid(x - 2) if self.gate else x
    return nn.Dense(3, name='head')(x)

  def bounded(self, x):
    return nn.relu6(nn.Dense(20, name='second')(x))


@pytest.mark.parametrize('gate', [False, True])
def test_guided_backprop_of_two_layers(gate):
  images = 8 * pictures(2, 3, 3, 2)
  variables = start(model := Dense(gate), images)
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables['params'])
  first = images.reshape(2, -1) @ p['first']['kernel'] + p['first']['bias']
  second = np.maximum(first, 0) @ p['second']['kernel'] + p['second']['bias']
  assert (second > 6).any()
  back = p['head']['kernel'].T[LABELS]
  if gate:  # x (x + 1) / 6 from -1 to 5, x above
    x = np.clip(second, 0, 6)
    back = back * np.where(x < 5, (2 * x + 1) / 6, 1)
  back = np.where((second > 0) & (second < 6) & (back > 0), back, 0) @ p['second']['kernel'].T
  back = np.where((first > 0) & (back > 0), back, 0) @ p['first']['kernel'].T
  found = jax.jit(lambda v, x: attribution.guided_backprop(model, v, x, LABELS))(variables, images)
  np.testing.assert_allclose(found, back.reshape(images.shape), atol=1e-5)
  plain = jax.grad(lambda x: model.apply(variables, x)[np.arange(2), LABELS].sum())(images)
  assert np.abs(found - plain).max() > 0.1


def test_guided_backprop_needs_a_relu():
  images = pictures(2, 4, 4, 2)
  for act in ('tanh', 'hard_swish'):
    variables = start(model := Net(act=act), images)
    with pytest.raises(UserError, match='no activation of the model is'):
      attribution.guided_backprop(model, variables, images, LABELS)


def test_occlusion_square_by_square():
  """Squares of 3 by steps of 2 on 6 x 7: the last ones of a column end with the image."""
  images = pictures(2, 6, 7, 2)
  variables = start(model := Net(head='flat'), images)
  score = lambda x: np.asarray(model.apply(variables, x))[np.arange(2), LABELS]
  total, times = np.zeros((2, 6, 7)), np.zeros((6, 7))
  for y in (0, 2, 3):
    for x in (0, 2, 4):
      covered = images.copy()
      covered[:, y : y + 3, x : x + 3] = 0.5
      total[:, y : y + 3, x : x + 3] += (score(images) - score(covered))[:, None, None]
      times[y : y + 3, x : x + 3] += 1
  found = attribution.occlusion(
    model, variables, images, LABELS, window=3, stride=2, fill=0.5, batch_size=4
  )
  np.testing.assert_allclose(found, total / times, atol=1e-5)


def test_mistakes_are_told():
  images = pictures(2, 4, 5, 1)
  given = (Linear(), start(Linear(), images), images)
  with pytest.raises(UserError, match=r'window=5 must be in 1 to 4'):
    attribution.occlusion(*given, LABELS, window=5, stride=1)
  with pytest.raises(UserError, match=r'stride=3 must be in 1 to 2'):
    attribution.occlusion(*given, LABELS, window=2, stride=3)
  with pytest.raises(UserError, match=r'steps=0 must be at least 1'):
    attribution.integrated_gradients(*given, LABELS, steps=0)
  with pytest.raises(UserError, match=r'samples=0 must be at least 1'):
    attribution.smooth_grad(jax.random.key(0), *given, LABELS, samples=0)
  for explain in (attribution.saliency, attribution.grad_cam):
    model = given if explain is attribution.saliency else (Net(), start(Net(), images), images)
    with pytest.raises(UserError, match=r'labels of shape \(\) must be \(2,\)'):
      explain(*model, 1)


# The cat's face in chelsea.png, both eyes to the chin, in pixels of the photograph (451 x 300):
# left, top, right, bottom; and in the network's crop, 224 pixels from (80, 16) of 384 x 256.
FACE = (130, 80, 345, 280)
ROWS, COLUMNS = slice(52, 223), slice(31, 214)
TABBY, TIGER_CAT, EGYPTIAN_CAT, ESPRESSO = 281, 282, 285, 967


@pytest.fixture(scope='module')
def lite0():
  return pretrained.get('tf_efficientnet_lite0')


def crop(info, name):
  (file,) = (f for f in metadata.files('scikit-image') or () if f.match(f'skimage/data/{name}.png'))
  return info.preprocess(file.locate())


def face_share(heat):
  return heat[ROWS, COLUMNS].sum() / heat.sum()


def test_the_box_of_the_face_in_the_crop():
  x, y = 384 / 451, 256 / 300
  edges = [FACE[1] * y - 16, FACE[3] * y - 16, FACE[0] * x - 80, FACE[2] * x - 80]
  assert [round(e) for e in edges] == [ROWS.start, ROWS.stop, COLUMNS.start, COLUMNS.stop]


def test_grad_cam_finds_the_cats_face(lite0):
  """It fills 62 % of the crop, so that little is shown by more than that; see the next test."""
  model, variables, info = lite0
  images = np.stack([crop(info, 'chelsea')])
  cam = jax.jit(lambda v, x, y: attribution.grad_cam(model, v, x, y)[0])
  for label in (TABBY, TIGER_CAT, EGYPTIAN_CAT):
    assert face_share(cam(variables, images, np.array([label]))) > 0.65


def test_grad_cam_and_occlusion_tell_a_cat_from_a_coffee(lite0):
  """Both crops side by side: the face is 31 % of the picture, and has most of the cat's mass."""
  model, variables, info = lite0
  images = np.concatenate([crop(info, 'chelsea'), crop(info, 'coffee')], 1)[None]
  cam = jax.jit(lambda v, x, y: attribution.grad_cam(model, v, x, y)[0])
  occlude = jax.jit(
    lambda v, x, y: attribution.occlusion(model, v, x, y, window=96, stride=32, batch_size=12)[0]
  )
  for label in (TIGER_CAT, ESPRESSO):
    heat, drop = (np.asarray(f(variables, images, np.array([label]))) for f in (cam, occlude))
    shares = face_share(heat), face_share(np.maximum(drop, 0))
    correlation = scipy.stats.spearmanr(heat.ravel(), drop.ravel())[0]
    if label == ESPRESSO:
      assert max(shares) < 0.1
    else:
      assert min(shares) > 0.6
    assert correlation > 0.6
