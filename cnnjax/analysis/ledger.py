"""What convolution saves: a layer's weights and connections beside those of its untied and fully
connected counterparts, which map the same image to the same output.

LeCun et al. 1998, section II; Goodfellow, Bengio & Courville 2016, *Deep Learning*, section 9.2
(sparse interactions, parameter sharing).
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax import ops
from cnnjax.analysis import macs, windows
from cnnjax.errors import UserError

Pair = tuple[int, int]


class Entry(NamedTuple):
  """One layer, for one image. A dense layer on a map is a convolution of 1 x 1.

  Attributes:
    name: path of the module; '' for a layer by itself.
    input: (H, W, C), or (C,).
    output: (H', W', F), or (F,).
    kernel: (kh, kw, C / groups, F), or (C, F).
    parameters: of the convolution: one kernel, spanning the channels of its group, and one bias
      for each feature.
    parameters_per_channel_filter: kh * kw + 1 for each feature, as texts count that take every
      filter for one over a single channel. The parameters of no layer, if C / groups > 1.
    locally_connected_parameters: with a kernel of its own (and biases) at every position.
    fully_connected_weights: every output from every input.
    fully_connected_parameters: and a bias for each output.
    connections: pairs of an input and an output that it is computed from; padding isn't an input.
    sparsity: share of all pairs that aren't connected.
    reuse: connections for each weight.
    macs: products; those with padding count.
    bytes: of input, kernel, biases and output, each once, in float32.
    intensity: arithmetic intensity: floating-point operations (2 for a MAC) for each of the bytes.
  """

  name: str
  input: tuple[int, ...]
  output: tuple[int, ...]
  kernel: tuple[int, ...]
  parameters: int
  parameters_per_channel_filter: int
  locally_connected_parameters: int
  fully_connected_weights: int
  fully_connected_parameters: int
  connections: int
  sparsity: float
  reuse: float
  macs: int
  bytes: int
  intensity: float


def convolution(
  image_shape: tuple[int, int, int],
  *,
  features: int,
  kernel_size: Pair,
  strides: Pair = (1, 1),
  padding: windows.Padding = 'SAME',
  dilation: Pair = (1, 1),
  groups: int = 1,
  use_bias: bool = True,
  name: str = '',
) -> Entry:
  """The entry of a convolution.

  Args:
    image_shape: (H, W, C).
    features: output channels F.
    kernel_size: (kh, kw).
    strides: of the window, in pixels.
    padding: 'SAME', 'VALID', 'CIRCULAR', or pixels (before, after) for each side.
    dilation: distance of the kernel's taps, in pixels.
    groups: of channels that don't see each other.
    use_bias: a bias for each feature.
    name: of the entry.

  Raises:
    UserError: shapes that don't fit.
  """
  *size, channels = image_shape
  if features < 1 or channels < 1 or groups < 1 or channels % groups or features % groups:
    raise UserError(f'groups={groups} must divide {channels} channels and {features} features')
  down, right = (
    windows.meetings(n, taps, stride=stride, dilation=apart, padding=pads)
    for n, taps, stride, apart, pads in zip(
      size, kernel_size, strides, dilation, windows.sides(padding), strict=True
    )
  )
  inner, outputs = channels // groups, (down.outputs, right.outputs, features)
  return _entry(
    name,
    tuple(image_shape),
    outputs,
    (*kernel_size, inner, features),
    connections=len(down.tap) * len(right.tap) * inner * features,
    per_channel=(math.prod(kernel_size) + 1) * features,
    use_bias=use_bias,
  )


def _entry(
  name: str,
  inputs: tuple[int, ...],
  outputs: tuple[int, ...],
  kernel: tuple[int, ...],
  *,
  connections: int,
  per_channel: int,
  use_bias: bool,
) -> Entry:
  weights, positions = math.prod(kernel), math.prod(outputs[:-1])
  biases, products = use_bias * outputs[-1], positions * weights
  pairs, numbers = math.prod(inputs) * math.prod(outputs), math.prod(inputs) + math.prod(outputs)
  moved = 4 * (numbers + weights + biases)
  return Entry(
    name,
    inputs,
    outputs,
    kernel,
    parameters=weights + biases,
    parameters_per_channel_filter=per_channel,
    locally_connected_parameters=positions * (weights + biases),
    fully_connected_weights=pairs,
    fully_connected_parameters=pairs + positions * biases,
    connections=connections,
    sparsity=1 - connections / pairs,
    reuse=connections / weights,
    macs=products,
    bytes=moved,
    intensity=2 * products / moved,
  )


def entries(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[Entry, ...]:
  """The entries of a model's convolutions and dense layers, in the order of computation.

  They are read from its jaxpr, so any linen module will do. Other products (of attention, of
  untied layers, transposed convolutions) have no entry.

  Args:
    model: called as `model.apply(variables, images)`.
    input_shape: (H, W, C) of the image.
  """
  images = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
  with ops.using('xla'):
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    jaxpr = jax.make_jaxpr(model.apply)(variables, images)
  biased = {
    jax.tree_util.keystr(path[:-1], simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(variables.get('params', {}))
    if path[-1].key == 'bias'
  }
  read = {'conv_general_dilated': _of_convolution, 'dot_general': _of_dense}
  found = [
    read[eqn.primitive.name](name, eqn, name in biased)
    for name, eqn in macs.equations(jaxpr, model.name or type(model).__name__)
    if eqn.primitive.name in read
  ]
  return tuple(entry for entry in found if entry)


def _of_convolution(name: str, eqn: Any, use_bias: bool) -> Entry | None:
  x, w = (v.aval for v in eqn.invars)
  params, spec = eqn.params, eqn.params['dimension_numbers']
  transposed = any(step > 1 for step in params['lhs_dilation'])
  if transposed or x.ndim != 4 or params['batch_group_count'] > 1 or w.dtype == bool:
    return None
  batch, channels, *size = (x.shape[axis] for axis in spec.lhs_spec)
  if batch != 1:
    return None  # patches or a batch of something else
  features, _, *kernel_size = (w.shape[axis] for axis in spec.rhs_spec)
  return convolution(
    (*size, channels),
    features=features,
    kernel_size=tuple(kernel_size),
    strides=params['window_strides'],
    padding=params['padding'],
    dilation=params['rhs_dilation'],
    groups=params['feature_group_count'],
    use_bias=use_bias,
    name=name,
  )


def _of_dense(name: str, eqn: Any, use_bias: bool) -> Entry | None:
  """A matrix that the last axis of one image's map goes through."""
  (contracted, batched) = eqn.params['dimension_numbers']
  x, w = (v.aval for v in eqn.invars)
  if batched != ((), ()) or contracted != ((x.ndim - 1,), (0,)) or w.ndim != 2 or x.shape[0] != 1:
    return None
  if x.ndim == 4:
    return convolution(
      x.shape[1:], features=w.shape[1], kernel_size=(1, 1), use_bias=use_bias, name=name
    )
  if x.ndim != 2:
    return None
  inputs, features = w.shape
  return _entry(
    name,
    (inputs,),
    (features,),
    w.shape,
    connections=inputs * features,
    per_channel=2 * features,
    use_bias=use_bias,
  )
