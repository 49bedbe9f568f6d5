"""The order of the examples, and batches that keep it however they are read."""

import itertools
import multiprocessing
import os
import signal

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import pipeline, prefetch, preprocess, sources
from cnnjax.errors import MachineError, UserError

DIGITS = sources.digits('test')


def take(iterator, n):
  batches = list(itertools.islice(iterator, n))
  iterator.close()
  return batches


def assert_equal(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    assert a.keys() == b.keys()
    assert a.keys() - {'epoch'} == {'image', 'label', 'id', 'mask'}
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize(('n', 'batch'), [(10, 4), (10, 10), (7, 3), (5, 16), (1, 3), (100, 1)])
def test_every_epoch_is_a_permutation(n, batch):
  steps = -(-4 * n // batch)
  ids = np.concatenate([pipeline.train_ids(3, step, n, batch) for step in range(steps)])
  assert ids.dtype == np.int32
  assert len(ids) == steps * batch
  epochs = ids[: 4 * n].reshape(4, n)
  np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(n), (4, 1)))
  if n > 5:
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_order_is_a_pure_function_of_seed_and_step():
  first = pipeline.train_ids(0, 7, 50, 8)
  pipeline._permutation.cache_clear()
  np.testing.assert_array_equal(first, pipeline.train_ids(0, 7, 50, 8))
  assert (first != pipeline.train_ids(1, 7, 50, 8)).any()
  first[:] = 0  # the caller's own copy
  assert pipeline.train_ids(0, 7, 50, 8).any()
  # The order doesn't depend on the batch size: only where it is cut.
  np.testing.assert_array_equal(
    np.concatenate([pipeline.train_ids(0, s, 50, 8) for s in range(15)]),
    np.concatenate([pipeline.train_ids(0, s, 50, 24) for s in range(5)]),
  )


@pytest.mark.parametrize(('n', 'batch'), [(10, 4), (5, 16)])
def test_epochs_count_how_often_an_example_came_before(n, batch):
  seen = np.zeros(n, int)
  for step in range(8):
    ids, epochs = pipeline.train_ids(3, step, n, batch), pipeline.train_epochs(step, n, batch)
    assert epochs.dtype == np.int32
    for i, epoch in zip(ids, epochs, strict=True):
      assert epoch == seen[i]
      seen[i] += 1


def test_order_is_uniform():
  first = np.array([pipeline.train_ids(seed, 0, 4, 4) for seed in range(2000)])
  for place in range(4):  # 500 expected, standard deviation 19
    assert (np.abs(np.bincount(first[:, place], minlength=4) - 500) < 100).all()


def test_order_is_pinned():
  # Runs of today must be resumable by the versions of tomorrow.
  np.testing.assert_array_equal(pipeline.train_ids(0, 0, 10, 10), [0, 2, 9, 1, 8, 5, 4, 3, 6, 7])


def test_huge_steps():
  ids = pipeline.train_ids(0, 10**9, 1000, 4096)
  assert ids.min() >= 0
  assert ids.max() < 1000
  assert (np.bincount(ids, minlength=1000) >= 4).all()


@pytest.mark.parametrize(('n', 'batch'), [(10, 4), (8, 4), (3, 5)])
def test_eval_ids(n, batch):
  steps = pipeline.num_eval_steps(n, batch)
  ids, masks = zip(*(pipeline.eval_ids(s, n, batch) for s in range(steps)), strict=True)
  ids, masks = np.concatenate(ids), np.concatenate(masks)
  assert ids.dtype == np.int32
  assert masks.dtype == np.float32
  np.testing.assert_array_equal(ids[masks == 1], np.arange(n))
  assert not ids[masks == 0].any()
  assert len(ids) == steps * batch < n + batch


def test_sizes_are_checked():
  with pytest.raises(UserError, match='batch_size=0'):
    pipeline.train_ids(0, 0, 5, 0)
  with pytest.raises(UserError, match='no examples'):
    pipeline.eval_ids(0, 0, 5)
  with pytest.raises(UserError, match='batch_size=10: allowed are multiples of the 4 processes'):
    pipeline.train_batches(DIGITS, seed=0, batch_size=10, process=(0, 4))


