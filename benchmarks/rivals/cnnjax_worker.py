"""The worker for cnnjax: the training step and the inference that its users run."""

import importlib.metadata
import importlib.util
import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from serve import Run, batch, check_close, serve

from cnnjax import models
from cnnjax.ops import plugin
from cnnjax.tasks.classification import classification
from cnnjax.training import parallel
from cnnjax.training import state as state_lib
from cnnjax.training import steps as steps_lib

LEARNING_RATE, MOMENTUM = 1e-3, 0.9


def make(spec: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
  """The step for a specification; see `serve`."""
  model = models.create(spec['model'], num_classes=spec['classes'])
  images, labels = batch(spec)
  build = _training if spec['mode'] == 'train' else _inference
  run, params, settings = build(model, images, labels)
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'cnnjax', 'cnnjax-onednn')
  return run, {
    'parameters': sum(p.size for p in jax.tree.leaves(params)),
    'versions': {'python': platform.python_version(), **dict(_versions(packages))},
    'settings': {'convolutions': 'onednn' if plugin.load() else 'xla', **settings},
  }


def _training(model, images: np.ndarray, labels: np.ndarray) -> tuple[Run, Any, dict[str, Any]]:
  task = classification(model)
  optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
  examples = {
    'image': images,
    'label': labels,
    'id': np.arange(len(labels), dtype=np.int32),
    'mask': np.ones(len(labels), np.float32),
  }
  state = jax.jit(lambda key: state_lib.init(key, task, optimizer, examples))(jax.random.key(0))
  train_step = steps_lib.make_train_step(
    task, optimizer, key=jax.random.key(1), preprocess=lambda key, images, ids, train: images
  )
  step = parallel.create(devices=1).compile(train_step, donate=True)
  examples = jax.device_put(examples)
  params = jax.eval_shape(lambda: state.params)

  def run(steps: int) -> None:
    nonlocal state
    for _ in range(steps):
      state, metrics = step(state, examples)
    jax.block_until_ready((state, metrics))
    if not np.isfinite(metrics['loss']):
      raise FloatingPointError(f'loss {metrics["loss"]}')

  return run, params, {}


def _inference(model, images: np.ndarray, labels: np.ndarray) -> tuple[Run, Any, dict[str, Any]]:
  del labels
  images = jax.device_put(images)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros_like(images[:1]))
  variables = _trained(variables)
  plain = jax.jit(lambda variables, images: model.apply(variables, images))
  expected = np.asarray(plain(variables, images))
  if importlib.util.find_spec('cnnjax.inference'):
    from cnnjax import inference

    predict, how = inference.compile(model, variables, images.shape), 'cnnjax.inference'
  else:
    predict, how = jax.jit(lambda images: model.apply(variables, images)), 'jax.jit'
  error = check_close('cnnjax', np.asarray(predict(images)), expected)

  def run(steps: int) -> None:
    for _ in range(steps):
      jax.block_until_ready(predict(images))

  return run, variables['params'], {'inference': how, 'difference_from_apply': error}


def _trained(variables: Any) -> Any:
  """Scales, biases and running statistics that aren't 0 or 1, as after training.

  Else a batch normalisation that is folded wrongly, or not at all, would give the right logits.
  """
  rng = np.random.RandomState(0)

  def fill(path, x):
    z = rng.standard_normal(x.shape).astype(np.float32)
    name = path[-1].key
    if name == 'var':
      return jnp.asarray(1 + 0.2 * np.abs(z))
    return x + 0.1 * z if x.ndim == 1 else x

  return jax.tree_util.tree_map_with_path(fill, variables)


def _versions(packages):
  for package in packages:
    try:
      yield package, importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue


if __name__ == '__main__':
  serve(make)
