"""Options of ConvNeXt; see test_golden, test_cases, test_zoo and layers/test_norm too."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.errors import UserError
from cnnjax.models.convnext import ConvNeXt

KEY = jax.random.key(0)


@pytest.mark.parametrize(('patch', 'smallest'), [(4, 8), (1, 2)])
def test_the_smallest_image(patch, smallest):
  model = ConvNeXt((1, 1), (8, 16), num_classes=3, patch_size=patch)
  shape = lambda size: jax.eval_shape(
    partial(model.init_with_output, KEY), jnp.ones((1, size, 40, 2))
  )[0]
  assert shape(smallest).shape == (1, 3)
  with pytest.raises(UserError, match=f'{smallest - 1}x40.*{smallest}x{smallest}'):
    shape(smallest - 1)


def test_a_fresh_network_is_its_downsampling():
  # Layer scale starts near zero, so a block starts as the identity; V2 has none.
  images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 3)), jnp.float32)
  for grn in (False, True):
    model = ConvNeXt((1,), (8,), num_classes=3, grn=grn)
    run = partial(model.init_with_output, capture_intermediates=True)
    _, state = jax.jit(run)(KEY, images)
    assert ('layer_scale' in state['params']['stage1']['block1']) != grn
    seen = state['intermediates']
    stem, stage = seen['stem']['__call__'][0], seen['stage1']['__call__'][0]
    assert (np.abs(stage - stem).max() < 1e-5) != grn


def test_layer_norm_is_accurate_far_from_zero():
  model = ConvNeXt((1,), (8,), num_classes=3)
  x = 1e3 + np.random.default_rng(0).normal(size=(2, 8))
  found = model.norm().init_with_output(KEY, jnp.float32(x))[0]
  centred = np.float32(x).astype(np.float64)
  centred = centred - centred.mean(-1, keepdims=True)
  expected = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(found, expected, atol=1e-3)
