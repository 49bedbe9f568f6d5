"""Our models compute what PyTorch's public definitions do, from the same weights."""

import jax
import numpy as np
import pytest

from cnnjax import models, pretrained
from tests.models import golden, quick


@pytest.mark.parametrize('name', sorted(path.stem for path in golden.FOLDER.glob('*.npz')))
def test_logits_equal_pytorchs(name):
  state, images, logits = golden.load(name)
  variables = pretrained.from_torch(name, state)
  ours = jax.jit(models.create(name).apply, compiler_options=quick.UNOPTIMISED)(variables, images)
  assert np.abs(ours - logits).max() <= 1e-4 * np.abs(logits).max()
