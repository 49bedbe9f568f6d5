"""IDX files: every kind of damage is an error that names the file."""

import gzip
import struct

import numpy as np
import pytest

from cnnjax.data import idx
from cnnjax.errors import UserError
from tests.data.idx_files import encode

IMAGES = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
LABELS = np.array([3, 0, 9], np.uint8)


def test_reads_plain_and_gzip_whatever_the_name(tmp_path):
  for data in (encode(IMAGES), gzip.compress(encode(IMAGES))):
    (tmp_path / 'images').write_bytes(data)
    read = idx.read(tmp_path / 'images', 3)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, IMAGES)


def test_reads_no_examples(tmp_path):
  (tmp_path / 'none').write_bytes(encode(IMAGES[:0]))
  assert idx.read(tmp_path / 'none', 3).shape == (0, 28, 28)


WHOLE = encode(IMAGES)
BROKEN_CHECKSUM = bytearray(gzip.compress(WHOLE))
BROKEN_CHECKSUM[-6] ^= 0xFF
BROKEN_STREAM = bytearray(gzip.compress(WHOLE))
BROKEN_STREAM[30] ^= 0xFF


@pytest.mark.parametrize(
  ('data', 'match'),
  [
    (b'', 'magic number'),
    (b'\x89PNG\r\n', 'magic number'),
    (struct.pack('>4B', 0, 0, 0x0D, 3) + WHOLE[4:], 'magic number 00000d03, allowed 00000803'),
    (encode(LABELS), 'magic number 00000801, allowed 00000803'),
    (WHOLE[:10], 'header is cut short'),
    (WHOLE[:-1], 'says 2352 bytes of data, found only 2351'),
    (WHOLE + b'x', 'says 2352 bytes of data, found more'),
    (struct.pack('>4B3I', 0, 0, 8, 3, *[2**32 - 1] * 3), 'allowed 268435456'),
    (gzip.compress(WHOLE)[:-20], 'corrupt or cut short'),
    (gzip.compress(WHOLE)[:-4], 'corrupt or cut short'),
    (bytes(BROKEN_CHECKSUM), 'corrupt or cut short'),
    (bytes(BROKEN_STREAM), 'corrupt or cut short'),
    (gzip.compress(WHOLE[:-1]), 'found only 2351'),
    (gzip.compress(WHOLE + b'x'), 'found more'),
  ],
)
def test_damage_is_named(tmp_path, data, match):
  path = tmp_path / 'images.gz'
  path.write_bytes(data)
  with pytest.raises(UserError, match=match) as error:
    idx.read(path, 3)
  assert str(path) in str(error.value)
  assert '\n' not in str(error.value)


def test_missing_file(tmp_path):
  with pytest.raises(UserError, match='nothing: No such file'):
    idx.read(tmp_path / 'nothing', 3)


@pytest.mark.parametrize(
  ('images', 'labels', 'count', 'match'),
  [
    (IMAGES, LABELS[:2], None, '2 labels for 3 images'),
    (IMAGES, LABELS, 60_000, '3 images, allowed 60000'),
    (IMAGES[:, :27], LABELS, None, 'images of 27x28, allowed 28x28'),
    (IMAGES, LABELS + np.uint8(1), None, 'label 10, allowed 0 to 9'),
  ],
)
def test_pair_must_belong_together(tmp_path, images, labels, count, match):
  (tmp_path / 'i').write_bytes(encode(images))
  (tmp_path / 'l').write_bytes(encode(labels))
  with pytest.raises(UserError, match=match):
    idx.read_pair(tmp_path / 'i', tmp_path / 'l', count=count)


def test_pair(tmp_path):
  (tmp_path / 'i').write_bytes(encode(IMAGES))
  (tmp_path / 'l').write_bytes(encode(LABELS))
  images, labels = idx.read_pair(tmp_path / 'i', tmp_path / 'l', count=3)
  assert images.shape == (3, 28, 28, 1)
  np.testing.assert_array_equal(images[..., 0], IMAGES)
  np.testing.assert_array_equal(labels, LABELS)
