"""Opening data files: regular ones only, so that no pipe or device keeps a run waiting."""

import os
import stat
from typing import BinaryIO


def open_regular(path: str | bytes | os.PathLike[str]) -> BinaryIO:
  """Opens a regular file for reading; links are followed.

  Raises:
    OSError: it can't be opened, or is a pipe, a device or a folder.
  """
  # Without O_NONBLOCK, opening a pipe waits for its writer.
  number = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
  if not stat.S_ISREG(os.fstat(number).st_mode):
    os.close(number)
    raise OSError('not a regular file')
  return os.fdopen(number, 'rb')
