"""Images per second that one core decodes and crops, beside the bare decoder and Pillow.

  python benchmarks/decode.py [--rounds=9] [--images=48] [--json]

JPEGs as ImageNet has them (quality 90, 4:2:0; photos of scikit-image, cut at random and made
grainy) in two sizes: 500x375, where a crop to 224 leaves nothing to reduce on decoding, and
1600x1200, where it mostly does. In memory, on one core, in turn: the bare decoder (simplejpeg,
whole images, nothing else), cnnjax's path from bytes to a random crop of 224x224 with the extra
`jpeg` and without it, and Pillow's plain path: decode, convert, cut, resize. Reported: the median
over rounds of images per second of the core's time (not the clock's: others may use the machine),
and of the ratio to the bare decoder round by round.
"""

import argparse
import functools
import io
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import simplejpeg
from PIL import Image
from skimage import data as photos

from cnnjax.data import preprocess, resample

SIZES = ((375, 500), (1200, 1600))  # (height, width)
CROP = preprocess.Resize('random_resized_crop', (224, 224))


@functools.cache
def pictures() -> tuple[Image.Image, ...]:
  """The colour photos that scikit-image ships."""
  names = ('chelsea', 'coffee', 'rocket', 'astronaut', 'retina', 'hubble_deep_field')
  arrays = [getattr(photos, name)() for name in names] + list(photos.stereo_motorcycle()[:2])
  return tuple(Image.fromarray(array).convert('RGB') for array in arrays)


def encode(rng: np.random.Generator, picture: Image.Image, height: int, width: int) -> bytes:
  """A random part of a picture as a JPEG of that size."""
  scale = min(picture.height / height, picture.width / width) * rng.uniform(0.6, 1)
  box_height, box_width = height * scale, width * scale
  left = rng.uniform(0, picture.width - box_width)
  top = rng.uniform(0, picture.height - box_height)
  box = (left, top, left + box_width, top + box_height)
  part = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box), np.float32)
  grain = rng.normal(0, 4, (height, width, 1)) + rng.normal(0, 2, (height, width, 3))
  file = io.BytesIO()
  pixels = Image.fromarray(np.clip(part + grain, 0, 255).astype(np.uint8))
  pixels.save(file, 'jpeg', quality=90, subsampling='4:2:0')
  return file.getvalue()


def bare(files: Sequence[bytes]) -> None:
  for file in files:
    simplejpeg.decode_jpeg(file)


def cnnjax_crop(files: Sequence[bytes]) -> None:
  for i, file in enumerate(files):
    preprocess.decode(file, transform=CROP, id=i)


def cnnjax_without_extra(files: Sequence[bytes]) -> None:
  optional, resample.optional = resample.optional, lambda name: None
  try:
    cnnjax_crop(files)
  finally:
    resample.optional = optional


def pillow_crop(files: Sequence[bytes]) -> None:
  for i, file in enumerate(files):
    image = Image.open(io.BytesIO(file)).convert('RGB')
    box = CROP.box(image.height, image.width, id=i)
    image = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    np.asarray(image.resize(CROP.size, Image.Resampling.BILINEAR))


def pillow_bare(files: Sequence[bytes]) -> None:
  for file in files:
    np.asarray(Image.open(io.BytesIO(file)))


RUNS: dict[str, Callable[[Sequence[bytes]], None]] = {
  'bare decoder (simplejpeg)': bare,
  'bare Pillow': pillow_bare,
  'cnnjax, crop 224': cnnjax_crop,
  'cnnjax without [jpeg], crop 224': cnnjax_without_extra,
  'Pillow, crop 224': pillow_crop,
}


def main() -> None:
  """Runs all in turn and prints the medians."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--images', type=int, default=48)
  parser.add_argument('--json', action='store_true')
  arguments = parser.parse_args()
  if resample.optional('cykooz_resizer') is None:
    parser.error("needs the extra: pip install 'cnnjax[jpeg]'")
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  report = {}
  for height, width in SIZES:
    rng = np.random.default_rng(0)
    cycle = [pictures()[i % len(pictures())] for i in range(arguments.images)]
    files = [encode(rng, picture, height, width) for picture in cycle]
    for run in RUNS.values():
      run(files[:4])
    rates: dict[str, list[float]] = {name: [] for name in RUNS}
    for i in range(arguments.rounds):
      for name, run in list(RUNS.items())[:: 1 if i % 2 else -1]:
        start = time.process_time()
        run(files)
        rates[name].append(len(files) / (time.process_time() - start))
    base = rates['bare decoder (simplejpeg)']
    report[f'{width}x{height}'] = {
      'kilobytes': statistics.mean(map(len, files)) / 1e3,
      'runs': {
        name: {
          'images_per_second': statistics.median(rate),
          'ratio': statistics.median(a / b for a, b in zip(rate, base, strict=True)),
        }
        for name, rate in rates.items()
      },
    }
  if arguments.json:
    print(json.dumps(report))
    return
  for size, row in report.items():
    print(f'{size}, {row["kilobytes"]:.0f} kB{"":16} images/s   ratio')
    for name, figures in row['runs'].items():
      print(f'  {name:32} {figures["images_per_second"]:7.0f} {figures["ratio"]:7.2f}')


if __name__ == '__main__':
  main()
