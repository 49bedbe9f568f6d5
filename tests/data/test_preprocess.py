"""Decoding, resizing on the host, and the device's scaling."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cnnjax.data import preprocess
from cnnjax.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), np.uint8)


def encode(image: Image.Image, kind: str = 'png', **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


@pytest.mark.parametrize('kind', ['png', 'webp'])
def test_lossless_formats(kind):
  data = encode(Image.fromarray(PIXELS), kind, **({'lossless': True} if kind == 'webp' else {}))
  np.testing.assert_array_equal(preprocess.decode(data), PIXELS)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['png', 'jpeg'])
def test_exif_orientation(orientation, kind):
  # What a viewer shows for each orientation, by its definition (row 0 is..., column 0 is...).
  stored = np.kron(RNG.integers(0, 2, (2, 3, 1), np.uint8) * 255, np.ones((8, 8, 3), np.uint8))
  shown = {
    1: stored,
    2: stored[:, ::-1],
    3: stored[::-1, ::-1],
    4: stored[::-1],
    5: stored.swapaxes(0, 1),
    6: stored[::-1].swapaxes(0, 1),
    7: stored[::-1, ::-1].swapaxes(0, 1),
    8: stored.swapaxes(0, 1)[::-1],
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encode(
    Image.fromarray(stored), kind, exif=exif, **({'quality': 100} if kind == 'jpeg' else {})
  )
  decoded = preprocess.decode(data)
  np.testing.assert_allclose(decoded.astype(int), shown.astype(int), atol=2)
  np.testing.assert_allclose(
    preprocess.decode(data, exif=False).astype(int), stored.astype(int), atol=2
  )
  with preprocess.open_image(io.BytesIO(data)) as image:
    assert preprocess.oriented_size(image) == shown.shape[:2]


def test_grey_and_16_bit():
  grey = np.array([[0, 100, 255]], np.uint8)
  expected = np.repeat(grey[..., None], 3, -1)
  np.testing.assert_array_equal(preprocess.decode(encode(Image.fromarray(grey))), expected)
  deep = grey.astype(np.uint16) * 257  # 8 bits spread over 16
  np.testing.assert_array_equal(preprocess.decode(encode(Image.fromarray(deep))), expected)
  one = preprocess.decode(encode(Image.fromarray(grey)), channels=1)
  np.testing.assert_array_equal(one, grey[..., None])
  bits = Image.fromarray(grey > 50)
  np.testing.assert_array_equal(preprocess.decode(encode(bits))[0, :, 0], [0, 255, 255])


def test_alpha_is_composited_on_white():
  rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
  expected = [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]
  data = encode(Image.fromarray(rgba))
  np.testing.assert_array_equal(preprocess.decode(data), expected)
  np.testing.assert_array_equal(preprocess.decode(data, channels=4), rgba)
  grey_alpha = Image.merge('LA', [Image.new('L', (2, 1), 50), Image.new('L', (2, 1), 0)])
  np.testing.assert_array_equal(preprocess.decode(encode(grey_alpha)), np.full((1, 2, 3), 255))


def test_palette_with_and_without_transparency():
  image = Image.new('P', (2, 1))
  image.putpalette([255, 0, 0, 0, 0, 255])
  image.putpixel((1, 0), 1)
  np.testing.assert_array_equal(preprocess.decode(encode(image)), [[[255, 0, 0], [0, 0, 255]]])
  data = encode(image, transparency=0)
  np.testing.assert_array_equal(preprocess.decode(data), [[[255, 255, 255], [0, 0, 255]]])


def test_cmyk():
  data = encode(Image.new('CMYK', (8, 8), (0, 255, 255, 0)), 'jpeg', quality=100)  # red ink
  decoded = preprocess.decode(data)
  assert decoded.shape == (8, 8, 3)
  np.testing.assert_allclose(decoded.astype(int), np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=4)


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'not an image',
    encode(Image.fromarray(PIXELS), 'bmp'),
    encode(Image.fromarray(PIXELS))[:60],
    encode(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), 'jpeg')[:900],
    encode(Image.fromarray(PIXELS), 'webp')[:40],
  ],
)
def test_undecodable(data):
  with pytest.raises(preprocess.DecodeError):
    preprocess.decode(data)


@pytest.mark.parametrize('limit', [50, 30, 10])  # beyond the limit; Pillow errs from twice on
@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_decompression_bomb(monkeypatch, limit):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', limit)
  with pytest.raises(preprocess.DecodeError, match='decompression bomb'):
    preprocess.decode(encode(Image.fromarray(PIXELS)))


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_resize(channels):
  image = RNG.integers(0, 256, (8, 12, channels), np.uint8)
  assert preprocess.resize(image, (5, 7)).shape == (5, 7, channels)
  assert preprocess.resize(image, (8, 12)) is image
  # Halving with an antialiased bilinear filter: weights 1/8 3/8 3/8 1/8 in the interior.
  ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8)[None, :, None], (4, 1, channels))
  ramp[..., 3:] = 255  # Pillow weights by opacity
  half = preprocess.resize(ramp, (4, 12))
  np.testing.assert_array_equal(half[0, 1:-1, 0], np.arange(25, 220, 20))


def test_resize_keeps_a_constant_and_other_channel_counts_are_refused():
  np.testing.assert_array_equal(preprocess.resize(np.full((5, 9, 3), 7, np.uint8), (3, 4)), 7)
  with pytest.raises(UserError, match=r'data\.image_size.*2 channels'):
    preprocess.resize(np.zeros((4, 4, 2), np.uint8), (2, 2))


def test_center_crop_of_imagenet():
  # 256x256 needs no scaling for 224: the crop is the exact centre.
  image = RNG.integers(0, 256, (256, 256, 3), np.uint8)
  np.testing.assert_array_equal(preprocess.center_crop(image, (224, 224)), image[16:240, 16:240])
  wide = RNG.integers(0, 256, (256, 400, 3), np.uint8)
  np.testing.assert_array_equal(preprocess.center_crop(wide, (224, 224)), wide[16:240, 88:312])
  for shape in [(1, 1, 3), (10, 300, 3), (300, 10, 1), (224, 224, 3)]:
    cropped = preprocess.center_crop(np.zeros(shape, np.uint8), (224, 160))
    assert cropped.shape == (224, 160, shape[2])


def test_random_resized_crop_is_a_crop_within_bounds():
  # Coordinates as pixel values; a crop of the same size as the output isn't resampled.
  rows, columns = np.mgrid[:200, :250].astype(np.uint8)
  image = np.stack([rows, columns, columns], -1)
  areas, aspects = [], []
  for i in range(300):
    rng = np.random.Generator(preprocess.philox(1, 0, 0, i))
    out = preprocess.random_resized_crop(rng, image, (64, 64)).astype(float)
    height = (out[-1, 0, 0] - out[0, 0, 0]) * 64 / 63
    width = (out[0, -1, 1] - out[0, 0, 1]) * 64 / 63
    areas.append(height * width / (200 * 250))
    aspects.append(width / height)
  assert 0.06 < min(areas) < 0.15
  assert 0.85 < max(areas) < 1.05
  assert 0.4 < np.mean(areas) < 0.56  # of uniform draws on (0.08, 1), less those that don't fit
  assert 0.7 < min(aspects) < 0.8
  assert 1.25 < max(aspects) < 1.45


def test_random_resized_crop_falls_back_to_the_centre():
  # No crop of a ratio within 3/4 to 4/3 and 90 % of the area fits in a strip.
  strip = np.tile(np.arange(0, 240, dtype=np.uint8)[None, :, None], (12, 1, 3))
  rng = np.random.default_rng(0)
  out = preprocess.random_resized_crop(rng, strip, (12, 16), scale=(0.9, 1.0))
  np.testing.assert_array_equal(out, strip[:, 112:128])
  tall = strip.swapaxes(0, 1)
  out = preprocess.random_resized_crop(rng, tall, (16, 12), scale=(0.9, 1.0))
  np.testing.assert_array_equal(out, tall[112:128])


def test_random_crop_is_a_pure_function_of_seed_step_and_id():
  crop = preprocess.train_transform('random_resized_crop', (8, 8), seed=3)
  assert crop is not None
  image = RNG.integers(0, 256, (40, 40, 3), np.uint8)
  np.testing.assert_array_equal(crop(image, step=2, id=5), crop(image, step=2, id=5))
  others = [crop(image, step=3, id=5), crop(image, step=2, id=6), crop(image, step=5, id=2)]
  others.append(preprocess.Resize('random_resized_crop', (8, 8), 4)(image, step=2, id=5))
  assert all((other != crop(image, step=2, id=5)).any() for other in others)
  assert preprocess.train_transform('center_crop', (8, 8), seed=3) is None
  assert preprocess.train_transform('random_resized_crop', (), seed=3) is None


def test_unknown_method():
  with pytest.raises(
    UserError, match=r"data\.resize='centre_crop' is unknown: did you mean 'center"
  ):
    preprocess.Resize('centre_crop', (8, 8))


def test_preprocess_normalises():
  images = RNG.integers(0, 256, (4, 5, 6, 3), np.uint8)
  mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
  run = preprocess.make_preprocess(None, mean, std)
  out = run(None, jnp.asarray(images), jnp.arange(4), False)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, (images / 255 - mean) / std, rtol=1e-5, atol=1e-6)
  half = preprocess.make_preprocess(None, mean, std, jnp.bfloat16)(
    None, images, jnp.arange(4), True
  )
  assert half.dtype == jnp.bfloat16


def test_augmentation_depends_on_the_id_alone_and_only_in_training():
  images = RNG.integers(0, 256, (6, 4, 4, 1), np.uint8)
  ids = jnp.array([9, 3, 3, 0, 7, 2])
  seen = []

  def augment(key, image):
    seen.append(image.shape)
    return image * jax.random.uniform(key)

  run = preprocess.make_preprocess(augment, (0.5,), (0.25,))
  key = jax.random.key(0)
  out = np.asarray(jax.jit(run, static_argnums=3)(key, images, ids, True))
  assert seen == [(4, 4, 1)]
  for j, i in enumerate(ids):
    scale = jax.random.uniform(jax.random.fold_in(key, i))
    np.testing.assert_allclose(out[j], (images[j] / 255 * scale - 0.5) / 0.25, rtol=1e-5, atol=1e-5)
  order = np.array([4, 0, 5])
  np.testing.assert_array_equal(
    run(key, images[order], ids[order], True), run(key, images, ids, True)[order]
  )
  plain = preprocess.make_preprocess(None, (0.5,), (0.25,))
  visits = jnp.arange(6)  # an augmentation that doesn't ask for them doesn't get them
  np.testing.assert_array_equal(
    run(key, images, ids, True, visits=visits), run(key, images, ids, True)
  )
  np.testing.assert_array_equal(run(key, images, ids, False), plain(None, images, ids, False))


def test_visits_reach_an_augmentation_that_asks():
  run = preprocess.make_preprocess(lambda key, image, *, visit: image + visit)
  images = RNG.integers(0, 256, (3, 2, 2, 1), np.uint8)
  out = run(jax.random.key(0), images, jnp.arange(3), True, visits=jnp.array([5, 0, 2]))
  added = np.array([5, 0, 2]).reshape(3, 1, 1, 1)
  np.testing.assert_allclose(out, images / 255 + added, rtol=1e-6)
