"""RegNet's design space; see test_golden, test_cases and test_zoo too."""

import jax
import jax.numpy as jnp
import pytest

from cnnjax import models
from cnnjax.models.regnet import RegNet, widths


@pytest.mark.parametrize(
  ('shape', 'expected'),
  [
    # Radosavovic et al. 2020, tables 12 and 13: d_i and w_i; the last number is g.
    ((22, 24, 24.48, 2.54, 16), ((32, 1), (64, 2), (160, 7), (400, 12))),  # X-400MF
    ((25, 88, 26.31, 2.25, 48), ((96, 2), (192, 6), (432, 15), (1008, 2))),  # X-3.2GF
    ((16, 48, 27.89, 2.09, 8), ((48, 1), (104, 3), (208, 6), (440, 6))),  # Y-400MF
  ],
)
def test_widths_are_the_papers(shape, expected):
  depth, width, slope, factor, group_width = shape
  found = widths(depth, width=width, slope=slope, factor=factor, group_width=group_width)
  assert found == expected


def test_stem_of_small_images():
  model = models.create('regnet_x_400mf', stem='cifar', depth=4)
  images = jnp.ones((1, 8, 9, 2))
  seen = jax.eval_shape(
    lambda x: models.features(model, model.init(jax.random.key(0), x), x, ['stem', 'stage1']),
    images,
  )
  assert seen['stem'].shape == (1, 8, 9, 32)
  assert seen['stage1'].shape[:3] == (1, 4, 5)


def test_attention_squeezes_a_quarter_of_the_blocks_input():
  model = RegNet(2, 16, 0.0, 2.0, 8, 0.25)
  params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), jnp.ones((1, 8, 8, 3)))[
    'params'
  ]['stage1']
  reduced = [params[f'block{i}']['se']['reduce']['kernel'].shape for i in (1, 2)]
  assert reduced == [(16, 8), (16, 4)]  # of the stem's 32 channels, of the first block's 16
