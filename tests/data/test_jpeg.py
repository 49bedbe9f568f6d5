"""JPEG through the fast decoder, at a fraction of its size, and without the optional libraries.

The reference is Pillow: it decodes everything, cuts and resizes. Decoded pixels may differ by 1
(another build of libjpeg-turbo), resampled ones by 2 (the weights are rounded differently).
"""

import io
import pathlib
import pickle

import jax
import numpy as np
import pytest
from PIL import Image
from skimage import data as photos

from cnnjax.data import pipeline, preprocess, resample, sources

ORIENTATIONS = range(1, 9)
CAT = photos.chelsea()  # 300 x 451 x 3


@pytest.fixture(params=['extra', 'pillow'])
def libraries(request, monkeypatch):
  """Runs a test twice: with the extra `jpeg`, and as if it weren't installed."""
  if request.param == 'pillow':
    monkeypatch.setattr(resample, 'optional', lambda name: None)
  else:
    pytest.importorskip('simplejpeg')
    pytest.importorskip('cykooz_resizer')


def encode(pixels: np.ndarray, **options) -> bytes:
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'jpeg', **{'quality': 90, **options})
  return file.getvalue()


def turned(orientation: int) -> Image.Exif:
  exif = Image.Exif()
  exif[0x0112] = orientation
  return exif


def reference(data: bytes, box: resample.Box, size: tuple[int, int]) -> np.ndarray:
  """Decoded whole, cut, then resized; or resized as a whole and cut, which is a box of Pillow's."""
  image = Image.open(io.BytesIO(data)).convert('RGB')
  corners = (box.left, box.top, box.left + box.width, box.top + box.height)
  if box.closed:
    image = image.crop(tuple(int(corner) for corner in corners))
    corners = None
  return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR, box=corners))


def assert_close(actual, expected, atol):
  assert actual.dtype == np.uint8
  np.testing.assert_allclose(actual.astype(int), expected.astype(int), rtol=0, atol=atol)


@pytest.mark.parametrize('subsampling', ['4:4:4', '4:2:2', '4:2:0'])
@pytest.mark.parametrize('progressive', [False, True])
def test_pixels_are_those_of_pillow(libraries, subsampling, progressive, tmp_path):
  data = encode(CAT[:271, :333], subsampling=subsampling, progressive=progressive)
  expected = np.asarray(Image.open(io.BytesIO(data)))
  assert_close(preprocess.decode(data), expected, 1)
  (tmp_path / 'a.jpg').write_bytes(data)
  assert_close(preprocess.decode(tmp_path / 'a.jpg'), expected, 1)
  with open(tmp_path / 'a.jpg', 'rb') as file:
    assert_close(preprocess.decode(file), expected, 1)
    assert not file.closed


@pytest.mark.parametrize('method', preprocess.RESIZES)
@pytest.mark.parametrize('size', [(224, 224), (160, 192), (320, 500)])  # shrunk and enlarged
def test_crops_are_those_of_pillow(libraries, method, size):
  data = encode(CAT)
  transform = preprocess.Resize(method, size, seed=1)
  for i in range(8):
    box = transform.box(300, 451, step=3, id=i)
    assert resample.reduction(box, size) == 1
    expected = reference(data, box, size)
    assert_close(preprocess.decode(data, transform=transform, step=3, id=i), expected, 2)
    whole = transform(preprocess.decode(data), step=3, id=i)
    np.testing.assert_array_equal(preprocess.decode(data, transform=transform, step=3, id=i), whole)


@pytest.mark.parametrize(
  ('box', 'size', 'factor'),
  [
    ((224, 224), (224, 224), 1),
    ((447, 900), (224, 224), 1),  # one side would fall below
    ((448, 448), (224, 224), 2),
    ((895, 3000), (224, 224), 2),
    ((900, 900), (224, 224), 4),
    ((1792, 1792), (224, 224), 8),
    ((9000, 9000), (224, 224), 8),
    ((10, 10), (224, 224), 1),
  ],
)
def test_never_below_the_target(box, size, factor):
  assert resample.reduction(resample.Box(0, 0, *box), size) == factor


