"""Whatever a file holds: pixels of the size that its header says or a DecodeError, within bounds.

And a folder of anything: only regular files of its own are read.
"""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cnnjax.data import folder, preprocess, sources
from cnnjax.errors import UserError
from tests.commands import bounded, is_one_line
from tests.mutations import damaged

PIXELS = np.random.default_rng(0).integers(0, 256, (37, 50, 4), np.uint8)
RGBA = Image.fromarray(PIXELS)
RGB = RGBA.convert('RGB')


def turned():
  exif = Image.Exif()
  exif[0x0112] = 6
  return exif


def encode(image: Image.Image, kind: str, **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


MORE = {'save_all': True, 'append_images': [RGB.rotate(90)]}
JPEGS = [
  encode(RGB, 'jpeg'),
  encode(RGB, 'jpeg', progressive=True, exif=turned()),
  encode(RGB.convert('L'), 'jpeg'),
  encode(RGB.convert('CMYK'), 'jpeg'),
  encode(RGB, 'mpo', **MORE),
]
PNGS = [
  encode(RGB, 'png', exif=turned()),
  encode(RGBA, 'png'),
  encode(RGBA.convert('LA'), 'png'),
  encode(RGB.quantize(7), 'png', transparency=3),
  encode(RGB.convert('1'), 'png'),
  encode(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), 'png'),
  encode(RGB, 'png', **MORE),
]
WEBPS = [
  encode(RGB, 'webp'),
  encode(RGBA, 'webp', lossless=True, exif=turned()),
  encode(RGB, 'webp', **MORE),
]
OTHERS = [encode(RGB, kind) for kind in ('gif', 'tiff', 'bmp', 'ppm', 'tga', 'ico')]


def chunk(kind: bytes, data: bytes) -> bytes:
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


SIDES = st.sampled_from((0, 1, 2**16 - 1, 9000, 2**31 - 1, 2**32 - 1)) | st.integers(0, 300)
KINDS = st.sampled_from((b'tRNS', b'PLTE', b'acTL', b'fcTL', b'iCCP', b'eXIf', b'zTXt', b'gAMA'))


@st.composite
def pngs(draw) -> bytes:
  """Right checksums around whatever header, palette, metadata and pixels."""
  width, height = draw(SIDES), draw(SIDES)
  kind = (draw(st.sampled_from((1, 2, 4, 8, 16))), draw(st.integers(0, 7)), 0, 0)
  header = struct.pack('>2I5B', width, height, *kind, draw(st.integers(0, 1)))
  others = draw(st.lists(st.tuples(KINDS, st.binary(max_size=48)), max_size=3))
  pixels = draw(st.binary(max_size=200)) + bytes(draw(st.sampled_from((0, 1000, 10**7))))
  data = chunk(b'IDAT', zlib.compress(pixels))
  parts = [chunk(b'IHDR', header), *(chunk(*other) for other in others), data, chunk(b'IEND', b'')]
  return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


@st.composite
def jpegs(draw) -> bytes:
  """Another size in the header of a JPEG."""
  data = draw(st.sampled_from(JPEGS))
  at = max(data.find(b'\xff\xc0'), data.find(b'\xff\xc2')) + 5
  sides = struct.pack('>2H', *(draw(SIDES) % 2**16 for _ in range(2)))
  return data[:at] + sides + data[at + 4 :]


RESIZES = st.builds(
  preprocess.Resize,
  st.sampled_from(preprocess.RESIZES),
  st.tuples(st.integers(1, 40), st.integers(1, 40)),
)


