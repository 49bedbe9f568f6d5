"""What the C library is told about memory; it reads this when a process starts, and only then.

XLA and oneDNN touch gigabytes of activations at every step. On the CPU, pages of 4 KiB for them
take a fifth of its time, and asking the system for them anew at every step another tenth.
"""

import importlib.util
import os
import pathlib
import sys


def environment() -> dict[str, str]:
  """Variables for a process that trains on the CPU: huge pages, and large arrays kept for reuse.

  Empty where it doesn't apply: on other systems than Linux, and where somebody has set them.
  The second needs `cnnjax-onednn`.
  """
  if sys.platform != 'linux' or 'GLIBC_TUNABLES' in os.environ or 'LD_PRELOAD' in os.environ:
    return {}
  variables = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
  plugin = importlib.util.find_spec('cnnjax_onednn')  # its path alone: importing it imports JAX
  for folder in (plugin and plugin.submodule_search_locations) or ():
    for library in pathlib.Path(folder).glob('_memory*.so'):
      variables['LD_PRELOAD'] = str(library)
  return variables
