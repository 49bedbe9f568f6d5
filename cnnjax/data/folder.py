"""Image folders: one folder per class; its name is the class's name.

`PATH/train` and `PATH/test` (or `val`, `validation`) are the splits where they exist. Otherwise a
fifth is set aside for testing by a hash of `class/file`: each file's side depends on its own name
alone, so adding files moves none.
"""

import concurrent.futures
import dataclasses
import hashlib
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from cnnjax.data import preprocess
from cnnjax.data.files import open_regular
from cnnjax.data.sources import UnreadableImage, stack
from cnnjax.errors import UserError

_LOGGER = logging.getLogger(__name__)

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp')
_TEST_FOLDERS = ('test', 'val', 'validation')
_TEST_FRACTION = 0.2
_DEEPEST = 100  # folders within each other
_THREADS = 16  # reading headers waits for the disk, not for the processor


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
  """Images decoded when they are read, always to RGB.

  Attributes:
    root: the folder that `files` are relative to.
    files: one per example, in order.
    labels: int32 `[N]`.
    class_names: the sorted names of the folders.
    image_shape: (H, W, 3), or None where sizes vary.
    transform: applied to each decoded image.
    num_unreadable: images left out because their header is damaged.
    max_unreadable: how many may be left out in all.
  """

  root: str
  files: tuple[str, ...]
  labels: np.ndarray
  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int] | None
  transform: preprocess.HostTransform | None
  num_unreadable: int
  max_unreadable: int

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: Any) -> dict[str, Any]:
    if np.ndim(index):
      return stack([self[int(i)] for i in index])
    example = self.read(int(index), self.transform)
    shape = example['image'].shape
    if self.image_shape is not None and shape != self.image_shape:
      raise UnreadableImage(
        self.describe(index), f'its size is now {shape}, was {self.image_shape}'
      )
    return example

  def read(
    self, index: int, transform: preprocess.HostTransform | None, *, step: int = 0
  ) -> dict[str, Any]:
    """One example, with this transform instead of the source's own."""
    path = self.describe(index)
    try:
      image = preprocess.decode(path, transform=transform, step=step, id=index)
    except preprocess.DecodeError as error:
      raise UnreadableImage(path, str(error)) from error
    return {'image': image, 'label': int(self.labels[index])}

  def describe(self, index: int) -> str:
    """The file of an example."""
    return os.path.join(self.root, self.files[index])


def in_test(relative: str, fraction: float = _TEST_FRACTION) -> bool:
  """Whether `class/file` is set aside for testing; a pure function of the name."""
  digest = hashlib.sha256(relative.encode('utf-8', 'surrogateescape')).digest()
  return int.from_bytes(digest[:8], 'big') < fraction * 2**64


def _entries(folder: pathlib.Path, root: pathlib.Path) -> list[os.DirEntry]:
  """What a folder holds, sorted, less hidden names; links may not lead out of `root`."""
  try:
    with os.scandir(folder) as found:
      entries = sorted((e for e in found if not e.name.startswith('.')), key=lambda e: e.name)
  except OSError as error:
    raise UserError(f'data.name=folder:{root}: {error.strerror}: {folder}') from error
  for entry in entries:
    if not entry.is_symlink():
      continue
    if not pathlib.Path(os.path.realpath(entry.path)).is_relative_to(root):
      raise UserError(f'data.name=folder:{root}: {entry.path} is a link out of the folder')
    if os.path.isdir(entry.path):
      raise UserError(
        f'data.name=folder:{root}: {entry.path} is a link to a folder; only links to files are read'
      )
  return entries


def _images(folder: pathlib.Path, root: pathlib.Path) -> Iterator[str]:
  if len(folder.parts) - len(root.parts) > _DEEPEST:
    raise UserError(f'data.name=folder:{root}: folders more than {_DEEPEST} deep')
  for entry in _entries(folder, root):
    if entry.is_dir(follow_symlinks=False):
      yield from _images(pathlib.Path(entry.path), root)
    elif entry.name.lower().endswith(EXTENSIONS):
      yield entry.path


def _scan(folder: pathlib.Path, root: pathlib.Path) -> dict[str, list[str]]:
  """The images of each class folder, relative to `folder`, with forward slashes."""
  return {
    entry.name: [pathlib.Path(path).relative_to(folder).as_posix() for path in images]
    for entry in _entries(folder, root)
    if entry.is_dir(follow_symlinks=False)
    for images in [list(_images(pathlib.Path(entry.path), root))]
  }