@pytest.mark.parametrize('factor', [2, 4, 8])
@pytest.mark.parametrize('shape', [(300, 451), (295, 443), (17, 16), (9, 15)])
def test_reduced_pixels_are_those_of_pillow(libraries, shape, factor):
  data = encode(CAT[: shape[0], : shape[1]])
  draft = Image.open(io.BytesIO(data))
  draft.draft('RGB', (shape[1] // factor, shape[0] // factor))
  with preprocess.open_image(io.BytesIO(data)) as image:
    pixels = preprocess._pixels(image, io.BytesIO(data), 3, factor)
  assert pixels.shape == (*(-(-side // factor) for side in shape), 3)
  assert_close(pixels, np.asarray(draft), 1)


@pytest.mark.parametrize('orientation', ORIENTATIONS)
@pytest.mark.parametrize('method', preprocess.RESIZES)
def test_reduction_keeps_every_place(libraries, orientation, method):
  # Two ramps: a pixel's values are its place. No factor divides 243 or 251, so that a mistake about
  # the partial pixels at the far edges, which are the near ones when turned, would be 5 levels.
  # Rounding, of the transform and to YCbCr and back, costs up to half a level on average.
  rows, columns = np.mgrid[:243, :251]
  ramps = np.stack([rows, columns, np.full_like(rows, 128)], -1).astype(np.uint8)
  data = encode(ramps, quality=100, subsampling='4:4:4', exif=turned(orientation))
  transform = preprocess.Resize(method, (14, 10), seed=4)
  full, factors = preprocess.decode(data), set()
  for i in range(6):
    factors.add(resample.reduction(transform.box(*full.shape[:2], id=i), transform.size))
    whole = transform(full, id=i)
    error = preprocess.decode(data, transform=transform, id=i).astype(int) - whole
    assert np.abs(error).max() <= 3
    assert np.abs(error.mean((0, 1))).max() < 0.75
  assert max(factors) == 8


def test_reduction_keeps_the_picture(libraries):
  # Detail differs, as the two filters' product isn't one of them; the picture doesn't.
  data = encode(CAT)
  transform = preprocess.Resize('random_resized_crop', (48, 48))
  for i in range(8):
    error = np.abs(
      preprocess.decode(data, transform=transform, id=i).astype(int)
      - transform(preprocess.decode(data), id=i)
    )
    assert error.mean() < 2
    assert error.max() < 40


@pytest.mark.parametrize('orientation', ORIENTATIONS)
def test_a_turned_image_is_cropped_as_it_is_shown(libraries, orientation):
  data = encode(CAT, exif=turned(orientation))
  full = preprocess.decode(data)
  assert full.shape[:2] == ((300, 451) if orientation < 5 else (451, 300))
  for method in preprocess.RESIZES:
    transform = preprocess.Resize(method, (160, 192))
    for i in range(3):
      actual = preprocess.decode(data, transform=transform, id=i)
      assert_close(actual, transform(full, id=i), 2)
      stored = preprocess.decode(data, exif=False, transform=transform, id=i)
      assert stored.shape == (160, 192, 3)


def test_grey_cmyk_and_other_channels(libraries):
  transform = preprocess.Resize('center_crop', (32, 32))
  grey = encode(CAT[..., 0])
  one = preprocess.decode(grey, channels=1)
  assert_close(one, np.asarray(Image.open(io.BytesIO(grey)))[..., None], 1)
  np.testing.assert_array_equal(preprocess.decode(grey), np.repeat(one, 3, -1))
  assert preprocess.decode(grey, channels=1, transform=transform).shape == (32, 32, 1)
  assert preprocess.decode(encode(CAT), channels=1, transform=transform).shape == (32, 32, 1)
  assert (preprocess.decode(encode(CAT), channels=4, transform=transform)[..., 3] == 255).all()
  file = io.BytesIO()
  Image.fromarray(CAT).convert('CMYK').save(file, 'jpeg', quality=95)
  cmyk = preprocess.decode(file.getvalue(), transform=transform).astype(int)
  assert np.abs(cmyk - transform(CAT)).mean() < 8


def test_damage_is_judged_as_before(libraries):
  data = encode(CAT)
  transform = preprocess.Resize('random_resized_crop', (32, 32))
  for cut in (200, len(data) // 2, len(data) - 100):
    for options in ({}, {'transform': transform}):
      with pytest.raises(preprocess.DecodeError):
        preprocess.decode(data[:cut], **options)
  # What Pillow decodes in spite of an error stays decodable.
  flipped = bytearray(data)
  flipped[len(data) // 2 : len(data) // 2 + 4] = b'\xff\x00\xff\x00'
  expected = np.asarray(Image.open(io.BytesIO(flipped)))
  assert_close(preprocess.decode(bytes(flipped)), expected, 1)
  assert_close(preprocess.decode(data + b'\0' * 100), preprocess.decode(data), 0)


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_bomb_is_refused_however_small_the_result(libraries, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
  with pytest.raises(preprocess.DecodeError, match='decompression bomb'):
    preprocess.decode(encode(CAT), transform=preprocess.Resize('resize', (8, 8)))


def test_the_libraries_are_used(monkeypatch):
  asked = []
  optional = resample.optional
  monkeypatch.setattr(resample, 'optional', lambda name: asked.append(name) or optional(name))
  preprocess.decode(encode(CAT), transform=preprocess.Resize('resize', (32, 32)))
  assert asked == ['simplejpeg', 'cykooz_resizer']


def test_a_missing_library_is_named_once(caplog):
  resample.optional.cache_clear()
  with caplog.at_level('INFO'):
    assert resample.optional('no_such_library') is None
    assert resample.optional('no_such_library') is None
  assert [r.getMessage() for r in caplog.records] == [
    "no_such_library is not installed, Pillow does its work: pip install 'cnnjax[jpeg]'"
  ]


@pytest.mark.parametrize('channels', [1, 3])
def test_the_two_resamplers_agree(channels, monkeypatch):
  pytest.importorskip('cykooz_resizer')
  rng = np.random.default_rng(0)
  for _ in range(200):
    height, width, *size = (int(side) for side in rng.integers(1, 200, 4))
    box = resample.center(height, width, size, rng.choice([0.875, 1.0]))
    image = rng.integers(0, 256, (height, width, channels), np.uint8)
    fast = resample.cut(image, box, size)
    with monkeypatch.context() as patch:
      patch.setattr(resample, 'optional', lambda name: None)
      assert_close(fast, resample.cut(image, box, size), 2)


@pytest.fixture
def folder(tmp_path):
  for i in range(6):
    path = tmp_path / 'train' / 'ab'[i % 2] / f'{i}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(CAT[10 * i :, 20 * i :], exif=turned(i + 1)))
  (tmp_path / 'test' / 'a').mkdir(parents=True)
  (tmp_path / 'test' / 'a' / '0.jpg').write_bytes(encode(CAT))
  return sources.load(
    f'folder:{tmp_path}', 'train', image_size=(40, 48), resize='random_resized_crop'
  )


@pytest.mark.parametrize('workers', [0, 1])
def test_batches_are_cropped_on_decoding_and_need_no_copy(folder, workers, libraries):
  if workers and resample.optional('simplejpeg') is None:
    pytest.skip('worker processes see the installed libraries')
  transform = preprocess.train_transform('random_resized_crop', (40, 48), seed=5)
  batches = pipeline.train_batches(
    folder, seed=5, batch_size=4, start_step=2, workers=workers, transform=transform
  )
  batch = next(batches)
  batches.close()
  for image, i in zip(batch['image'], batch['id'].tolist(), strict=True):
    data = pathlib.Path(folder.describe(i)).read_bytes()
    np.testing.assert_array_equal(
      image, preprocess.decode(data, transform=pickle.loads(pickle.dumps(transform)), step=2, id=i)
    )
  on_device = jax.device_put(batch['image'], jax.devices('cpu')[0])
  assert on_device.unsafe_buffer_pointer() == batch['image'].ctypes.data
