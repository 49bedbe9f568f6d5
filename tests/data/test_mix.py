"""Mixup and CutMix: what was drawn is read from the labels, and the images must agree with it."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from cnnjax.data import mix
from cnnjax.errors import UserError

KEY = jax.random.key(5)
BOTH = 'mixup(alpha=0.2)|cutmix(alpha=1.0)'


@functools.cache
def compiled(spec, num_classes=16):
  return jax.jit(mix.parse(spec, num_classes=num_classes))


def batch(n=16, size=(6, 8, 2), **changes):
  rng = np.random.default_rng(0)
  values = {
    'image': rng.random((n, *size)).astype(np.float32),
    'label': np.arange(n, dtype=np.int32),
    'id': rng.permutation(n).astype(np.int32),
    'mask': np.ones(n, np.float32),
  }
  return values | changes


def shares(labels):
  """Each row's own weight, from labels that are all different: the row before has the rest."""
  labels = np.asarray(labels)
  n = len(labels)
  own, other = labels[np.arange(n), np.arange(n)], labels[np.arange(n), np.arange(-1, n - 1)]
  np.testing.assert_allclose(own + other, 1, atol=1e-6)
  assert (np.count_nonzero(labels, axis=1) <= 2).all()
  return own


def constant(n):
  """Images that are 1 but the first, which are 0 ... so that a pixel tells whose it is."""
  return np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None, None], (n, 9, 12, 1))


def test_mixup_blends_with_the_row_before_by_the_labels_weight():
  given = batch()
  mixed = compiled('mixup(alpha=0.4)')(KEY, given)
  own = shares(mixed['label'])[:, None, None, None]
  before = np.roll(given['image'], 1, axis=0)
  np.testing.assert_allclose(
    mixed['image'], own * given['image'] + (1 - own) * before, rtol=1e-5, atol=1e-6
  )
  for name in ('id', 'mask'):
    np.testing.assert_array_equal(mixed[name], given[name])


@pytest.mark.parametrize('alpha', [0.2, 5.0])
def test_mixup_weights_have_the_moments_of_beta(alpha):
  keys = jax.random.split(KEY, 4000)
  _, own = jax.jit(jax.vmap(lambda key: mix.mixup(key, 1, 1, alpha=alpha)))(keys)
  variance = 1 / (4 * (2 * alpha + 1))
  assert abs(own.mean() - 0.5) < 4 * (variance / 4000) ** 0.5
  assert abs(own.var() / variance - 1) < 0.1


def test_cutmix_pastes_a_box_whose_area_the_label_tells():
  n = 64
  given = batch(n, image=constant(n))
  mixed = compiled('cutmix(alpha=1.0)', n)(KEY, given)
  image = np.asarray(mixed['image'])[..., 0]
  mine = image == np.arange(n)[:, None, None]
  np.testing.assert_array_equal(mine | (image == np.arange(-1, n - 1)[:, None, None] % n), True)
  np.testing.assert_allclose(shares(mixed['label']), mine.mean(axis=(1, 2)), rtol=1e-6)
  rows, columns = (~mine).any(axis=2), (~mine).any(axis=1)
  np.testing.assert_array_equal(~mine, rows[:, :, None] & columns[:, None, :])
  assert len(set(rows.sum(axis=1).tolist())) > 4  # of many sizes
  for hit in (rows, columns):
    runs = np.abs(np.diff(np.pad(hit, ((0, 0), (1, 1))).astype(int), axis=1)).sum(axis=1)
    assert runs.max() <= 2  # and in one piece
    assert hit.any(axis=0).all()  # everywhere


def test_cutmix_covers_one_minus_beta_of_the_area():
  keys = jax.random.split(KEY, 2000)
  own, share = jax.jit(jax.vmap(lambda key: mix.cutmix(key, 64, 64, alpha=1.0)))(keys)
  np.testing.assert_allclose(own.mean(axis=(1, 2)), share, rtol=1e-6)
  # A box of side s = sqrt(1 - b), b uniform, at a uniform centre keeps s - s^2 / 4 of each side:
  # E[(s - s^2 / 4)^2] = E[s^2] - E[s^3] / 2 + E[s^4] / 16 with E[s^k] = 2 / (k + 2).
  expected = 1 - (1 / 2 - 2 / 5 / 2 + 1 / 3 / 16)
  assert abs(share.mean() - expected) < 0.03  # sides are even numbers of pixels


