"""The zoo: `create` builds a model by name, `names` lists them, `features` looks inside one.

One file per paper family; each lists its variants in `VARIANTS`.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import UserError, closest, unknown
from cnnjax.layers.norm import BatchNorm
from cnnjax.models import (
  airbench,
  alexnet,
  cnn,
  convnext,
  convnext_v2,
  densenet,
  ecanet,
  efficientnet,
  efficientnet_lite,
  efficientnet_v2,
  ghostnet,
  googlenet,
  inception,
  lenet,
  mlp,
  mnasnet,
  mobilenet_v1,
  mobilenet_v2,
  mobilenet_v3,
  mobilenet_v4,
  nf_resnet,
  nin,
  regnet,
  repvgg,
  resnet,
  resnet_blur,
  resnet_d,
  resnetv2,
  resnext,
  senet,
  shufflenet_v2,
  squeezenet,
  vgg,
  wide_resnet,
  xception,
  zfnet,
)
from cnnjax.models.entry import Entry

REGISTRY: dict[str, Entry] = {
  **lenet.VARIANTS,
  **cnn.VARIANTS,
  **mlp.VARIANTS,
  **resnet.VARIANTS,
  **ecanet.VARIANTS,
  **nf_resnet.VARIANTS,
  **resnet_blur.VARIANTS,
  **resnet_d.VARIANTS,
  **resnetv2.VARIANTS,
  **resnext.VARIANTS,
  **senet.VARIANTS,
  **wide_resnet.VARIANTS,
  **efficientnet.VARIANTS,
  **efficientnet_lite.VARIANTS,
  **efficientnet_v2.VARIANTS,
  **densenet.VARIANTS,
  **ghostnet.VARIANTS,
  **mnasnet.VARIANTS,
  **mobilenet_v1.VARIANTS,
  **mobilenet_v2.VARIANTS,
  **mobilenet_v3.VARIANTS,
  **mobilenet_v4.VARIANTS,
  **shufflenet_v2.VARIANTS,
  **alexnet.VARIANTS,
  **googlenet.VARIANTS,
  **inception.VARIANTS,
  **nin.VARIANTS,
  **squeezenet.VARIANTS,
  **vgg.VARIANTS,
  **xception.VARIANTS,
  **zfnet.VARIANTS,
  **regnet.VARIANTS,
  **convnext.VARIANTS,
  **convnext_v2.VARIANTS,
  **repvgg.VARIANTS,
  **airbench.VARIANTS,
}

# What a config or a flag may say for a field that holds a function, a type or a module.
ACTIVATIONS = {
  'relu': nn.relu,
  'relu6': nn.relu6,
  'leaky_relu': nn.leaky_relu,
  'elu': nn.elu,
  'gelu': nn.gelu,
  'silu': nn.silu,
  'hard_swish': nn.hard_swish,
  'softplus': nn.softplus,
  'sigmoid': nn.sigmoid,
  'tanh': jnp.tanh,
}
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16, 'float16': jnp.float16}
NORMS = {
  'batch': BatchNorm,
  'group': functools.partial(nn.GroupNorm, num_groups=32, epsilon=1e-5),
  'layer': functools.partial(nn.LayerNorm, epsilon=1e-6),
  'none': None,
}
_WORDS = {'act': ACTIVATIONS, 'dtype': DTYPES, 'norm': NORMS}


def names() -> tuple[str, ...]:
  """Every name that `create` knows, sorted."""
  return tuple(sorted(REGISTRY))


def create(name: str, *, num_classes: int = 1000, **overrides: Any) -> nn.Module:
  """Builds a model; `model.init(key, images)` then makes its variables.

  Args:
    name: one of `names()`.
    num_classes: number of logits.
    **overrides: fields of the model's module. Lists stand for tuples, and words for what a config
      can't hold: `act='relu'`, `dtype='bfloat16'`, `norm='none'`.

  Returns:
    A linen module: `model.apply(variables, images, train=False) -> logits`, images floating point
    [N, H, W, C], logits float32 [N, num_classes].

  Raises:
    UserError: an unknown name, an unknown field or word, or a value of the wrong type.
  """
  if name not in REGISTRY:
    raise unknown('model.name', name, REGISTRY)
  build = REGISTRY[name].build
  module = build.func if isinstance(build, functools.partial) else build
  fields = {f.name: f for f in dataclasses.fields(module)}  # pyright: ignore[reportArgumentType]
  allowed = fields.keys() - {'parent', 'name'}
  options = {}
  if isinstance(num_classes, int) and num_classes < 1:
    raise UserError(f'model.num_classes={num_classes!r} must be at least 1')
  for key, value in {'num_classes': num_classes, **overrides}.items():
    if key not in allowed:
      raise UserError(
        f'model.{key}={value!r} is not an option of {name!r}: {closest(key, allowed)}'
        f'Allowed: {", ".join(sorted(allowed))}'
      )
    options[key] = _parse(key, value, fields[key])
  return build(**options)


def features(
  model: nn.Module,
  variables: Any,
  images: jax.Array,
  names: Iterable[str] | None = None,
) -> dict[str, jax.Array]:
  """The outputs of named submodules in evaluation mode; works under `jax.jit`.

  Args:
    model: any model of the zoo, or any linen module called as `model(images, train=False)`.
    variables: its variables.
    images: [N, H, W, C], floating point, normalised.
    names: paths such as 'stem', 'stage2/block1', 'head'; None for all.

  Returns:
    Name to output. A submodule that is called several times gives its last output.

  Raises:
    UserError: a name that the model doesn't have; it names the closest.
  """

  def run(variables: Any, images: jax.Array, wanted: frozenset[str] | None):
    keep = lambda module, method: (
      method == '__call__'
      and bool(module.path)
      and (wanted is None or '/'.join(module.path) in wanted)
    )
    _, state = model.apply(
      variables, images, train=False, capture_intermediates=keep, mutable=['intermediates']
    )
    return _flatten(state.get('intermediates', {}))

  if names is None:
    return run(variables, images, None)
  wanted = tuple(names)
  existing = jax.eval_shape(functools.partial(run, wanted=None), variables, images)
  for name in wanted:
    if name not in existing:
      raise unknown('feature', name, existing)
  found = run(variables, images, frozenset(wanted))
  return {name: found[name] for name in wanted}


def _flatten(tree: Any, prefix: str = '') -> dict[str, jax.Array]:
  outputs = {}
  for key, value in tree.items():
    if key == '__call__':
      outputs[prefix] = value[-1]
    elif isinstance(
      value, Mapping
    ):  # values that a model sows itself aren't outputs of a submodule
      outputs.update(_flatten(value, f'{prefix}/{key}' if prefix else key))
  return outputs


def _parse(key: str, value: Any, field: dataclasses.Field) -> Any:
  """A field's value from what a config may hold; refuses a value of another type."""
  if key in _WORDS and isinstance(value, str):
    if value not in _WORDS[key]:
      raise unknown(f'model.{key}', value, _WORDS[key])
    return _WORDS[key][value]
  if isinstance(value, list):
    value = tuple(value)
  kind = {bool: bool, int: int, float: (int, float), tuple: tuple}.get(type(field.default))
  if kind and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
    raise UserError(f'model.{key}={value!r} must be of type {type(field.default).__name__}')
  return value
