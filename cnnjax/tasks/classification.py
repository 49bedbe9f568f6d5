"""Image classification: images in, one class (or a distribution over classes) out."""

import functools
import numbers
from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from cnnjax import errors
from cnnjax.tasks import Batch, Outputs, Task, Variables
from cnnjax.training import metrics as metrics_lib
from cnnjax.training.losses import LOSSES

ACTIVATIONS = {'softmax_cross_entropy': jax.nn.softmax, 'sigmoid_cross_entropy': jax.nn.sigmoid}


def classification(
  model: nn.Module,
  *,
  loss: str = 'softmax_cross_entropy',
  label_smoothing: float = 0.0,
  mirror: bool = False,
  shift: int = 0,
) -> Task:
  """The task of classifying images with a model.

  Args:
    model: images to logits `[N, C]`.
    loss: one of LOSSES.
    label_smoothing: in [0, 1), or traced (not checked); used in the training loss alone, never in
      metrics.
    mirror: predict by the mean of the logits of an image and of its mirror image, left and right.
    shift: predict by the mean over five windows of the image's size as well: the image itself and
      those moved by `shift` pixels along both diagonals, beyond whose border the image is reflected
      (the five crops of Krizhevsky et al. 2012, section 4.1; with `mirror`, their ten).

  Returns:
    A Task; its sums and summary are those of `training.metrics`.

  Raises:
    UserError: an unknown loss, or label smoothing out of range.
  """
  if loss not in LOSSES:
    raise errors.unknown('loss.name', loss, LOSSES)
  number = isinstance(label_smoothing, numbers.Real) and not isinstance(label_smoothing, bool)
  traced = isinstance(label_smoothing, Array)
  if not (traced or (number and 0 <= label_smoothing < 1)):
    raise errors.UserError(
      f'loss.label_smoothing={label_smoothing!r} must be a number from 0 to below 1'
    )
  cross_entropy, activation = LOSSES[loss], ACTIVATIONS[loss]

  def init(key: Array, batch: Batch) -> Variables:
    image = batch['image']
    variables = model.init(key, jnp.zeros((1, *image.shape[1:]), image.dtype), train=False)
    return {name: variables[name] for name in ('params', 'batch_stats') if name in variables}

  def predict(variables: Variables, batch: Batch) -> Array:
    views = _windows(batch['image'], shift) if shift else [batch['image']]
    if mirror:
      views += [view[:, :, ::-1] for view in views]
    logits = [cast(Array, model.apply(variables, view, train=False)) for view in views]
    return functools.reduce(jnp.add, logits) / len(views)

  def forward(variables: Variables, batch: Batch, key: Array | None) -> Outputs:
    rngs = None if key is None else {'dropout': key}

    def apply(variables, mutable):
      return model.apply(variables, batch['image'], train=True, rngs=rngs, mutable=mutable)

    # Layers that draw per example (dropout, stochastic depth) say where they are by leaving their
    # ids in the collection 'examples'. An abstract pass finds them, without computing anything.
    found = jax.eval_shape(lambda v: apply(v, ['batch_stats', 'examples'])[1], variables)
    ids = jax.tree.map(lambda _: batch['id'], found.get('examples', {}))
    logits, updated = apply({**variables, 'examples': ids} if ids else variables, ['batch_stats'])
    return Outputs(logits, updated.get('batch_stats', {}))

  def loss_fn(
    variables: Variables, batch: Batch, *, key: Array | None = None, train: bool
  ) -> tuple[Array, Outputs]:
    if train:
      outputs = forward(variables, batch, key)
    else:
      outputs = Outputs(predict(variables, batch), variables.get('batch_stats', {}))
    smoothing = label_smoothing if train else 0.0
    return cross_entropy(outputs.logits, batch['label'], label_smoothing=smoothing), outputs

  def metrics(logits: Array, batch: Batch) -> metrics_lib.Sums:
    losses = cross_entropy(logits, batch['label'])
    return metrics_lib.evaluation_sums(losses, logits, batch, activation=activation)

  def features(variables: Variables, batch: Batch) -> Array:
    into_head = []

    def look(function, args, kwargs, context):
      if context.module.path == ('head',) and context.method_name == '__call__':
        into_head.append(args[0])
      return function(*args, **kwargs)

    with nn.intercept_methods(look):
      model.apply(variables, batch['image'], train=False)
    x = into_head[-1].astype(jnp.float32)
    return x.mean((1, 2)) if x.ndim == 4 else x.reshape(len(x), -1)

  return Task(
    init=init,
    loss=loss_fn,
    metrics=metrics,
    predict=predict,
    summarize=metrics_lib.summarize,
    features=features,
  )


def _windows(images: Array, shift: int) -> list[Array]:
  """The centre and the four corners of images reflected at their border."""
  _, height, width, _ = images.shape
  if shift >= min(height, width):
    raise errors.UserError(f'eval_shift={shift} must be below the image size {height}x{width}')
  padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode='reflect')
  corners = [(y, x) for y in (0, 2 * shift) for x in (0, 2 * shift)]
  return [padded[:, y : y + height, x : x + width] for y, x in [(shift, shift), *corners]]
