"""Convolutions of oneDNN as XLA foreign functions on the CPU.

Loading registers the targets `cnnjax_onednn_*` (`TARGETS`) with JAX. All take [n, h, w, c] images
and [kernel_h, kernel_w, c / groups, out_c] kernels in float32 or bfloat16, and the attributes
`strides`, `dilation` (height, width), `padding` (top, bottom, left, right), `groups`, `threads`.
`members` computes several of one `kind`: what has a leading axis is each member's own.
"""

import ctypes
import functools
import importlib.metadata
import os
import pathlib

import jax
import numpy as np

KINDS = ('forward', 'input_gradient', 'weight_gradient', 'inference')
TARGETS = (
  *(*KINDS, 'members', 'pack'),
  *('channel_moments', 'channel_sums', 'max_pool', 'max_pool_gradient'),
)


@functools.cache
def load() -> ctypes.CDLL:
  """Loads the library and registers its targets, once.

  Raises:
    OSError: it, oneDNN or the OpenMP runtime can't be loaded here.
  """
  # Threads that spin for work after a convolution take their core from XLA's. The runtime reads
  # this when it is loaded; who has set it means it.
  os.environ.setdefault('GOMP_SPINCOUNT', '2000')
  # oneDNN's wheel puts its library beside the environment's others, where no loader looks.
  for file in importlib.metadata.files('onednn-cpu-gomp') or ():
    if file.name == 'libdnnl.so.3':
      ctypes.CDLL(str(pathlib.Path(str(file.locate())).resolve()), mode=ctypes.RTLD_GLOBAL)
  library = ctypes.CDLL(str(next(pathlib.Path(__file__).parent.glob('_kernels*.so'))))
  library.cnnjax_onednn_query.restype = ctypes.c_int64
  for name in TARGETS:
    symbol = getattr(library, f'cnnjax_onednn_{name}')
    jax.ffi.register_ffi_target(f'cnnjax_onednn_{name}', jax.ffi.pycapsule(symbol), platform='cpu')
  return library


def cores() -> int:
  """The processor cores that this process may use."""
  return len(os.sched_getaffinity(0))


@functools.lru_cache(maxsize=4096)
def query(problem: tuple[int, ...]) -> tuple[str, int] | None:
  """oneDNN's implementation for a problem, and the bytes of its kernel as it orders it.

  Args:
    problem: the fields of `Problem` in convolution.h, in their order.

  Returns:
    None where it has nothing.
  """
  name = ctypes.create_string_buffer(128)
  fields = np.array(problem, np.int64)
  pointer = fields.ctypes.data_as(ctypes.c_void_p)
  size = load().cnnjax_onednn_query(pointer, len(fields), name, len(name))
  return None if size < 0 else (name.value.decode(), size)
