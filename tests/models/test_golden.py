"""Our models compute what PyTorch's public definitions do, from the same weights.

By XLA alone here; by oneDNN, where it is installed, in test_cases.py.
"""

import jax
import numpy as np
import pytest

from cnnjax import models, ops, pretrained
from tests.models import golden, quick


@pytest.mark.parametrize('name', sorted(path.stem for path in golden.FOLDER.glob('*.npz')))
def test_logits_equal_pytorchs(name):
  state, images, logits = golden.load(name)
  variables = pretrained.from_torch(name, state)
  apply = jax.jit(models.create(name).apply, compiler_options=quick.UNOPTIMISED)
  with ops.using('xla'):
    ours = apply(variables, images)
  assert np.abs(ours - logits).max() <= 1e-4 * np.abs(logits).max()