def test_streamed_equals_resident():
  for step, batch in enumerate(take(pipeline.train_batches(DIGITS, seed=5, batch_size=100), 8)):
    ids = pipeline.train_ids(5, step, len(DIGITS), 100)
    np.testing.assert_array_equal(batch['id'], ids)
    np.testing.assert_array_equal(batch['image'], DIGITS.images[ids])
    np.testing.assert_array_equal(batch['label'], DIGITS.labels[ids])
    assert batch['mask'].all()
    np.testing.assert_array_equal(batch['epoch'], (np.arange(100) + 100 * step) // len(DIGITS))
    assert [batch[k].dtype for k in ('image', 'label', 'id', 'mask', 'epoch')] == [
      np.uint8,
      np.int32,
      np.int32,
      np.float32,
      np.int32,
    ]


def test_resume_equals_straight():
  options = {'seed': 1, 'batch_size': 150}
  straight = take(pipeline.train_batches(DIGITS, **options), 9)
  assert_equal(straight[6:], take(pipeline.train_batches(DIGITS, start_step=6, **options), 3))


@pytest.mark.parametrize('kind', ['train', 'eval'])
def test_rows_of_processes_make_the_global_batch(kind):
  def read(**options):
    if kind == 'eval':
      return list(pipeline.eval_batches(DIGITS, batch_size=64, **options))
    return take(pipeline.train_batches(DIGITS, seed=2, batch_size=64, **options), 7)

  shards = [read(process=(i, 4)) for i in range(4)]
  joined = [
    {k: np.concatenate([b[k] for b in parts]) for k in parts[0]}
    for parts in zip(*shards, strict=True)
  ]
  assert_equal(joined, read())


def test_eval_counts_every_example_once():
  batches = list(pipeline.eval_batches(DIGITS, batch_size=100))
  assert [len(b['id']) for b in batches] == [100] * 4
  mask = np.concatenate([b['mask'] for b in batches])
  assert mask.sum() == 359
  np.testing.assert_array_equal(
    np.concatenate([b['label'] for b in batches])[mask == 1], DIGITS.labels
  )


@pytest.fixture
def photos(tmp_path):
  rng = np.random.default_rng(0)
  for split, count in (('train', 7), ('test', 3)):
    for name in ('cat', 'dog'):
      (tmp_path / split / name).mkdir(parents=True)
      for i in range(count):
        shape = (*rng.integers(20, 40, 2), 3)
        image = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
        image.save(tmp_path / split / name / f'{i}.png')
  return tmp_path


def test_random_crops_resume_and_workers_are_bitwise_equal(photos):
  source = sources.load(
    f'folder:{photos}', 'train', image_size=(16, 16), resize='random_resized_crop'
  )
  crop = preprocess.train_transform('random_resized_crop', (16, 16), seed=4)
  options = {'seed': 4, 'batch_size': 6, 'transform': crop}
  straight = take(pipeline.train_batches(source, **options), 8)
  assert straight[0]['image'].shape == (6, 16, 16, 3)
  assert_equal(straight[5:], take(pipeline.train_batches(source, start_step=5, **options), 3))
  workers = pipeline.train_batches(source, workers=2, **options)
  assert_equal(straight, take(workers, 8))
  assert not multiprocessing.active_children()
  # The same example looks different at its next turn.
  turns = [b['image'][b['id'] == 3] for b in straight if (b['id'] == 3).any()]
  assert len(turns) > 1
  assert (turns[0][0] != turns[1][0]).any()


def test_a_worker_that_hangs_is_named_and_ended(caplog):
  hangs: list[int] = []
  stream = prefetch.prefetch(
    pipeline.train_batches(DIGITS, seed=0, batch_size=64, workers=1),
    lambda batch: batch,
    timeout=0.3,
    on_timeout=lambda: pipeline.end_workers(0.3) if hangs else None,
  )
  next(stream)  # the worker has started
  (worker,) = multiprocessing.active_children()
  os.kill(worker.pid, signal.SIGSTOP)
  hangs.append(worker.pid)
  with pytest.raises(MachineError, match=rf'process {worker.pid}, exit code -9'):
    take(stream, 100)
  assert f'data worker (process {worker.pid}): no batch for' in caplog.text
  assert not multiprocessing.active_children()


def test_mixed_sizes_name_the_setting(photos):
  source = sources.load(
    f'folder:{photos}', 'train', image_size=(16, 16), resize='random_resized_crop'
  )
  with pytest.raises(UserError, match=r'data\.image_size'):
    next(pipeline.train_batches(source, seed=0, batch_size=6))


def test_unreadable_images_are_black_masked_and_named(photos, caplog):
  path = photos / 'test/cat/1.png'
  path.write_bytes(path.read_bytes()[:80])
  name = f'folder:{photos}'
  source = sources.load(name, 'test', image_size=(16, 16))
  with caplog.at_level('WARNING', 'absl'):
    batches = list(pipeline.eval_batches(source, batch_size=4))
  masks = np.concatenate([b['mask'] for b in batches])
  np.testing.assert_array_equal(masks, [1, 0, 1, 1, 1, 1, 0, 0])
  assert not batches[0]['image'][1].any()
  assert batches[0]['image'][0].any()
  assert [record.getMessage() for record in caplog.records] == [
    f'unreadable image, left out: {path}'
  ]
  # The same one every epoch counts once; more than allowed are refused.
  strict = sources.load(name, 'test', image_size=(16, 16), max_unreadable=1)
  assert len(take(pipeline.train_batches(strict, seed=0, batch_size=6), 3)) == 3
  strict = sources.load(name, 'test', image_size=(16, 16), max_unreadable=0)
  with pytest.raises(UserError, match=r'data\.max_unreadable: 1 more .* allowed 0: .*cat/1\.png'):
    list(pipeline.eval_batches(strict, batch_size=4))


def test_a_batch_without_a_readable_image(photos):
  for path in (photos / 'test').rglob('*.png'):
    path.write_bytes(path.read_bytes()[:80])
  source = sources.load(f'folder:{photos}', 'test', image_size=(16, 16))
  (batch,) = pipeline.eval_batches(source, batch_size=6)
  assert batch['image'].shape == (6, 16, 16, 3)
  assert not batch['mask'].any()


def test_errors_in_the_source_surface():
  class Broken(sources.ArraySource):
    def __getitem__(self, index):
      raise RuntimeError('disk gone')

  broken = Broken(DIGITS.images, DIGITS.labels, DIGITS.class_names)
  with pytest.raises(RuntimeError, match='disk gone'):
    next(pipeline.train_batches(broken, seed=0, batch_size=4))
