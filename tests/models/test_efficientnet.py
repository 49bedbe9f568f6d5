"""Stages, rates and options of the EfficientNets; see test_golden, test_cases and test_zoo too."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models, pretrained
from cnnjax.errors import UserError
from cnnjax.layers.stochastic import DropPath
from cnnjax.models.efficientnet import EfficientNet, Spec
from cnnjax.models.efficientnet_v2 import FusedMBConv
from tests.models import golden, quick

KEY = jax.random.key(0)
SMALL = (Spec(1, 3, 1, 8, 1), Spec(4, 3, 2, 12, 3, squeeze=0, block=FusedMBConv))


def rates(model, size=32):
  """The rate of every DropPath, by path."""
  found = {}

  def note(call, args, kwargs, context):
    if isinstance(context.module, DropPath):
      found['/'.join(context.module.path[:2])] = context.module.rate
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    jax.eval_shape(partial(model.init, KEY), jnp.ones((1, size, size, 3)))
  return found


def test_stochastic_depth_rises_as_torchvisions():
  # stochastic_depth_prob * index / blocks, of the 16 blocks; those that change shape have none.
  found = rates(models.create('efficientnet_b0'))
  depths = (1, 2, 2, 3, 3, 4, 1)
  index = {
    f'stage{s}/block{b}': sum(depths[: s - 1]) + b - 1
    for s, depth in enumerate(depths, 1)
    for b in range(1, depth + 1)
  }
  assert len(found) == 9
  assert found == pytest.approx({path: 0.2 * index[path] / 16 for path in found})
  # The same / (blocks - 1): ConvNeXt ends at its rate.
  found = list(rates(models.create('convnext_tiny')).values())
  np.testing.assert_allclose(found, np.linspace(0, 0.1, 18))
  assert set(rates(models.create('convnextv2_atto')).values()) == {0.0}


@pytest.mark.parametrize(
  ('name', 'dropout'),
  [('efficientnet_b0', 0.2), ('efficientnet_b7', 0.5), ('efficientnet_v2_m', 0.3)],
)
def test_dropout_is_the_papers(name, dropout):
  assert models.create(name).dropout == dropout


def test_stem_of_small_images_and_mistakes():
  shapes = lambda **options: jax.eval_shape(
    lambda x: models.features(
      model := EfficientNet(SMALL, features=4, **options), model.init(KEY, x), x
    ),
    jnp.ones((1, 9, 12, 3)),
  )
  assert shapes()['stem'].shape == (1, 5, 6, 4)
  assert shapes(stem='cifar')['stage1'].shape == (1, 9, 12, 8)
  assert shapes(stem='cifar')['stage2/block3'].shape == (1, 5, 6, 12)
  with pytest.raises(UserError, match=r"model\.stem='cifra'.*'cifar'"):
    shapes(stem='cifra')


def test_tensorflows_padding_puts_the_odd_pixel_last():
  model = models.create('tf_efficientnet_lite0', norm='none', act='relu')
  images = jnp.zeros((1, 8, 8, 3)).at[0, 0, 0].set(1)
  variables = jax.eval_shape(partial(model.init, KEY), images)
  variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables)
  stem = jax.jit(partial(models.features, model, names=['stem']))(variables, images)['stem']
  # 8 pixels, 3 taps, stride 2: no padding in front, so pixel 0 is in the first window alone.
  assert stem[0, :, :, 0].tolist() == [[3, 0, 0, 0]] + [[0] * 4] * 3


@pytest.mark.parametrize('name', ['block', 'fused'])
def test_remat_changes_no_number(name):
  spec = Spec(4, 3, 1, 8, 2) if name == 'block' else Spec(4, 3, 1, 8, 2, 0, FusedMBConv)
  images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 7, 3)), jnp.float32)
  make = partial(EfficientNet, (spec,), num_classes=3, features=8, last_features=8)
  variables = jax.jit(make().init)(KEY, images)

  def loss(params, remat):
    logits, new = make(remat=remat).apply(
      {**variables, 'params': params},
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': KEY},
    )
    return jnp.square(logits).sum(), new

  grad = jax.grad(loss, has_aux=True)
  text = str(jax.make_jaxpr(partial(grad, remat=True))(variables['params']))
  assert 'remat' in text or 'checkpoint' in text
  results = [jax.jit(partial(grad, remat=remat))(variables['params']) for remat in (False, True)]
  close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  jax.tree.map(close, *results)


def test_v2_s_equals_torchvisions_in_float64():
  """Under the deterministic weights its 40 gated blocks amplify rounding by 1e7: torchvision's own
  float32 logits are 38 % off its float64's. In float64 both agree. The file is `make_cases`'s.
  """
  name = 'efficientnet_v2_s'
  with np.load(golden.FOLDER.parent / 'reference' / f'{name}_35x45.npz') as file:
    state = golden.state_dict(name, file['names'], file['shapes'])
    shape, logits = file['input'], file['logits']
  with jax.enable_x64(True):
    variables = jax.tree.map(jnp.float64, pretrained.from_torch(name, state) | {'torch': {}})
    images = jnp.float64(golden.images(shape))
    model = models.create(name, dtype=jnp.float64)
    apply = jax.jit(model.apply, compiler_options=quick.HARDLY_OPTIMISED)
    ours = np.asarray(apply(variables, images))
  assert np.abs(ours - logits).max() <= 1e-6 * np.abs(logits).max()
