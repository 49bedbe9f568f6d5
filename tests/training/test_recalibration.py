import numpy as np

from cnnjax.training import recalibration


def test_pooled_statistics_are_those_of_the_union():
  x = np.random.default_rng(0).normal(3, 2, size=(5, 40, 4))
  trees = [{'norm': {'mean': b.mean(0), 'var': b.var(0)}} for b in x]
  pooled = recalibration.pool(iter(trees))
  union = x.reshape(-1, 4)
  np.testing.assert_allclose(pooled['norm']['mean'], union.mean(0), rtol=1e-6)
  np.testing.assert_allclose(pooled['norm']['var'], union.var(0), rtol=1e-6)


def test_a_model_without_statistics():
  assert recalibration.pool([{}, {}]) == {}
