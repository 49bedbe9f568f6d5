"""The optional distribution `cnnjax-onednn` (native/): whether to use it, and what it can do."""

import functools
import importlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.errors import UserError

_LOGGER = logging.getLogger(__name__)

CHOICES = ('auto', 'xla', 'onednn')
_WORTH = 4_000_000  # products that are worth a thread: fewer take less time than waking it
_PRODUCTS_OF_A_VALUE = 16  # that take as long as it takes to read or write a value

# `with using('xla'):` and functions traced within leave all to XLA; 'onednn' insists on the plugin.
# jit knows of it: a function is traced anew under another choice.
using = jax.make_user_context('auto')


def chosen() -> bool:
  """Whether functions traced here are to ask the plugin.

  Raises:
    UserError: it is insisted on and missing.
  """
  if using.value not in CHOICES:
    raise UserError(f'ops={using.value!r} is unknown. Allowed: {", ".join(map(repr, CHOICES))}')
  if using.value == 'xla':
    return False
  if load() is None and using.value == 'onednn':
    raise UserError("ops='onednn' needs the distribution cnnjax-onednn: pip install ./native")
  return load() is not None


def slow_in_loops() -> bool:
  """Whether convolutions traced here would be naive loops inside of `lax.scan` and its like: XLA's
  are, on the CPU."""
  return jax.default_backend() == 'cpu' and not chosen()


@functools.cache
def load() -> Any:
  """The plugin, its targets registered; None where it isn't installed or can't be loaded."""
  try:
    plugin = importlib.import_module('cnnjax_onednn')
    plugin.load()
  except ImportError:
    _LOGGER.info('convolutions on the CPU run through XLA: cnnjax-onednn is not installed')
    return None
  except (OSError, AttributeError) as error:
    _LOGGER.warning('convolutions on the CPU run through XLA: cnnjax-onednn: %s', error)
    return None
  return plugin


def threads(products: int, values: int) -> int:
  """Threads for one call: the virtual devices, which run at the same time, share the cores.

  A function of the shapes alone within a process, since the order of sums depends on it.

  Args:
    products: multiplications that it makes.
    values: that it reads and writes.
  """
  most = load().cores() // jax.local_device_count('cpu')
  return max(1, min(most, (products + _PRODUCTS_OF_A_VALUE * values) // _WORTH))


def problem(
  kind: str,
  images: Sequence[int],
  kernel: Sequence[int],
  outputs: Sequence[int],
  window: Any,
  dtype: Any,
  *,
  activation: int = 0,
  residual: bool = False,
) -> tuple[int, ...]:
  """A convolution as the plugin describes it: the fields of `Problem` in convolution.h.

  Args:
    kind: 'forward', 'input_gradient', 'weight_gradient' or 'inference'.
    images, kernel, outputs: shapes.
    window: `cnnjax.ops.convolution.Window`.
    dtype: float32 or bfloat16.
    activation, residual: what 'inference' has beside its bias; see `Activation` in convolution.h.
  """
  (top, bottom), (left, right) = window.padding
  sizes = (*images, *outputs[1:], *kernel[:2])
  places = (*window.strides, top, bottom, left, right, *window.dilation, window.groups)
  options = (int(dtype == jnp.bfloat16), int(kind == 'inference'), activation, int(residual))
  products = math.prod(outputs) * math.prod(kernel[:3])
  count = threads(products, math.prod(images) + math.prod(outputs))
  return (load().KINDS.index(kind), *sizes, *places, *options, count)


def packed_bytes(problem: tuple[int, ...]) -> int | None:
  """The bytes of the kernel as oneDNN orders it; None where it has only naive loops."""
  found = load().query(problem)
  return None if found is None or 'ref' in found[0] else found[1]


def takes(problem: tuple[int, ...]) -> bool:
  """Whether oneDNN has more than naive loops for it."""
  return packed_bytes(problem) is not None


def window_attributes(window: Any) -> dict[str, Any]:
  """A window as the plugin's targets take it."""
  integers = functools.partial(np.array, dtype=np.int64)
  return {
    'strides': integers(window.strides),
    'padding': integers(sum(window.padding, ())),
    'dilation': integers(window.dilation),
    'groups': np.int64(window.groups),
  }


def call(target: str, threads: int, **attributes: Any) -> Callable[..., Any]:
  """The lowering rule that calls a target of the plugin."""
  rule = jax.ffi.ffi_lowering(f'cnnjax_onednn_{target}')
  return functools.partial(rule, threads=np.int64(threads), **attributes)
