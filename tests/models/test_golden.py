"""Our ResNets compute what torchvision's do, from the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models
from tests.models import golden


@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_logits_equal_torchvisions(name):
  state, images, logits = golden.load(name)
  variables = golden.resnet_variables(state)
  model = models.create(name)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(images))
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
  ours = jax.jit(model.apply)(variables, jnp.asarray(images))
  assert np.abs(ours - logits).max() <= 1e-4 * np.abs(logits).max()
