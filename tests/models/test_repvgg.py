"""RepVGG's re-parameterisation; see test_cases and test_zoo too."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.errors import UserError
from cnnjax.models.repvgg import Branches, Plain, RepVGG, fuse

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(1).normal(size=(2, 23, 31, 3)).astype(np.float32)


def noise(model, images):
  """Variables with every number away from its default."""
  rng = np.random.default_rng(0)

  def leaf(path, like):
    if path[-1].key == 'kernel':
      return np.float32(rng.normal(size=like.shape) * (2 / np.prod(like.shape[:-1])) ** 0.5)
    return np.float32(rng.uniform(0.5, 1.5, size=like.shape))

  return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(partial(model.init, KEY), images))


@pytest.mark.parametrize('groups', [1, 4])
def test_the_plain_form_computes_the_same(groups):
  model = RepVGG((1, 3, 2), (8, 12, 16), num_classes=5, groups=groups)
  variables = noise(model, IMAGES)
  plain, fused = fuse(model, variables)
  assert set(fused) == {'params'}
  wanted = jax.eval_shape(partial(plain.init, KEY), IMAGES)
  assert jax.tree.map(jnp.shape, fused) == jax.tree.map(jnp.shape, wanted)
  assert {key.key for path, _ in jax.tree_util.tree_leaves_with_path(fused) for key in path} == {
    *('params', 'stem', 'stage1', 'stage2', 'stage3', 'block1', 'block2', 'block3'),
    *('conv', 'head', 'logits', 'kernel', 'bias'),
  }
  expected = jax.jit(model.apply)(variables, IMAGES)
  found = jax.jit(plain.apply)(fused, IMAGES)
  assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_what_can_not_be_fused():
  model = RepVGG((1,), (8,), num_classes=5)
  variables = noise(model, IMAGES)
  plain, fused = fuse(model, variables)
  assert (model.block, plain.block) == (Branches, Plain)
  with pytest.raises(UserError, match='plain'):
    fuse(plain, fused)
  with pytest.raises(UserError, match='BatchNorm'):
    fuse(model.clone(norm=None), variables)