def test_a_recipe_of_two_draws_one_for_every_example():
  n = 400
  image = np.asarray(compiled(BOTH, n)(KEY, batch(n, image=constant(n)))['image'])
  fractional = (image != np.round(image)).any(axis=(1, 2, 3))
  cut = np.ptp(image, axis=(1, 2, 3)) > 0
  assert not (fractional & cut).any()
  # Boxes of no or all pixels, and weights that round to 0 or 1, can't be told from nothing.
  assert abs(fractional.sum() - 200) < 60
  assert abs(cut.sum() - 180) < 60


def test_what_is_drawn_depends_on_key_and_id_alone():
  recipe, given = compiled(BOTH), batch()
  first = shares(recipe(KEY, given)['label'])
  turned = {k: v if k == 'label' else v[::-1] for k, v in given.items()}
  np.testing.assert_allclose(shares(recipe(KEY, turned)['label']), first[::-1], atol=1e-6)
  assert (shares(recipe(jax.random.key(6), given)['label']) != first).any()


@pytest.mark.parametrize('how', ['pmap', 'shard_map'])
def test_two_devices_make_the_batch_of_one(how):
  given = batch()
  given['mask'][7] = 0  # the row that travels
  recipe, expected = mix.parse(BOTH, num_classes=16), compiled(BOTH)(KEY, given)

  def per_device(b):
    return recipe(KEY, b, axis_name='d')

  if how == 'pmap':
    split = {k: v.reshape(2, -1, *v.shape[1:]) for k, v in given.items()}
    out = jax.pmap(per_device, axis_name='d')(split)
    out = {k: np.asarray(v).reshape(given[k].shape[:1] + v.shape[2:]) for k, v in out.items()}
  else:
    mesh, spec = Mesh(np.asarray(jax.devices()[:2]), ('d',)), PartitionSpec('d')
    mapped = jax.shard_map(per_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    out = jax.jit(mapped)(given)
  for name, values in expected.items():
    np.testing.assert_allclose(out[name], values, rtol=1e-5, atol=1e-6)


def test_a_masked_row_is_mixed_into_nothing():
  given = batch()
  before = np.array(compiled(BOTH)(KEY, given)['image'])
  given['mask'][::2], given['image'][::2] = 0, np.nan
  mixed = compiled(BOTH)(KEY, given)
  np.testing.assert_array_equal(mixed['image'][1::2], given['image'][1::2])
  np.testing.assert_array_equal(mixed['label'][1::2], np.eye(16)[1::2])
  assert (before != given['image'])[1::2].any(axis=(1, 2, 3)).sum() >= 5  # of 8 that would be


def test_soft_labels_are_mixed_and_wrong_ones_become_nan():
  recipe, given = compiled(BOTH), batch()
  soft = np.random.default_rng(0).dirichlet(np.ones(16), 16).astype(np.float32)
  hard = np.asarray(recipe(KEY, given)['label'])
  np.testing.assert_allclose(recipe(KEY, given | {'label': soft})['label'], hard @ soft, rtol=1e-5)
  given['label'][[5, 9]] = 16, -1
  wrong = np.isnan(np.asarray(recipe(KEY, given)['label'])).all(axis=1)
  np.testing.assert_array_equal(np.flatnonzero(wrong), [5, 6, 9, 10])  # and who got a part of them


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('mixups(alpha=1)', "mix='mixups' is unknown: did you mean 'mixup'"),
    ('mixup', 'mixup needs the option alpha'),
    ('mixup(beta=1)', "mix: option of mixup='beta' is unknown"),
    ('cutmix(alpha=0)', 'mix: cutmix(alpha=0) must be a number in [0.01, 100]'),
    ('mixup(alpha="1")', "mix: mixup(alpha='1')"),
    ('mixup(alpha=1e999)', 'mix: mixup(alpha=inf)'),
    ('flip_horizontal', 'Allowed: cutmix, mixup'),
  ],
)
def test_mistakes_are_named(spec, message):
  with pytest.raises(UserError) as error:
    mix.parse(spec, num_classes=3)
  assert message in str(error.value)


def test_no_recipe_mixes_nothing():
  assert mix.parse(' ', num_classes=3) is None