def _layout(root: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None]:
  """The folders of the training and of the test images; None: to be split by hash."""
  names = {entry.name for entry in _entries(root, root) if entry.is_dir(follow_symlinks=False)}
  if 'train' not in names or names - {'train', *_TEST_FOLDERS}:
    return root, None  # beside other classes, 'train' is a class (of vehicles, say)
  test = next((root / name for name in _TEST_FOLDERS if name in names), None)
  return root / 'train', test


def load(
  path: str,
  split: str,
  *,
  transform: preprocess.HostTransform | None = None,
  varies: bool = False,
  max_unreadable: int = 10,
) -> FolderSource:
  """Lists a folder and reads every image's header.

  Args:
    path: the folder.
    split: 'train' or 'test'.
    transform: brings the images to one size, e.g. a `preprocess.Resize`; None to leave them.
    varies: sizes may differ (they are cropped later), although there is no transform.
    max_unreadable: more damaged images than this are refused.

  Raises:
    UserError: the folder is missing, empty, has one class or a class without images, leads out
      of itself; too many images are damaged; or sizes differ without a transform.
  """
  # The real path, so that links can be told to lead out of it.
  root = pathlib.Path(os.path.realpath(os.path.expanduser(path)))
  field = f'data.name=folder:{path}'
  if not root.is_dir():
    raise UserError(f'{field}: no such folder')
  train_folder, test_folder = _layout(root)
  classes = _scan(train_folder, root)
  if not classes:
    raise UserError(f'{field}: {train_folder} is empty, allowed is one folder of images per class')
  if len(classes) == 1:
    raise UserError(f'{field}: only one class ({next(iter(classes))}), allowed two or more')
  for name, files in classes.items():
    if not files:
      raise UserError(f'{field}: class {name!r} has no images, allowed are {", ".join(EXTENSIONS)}')
  class_names = tuple(classes)
  folder, per_class = train_folder, classes
  if test_folder is None:
    per_class = {
      name: [file for file in files if in_test(file) == (split == 'test')]
      for name, files in classes.items()
    }
  elif split == 'test':
    folder, per_class = test_folder, _scan(test_folder, root)
    if strangers := sorted(set(per_class) - set(classes)):
      raise UserError(f'{field}: {test_folder} has classes without training images: {strangers}')
  label = {name: i for i, name in enumerate(class_names)}
  listed = [(file, label[name]) for name, files in per_class.items() for file in files]
  if not listed:
    raise UserError(f'{field}: no images in the {split} split of {folder}')

  def header(item: tuple[str, int]) -> tuple[int, int] | str:
    try:
      path = os.path.join(folder, item[0])
      with open_regular(path) as file, preprocess.open_image(file) as image:
        return preprocess.oriented_size(image)
    except (preprocess.DecodeError, OSError, ValueError, SyntaxError) as error:
      return str(error)

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    headers = list(pool.map(header, listed))
  damaged = [(f, h) for (f, _), h in zip(listed, headers, strict=True) if isinstance(h, str)]
  for file, reason in damaged:
    _LOGGER.warning('unreadable image, left out: %s: %s', os.path.join(folder, file), reason)
  if len(damaged) > max_unreadable:
    raise UserError(
      f'{field}: {len(damaged)} unreadable images, data.max_unreadable={max_unreadable}: '
      + ', '.join(os.path.join(folder, file) for file, _ in damaged[:3])
    )
  good = [(f, i, h) for (f, i), h in zip(listed, headers, strict=True) if not isinstance(h, str)]
  if not good:
    raise UserError(f'{field}: no readable image in the {split} split of {folder}')

  shape = None
  if transform is not None:
    height, width, _ = transform(np.zeros((*good[0][2], 3), np.uint8)).shape
    shape = (height, width, 3)
  elif not varies:
    first, _, (height, width) = good[0]
    for file, _, size in good:
      if size != (height, width):
        raise UserError(
          f'{field}: images of mixed size: {first} is {height}x{width}, {file} is '
          f'{size[0]}x{size[1]} (height x width); set data.image_size, e.g. (224, 224)'
        )
    shape = (height, width, 3)
  return FolderSource(
    root=str(folder),
    files=tuple(file for file, _, _ in good),
    labels=np.array([i for _, i, _ in good], np.int32),
    class_names=class_names,
    image_shape=shape,
    transform=transform,
    num_unreadable=len(damaged),
    max_unreadable=max_unreadable,
  )
