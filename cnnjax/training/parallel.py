"""Runs a per-device step over devices: the only file that names pmap or a mesh.

A run's devices share its batches (`create`), a population's its members (`members`). Of a run,
every strategy computes the same thing: the state is the same on all devices, a batch is split
along its first axis, and what comes out is the same on all devices because the step reduces over
`axis_name` itself. One device needs none of this, so there the step is only jitted.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnnjax import errors

AXIS = 'devices'
Devices = tuple[Any, ...]  # of jax.Device, which pyright does not accept as a type


class Parallel(NamedTuple):
  """How a step is spread over devices.

  Attributes:
    devices: those used, over all processes.
    axis_name: what a step reduces over, or None on one device.
    replicate: puts a tree on every device.
    split: puts this process's rows of a batch (a dict of [N, ...] NumPy arrays) on its devices.
    compile: `(step, donate) -> step`; takes `(state, batch, *replicated)`; `donate` says that the
      state's memory may be reused for what comes out.
  """

  devices: Devices
  axis_name: str | None
  replicate: Callable[[Any], Any]
  split: Callable[[dict[str, np.ndarray]], dict[str, Any]]
  compile: Callable[..., Callable[..., Any]]


def create(strategy: str = 'pmap', *, devices: int = 0) -> Parallel:
  """The strategy by name: `pmap` or `shard_map`.

  Args:
    strategy: the name.
    devices: how many of the devices to use; 0 for all.

  Raises:
    UserError: an unknown strategy, or more devices than there are.
  """
  found = jax.devices()
  if devices > len(found):
    raise errors.UserError(
      f'config.parallel.devices={devices} but this machine has {len(found)} ({found[0].platform})'
    )
  if jax.process_count() > 1 and devices not in (0, len(found)):
    raise errors.UserError(
      f'config.parallel.devices={devices}: several processes use all their devices, {len(found)}'
    )
  used = tuple(found[: devices or len(found)])
  if strategy not in _STRATEGIES:
    raise errors.unknown('config.parallel.strategy', strategy, _STRATEGIES)
  if len(used) == 1:
    return _single(used)
  parallel = _STRATEGIES[strategy](used)
  return _one_at_a_time(parallel) if used[0].platform == 'cpu' else parallel


class Members(NamedTuple):
  """How a population's members are shared out over devices, between which nothing travels.

  Attributes:
    devices: those used.
    place: puts a tree on them: arrays by their first axis, of members, and those of no axes on all.
    replicate: puts a tree on every device.
    compile: `(step, axes, out_axes, donate) -> step`, as jax.jit gives it: which axis of arguments
      and results is that of members, as `vmap` has it; `donate` as above.
  """

  devices: Devices
  place: Callable[[Any], Any]
  replicate: Callable[[Any], Any]
  compile: Callable[..., Any]


def members(count: int, *, devices: int = 0) -> Members:
  """As many of the devices as share `count` members equally.

  Args:
    count: of members.
    devices: how many to use at most; 0 for all.

  Raises:
    UserError: more devices than there are, or several processes.
  """
  if jax.process_count() > 1:
    raise errors.UserError(f'a population trains in one process, not in {jax.process_count()}')
  found = create(devices=devices).devices
  used = found[: max(d for d in range(1, len(found) + 1) if count % d == 0)]
  if len(used) == 1:
    put = _single(used).replicate
    one = lambda step, axes, out_axes, donate: jax.jit(step, donate_argnums=(0,) if donate else ())
    return Members(used, put, put, one)
  mesh = Mesh(np.asarray(used), (AXIS,))

  def put_by(spec: PartitionSpec) -> Callable[[Any], Any]:
    return lambda x: jax.device_put(x, NamedSharding(mesh, spec))

  def place(tree: Any) -> Any:
    split, replicate = put_by(PartitionSpec(AXIS)), put_by(PartitionSpec())
    return jax.tree.map(lambda x: split(x) if np.ndim(x) else replicate(x), tree)

  def specs(axes: Any) -> Any:
    spec = lambda a: PartitionSpec() if a is None else PartitionSpec(*(None,) * a, AXIS)
    return jax.tree.map(spec, axes, is_leaf=lambda a: a is None)

  def compile(step: Callable[..., Any], axes: Any, out_axes: Any, donate: bool) -> Any:
    spread = jax.shard_map(
      step, mesh=mesh, in_specs=specs(axes), out_specs=specs(out_axes), check_vma=False
    )
    return jax.jit(spread, donate_argnums=(0,) if donate else ())

  return Members(used, place, put_by(PartitionSpec()), compile)


def free_memory(devices: Devices) -> int:
  """Bytes that a program may take on each of the devices, with what it works on.

  A CPU's devices share half of the machine's memory that is available.
  """
  limits = [(device.memory_stats() or {}).get('bytes_limit', 0) for device in devices]
  if all(limits):
    return int(0.9 * min(limits))  # the rest is for what fragments
  try:
    with open('/proc/meminfo') as file:
      available = 1024 * int(dict(line.split(':') for line in file)['MemAvailable'].split()[0])
  except OSError:  # not Linux
    available = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2
  return available // (2 * len(devices))


def _one_at_a_time(parallel: Parallel) -> Parallel:
  # On the CPU a device waits for its peers' all-reduce in a thread of the one pool that its peers
  # need as well: with several steps under way all threads can wait, and the process hangs.
  def compile(step, donate=False):
    compiled = parallel.compile(step, donate)
    return lambda *args: jax.block_until_ready(compiled(*args))

  return parallel._replace(compile=compile)


def _single(devices: Devices) -> Parallel:
  (device,) = devices
  return Parallel(
    devices=devices,
    axis_name=None,
    replicate=lambda tree: jax.device_put(tree, device),
    split=lambda batch: batch,  # jit transfers NumPy arrays faster than device_put does
    compile=lambda step, donate=False: jax.jit(step, donate_argnums=(0,) if donate else ()),
  )


def _mesh_functions(devices: Devices) -> tuple[Mesh, Callable, Callable]:
  mesh = Mesh(np.asarray(devices), (AXIS,))
  everywhere, along_rows = (NamedSharding(mesh, p) for p in (PartitionSpec(), PartitionSpec(AXIS)))

  def replicate(tree):
    # Every process holds the same values, so each can fill its own devices with them.
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(everywhere, np.asarray(x)), tree
    )

  def split(batch):
    return {k: jax.make_array_from_process_local_data(along_rows, v) for k, v in batch.items()}

  return mesh, replicate, split


def _shard_map(devices: Devices) -> Parallel:
  mesh, replicate, split = _mesh_functions(devices)

  def compile(step, donate=False):
    def spread(state, batch, *replicated):
      # check_vma=False gives psum under grad the meaning that it has under pmap, on which the
      # steps rely: gradients are reduced where they say so and nowhere else.
      mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS), *(PartitionSpec() for _ in replicated)),
        out_specs=PartitionSpec(),
        check_vma=False,
      )
      return mapped(state, batch, *replicated)

    return jax.jit(spread, donate_argnums=(0,) if donate else ())

  return Parallel(devices, AXIS, replicate, split, compile)


def _pmap(devices: Devices) -> Parallel:
  _, replicate, split_rows = _mesh_functions(devices)
  local = sum(d.process_index == jax.process_index() for d in devices)

  def split(batch):
    # pmap maps a leading axis of devices: [N, ...] becomes [devices, N / devices, ...].
    return split_rows({k: v.reshape(local, -1, *v.shape[1:]) for k, v in batch.items()})

  def compile(step, donate=False):
    def spread(state, batch, *replicated):
      return mapped[len(replicated)](state, batch, *replicated)

    mapped = [
      jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, *(None for _ in range(n))),
        out_axes=None,
        devices=devices,
        donate_argnums=(0,) if donate else (),
      )
      for n in range(3)
    ]
    return spread

  return Parallel(devices, AXIS, replicate, split, compile)


_STRATEGIES = {'pmap': _pmap, 'shard_map': _shard_map}