@given(
  st.binary(max_size=64) | damaged(JPEGS) | damaged(PNGS) | damaged(WEBPS)
  | damaged(JPEGS + PNGS + WEBPS + OTHERS) | pngs() | jpegs(),
  st.sampled_from((1, 3, 4)),
  st.none() | RESIZES,
)  # fmt: skip
def test_any_bytes(data, channels, transform):
  with warnings.catch_warnings(), bounded(megabytes=2048):
    warnings.simplefilter('ignore')  # Pillow's words on damage that it bears
    try:
      with preprocess.open_image(io.BytesIO(data)) as image:
        size = preprocess.oriented_size(image)
    except preprocess.DecodeError:
      size = None
    try:
      pixels = preprocess.decode(data, channels=channels, transform=transform)
    except preprocess.DecodeError:
      return
  assert size is not None
  assert pixels.dtype == np.uint8
  assert pixels.shape == (*(size if transform is None else transform.size), channels)


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('limit', [1, 1.5, 3])
@pytest.mark.parametrize('kind', ['png', 'jpeg', 'webp'])
def test_a_bomb_is_refused_by_its_header(kind, limit):
  if kind == 'png':
    sides = struct.pack('>2I5B', 60_000, int(1500 * limit), 8, 2, 0, 0, 0)
    data = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', sides) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')
  elif kind == 'jpeg':
    at = JPEGS[0].find(b'\xff\xc0') + 5
    data = JPEGS[0][:at] + struct.pack('>2H', 60_000, int(1500 * limit)) + JPEGS[0][at + 4 :]
  else:  # its sides end at 16,383, so that any is near the limit
    limit = 3
    at = WEBPS[1].find(b'VP8L') + 9
    data = WEBPS[1][:at] + struct.pack('<I', 16_383 | 16_383 << 14) + WEBPS[1][at + 4 :]
    data = b'RIFF' + struct.pack('<I', len(data[at - 9 :]) + 4) + b'WEBP' + data[at - 9 :]
  with bounded(megabytes=16), pytest.raises(preprocess.DecodeError):
    preprocess.decode(data)


def make_folder(root, contents):
  for i in range(5):
    for name in ('a', 'b'):
      (root / name).mkdir(parents=True, exist_ok=True)
      (root / name / f'{i}.png').write_bytes(PNGS[0])
  outside = root.parent / 'outside'
  outside.mkdir(exist_ok=True)
  (outside / 'secret.png').write_bytes(PNGS[1])
  for name, kind in contents.items():
    path = root / 'a' / name
    if kind == 'pipe':
      os.mkfifo(path)
    elif isinstance(kind, bytes):
      path.write_bytes(kind)
    else:
      path.symlink_to(kind)


TARGETS = ('../../outside/secret.png', '../../outside', '/dev/zero', '/dev/tty', '..', '.', '//',
           '0.png', '../b/0.png', 'missing', 'self.png', '../b/../../outside')  # fmt: skip


@given(
  st.dictionaries(
    st.sampled_from(('x.png', 'self.png', 'y.JPG', 'z')),
    st.just('pipe') | st.sampled_from(TARGETS) | st.binary(max_size=20),
    max_size=2,
  )
)
def test_a_folder_of_anything(tmp_path_factory, contents):
  base = tmp_path_factory.mktemp('folder')
  make_folder(base / 'root', contents)
  with bounded(seconds=30):
    try:
      source = folder.load(str(base / 'root'), 'train', varies=True)
      read = [sources.read(source, i) for i in range(len(source))]
    except UserError as error:
      is_one_line(error)
      return
  for file in source.files:
    path = os.path.realpath(os.path.join(source.root, file))
    assert path.startswith(os.path.realpath(base / 'root') + os.sep)
    assert os.path.isfile(path)
  assert {example['image'].shape for example in read} <= {(50, 37, 3)}


def test_a_folder_deeper_than_the_stack_is_refused(tmp_path):
  make_folder(tmp_path / 'root', {})
  deep = [str(tmp_path / 'root' / 'a') + '/d' * depth for depth in range(1, 1501)]
  for path in deep:
    os.mkdir(path)
  try:
    with pytest.raises(UserError, match='deep'):
      folder.load(str(tmp_path / 'root'), 'train')
  finally:  # pytest, which keeps three sessions' folders, can't remove so deep a one
    for path in reversed(deep):
      os.rmdir(path)
