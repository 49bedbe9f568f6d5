"""How alike the features of two layers or two networks are, and what can be read off them.

Linear centred kernel alignment (CKA), Kornblith et al. 2019, arXiv:1905.00414, section 3. Features
are those of `cnnjax.models.features`, of any models, for the same images in the same order.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.errors import UserError
from cnnjax.training import probes

Features = Mapping[str, Any]


def cka(x: Any, y: Any, *, debiased: bool = False) -> jax.Array:
  """Linear CKA of two sets of features: 1 if they are equal up to rotation, shift and scale.

  Args:
    x: `[N, ...]`, flattened to `[N, D]`.
    y: `[N, ...]`; its D may differ.
    debiased: by the unbiased estimate HSIC_1 (Song et al. 2012, section 3; Nguyen et al. 2021,
      arXiv:2010.15327, equation 3), which is near 0 for independent features however few the
      images are beside D. It may be slightly negative.

  Raises:
    UserError: not as many examples in both, or fewer than 4.
  """
  return compare({'x': x}, {'y': y}, debiased=debiased)[0, 0]


def compare(
  first: Features, second: Features | None = None, *, debiased: bool = False
) -> jax.Array:
  """CKA of every layer with every layer.

  Args:
    first: name to features `[N, ...]`.
    second: of another network; None for the same.
    debiased: see `cka`.

  Returns:
    `[len(first), len(second)]`, in the mappings' order.

  Raises:
    UserError: see `cka`.
  """
  names = {**first, **(second or {})}
  lengths = {len(x) for group in (first, second or {}) for x in group.values()}
  if len(lengths) != 1 or min(lengths) < 4:
    raise UserError(
      f'features of {", ".join(names)} have {sorted(lengths)} examples, allowed is one number'
      ' for all, at least 4'
    )
  rows = jnp.stack([_kernel(x, debiased) for x in first.values()])
  others = rows if second is None else jnp.stack([_kernel(x, debiased) for x in second.values()])
  return jnp.einsum('anm,bnm->ab', rows, others)


def _kernel(x: Any, debiased: bool) -> jax.Array:
  """The centred kernel matrix `[N, N]` of linear features, of norm 1; 0 if all are equal."""
  x = jnp.asarray(x, jnp.float32)
  x = x.reshape(len(x), -1)
  x = x - x.mean(0, keepdims=True)  # cancels below, but not to rounding
  kernel = x @ x.T
  n = len(x)
  if debiased:
    # U-centring, Székely & Rizzo 2014 (definition 2): its inner product is HSIC_1 n (n - 3).
    kernel = kernel * (1 - jnp.eye(n))
    sums = kernel.sum(0, keepdims=True)
    kernel = kernel - (sums + sums.T) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    kernel = kernel * (1 - jnp.eye(n))
  norm = jnp.linalg.norm(kernel)
  return kernel / jnp.where(norm > 0, norm, 1.0)


def pooled(features: Any, grid: int) -> jax.Array:
  """Means over grid x grid parts of a map, so that probes of all layers see as many places.

  Args:
    features: `[N, H, W, C]`, H and W multiples of `grid`; `[N, C]` stays as it is.
    grid: parts along each side.

  Returns:
    `[N, grid * grid * C]`, or `[N, C]`.

  Raises:
    UserError: the map can't be divided so.
  """
  features = jnp.asarray(features)
  if features.ndim == 2:
    return features
  if features.ndim != 4 or grid < 1 or features.shape[1] % grid or features.shape[2] % grid:
    raise UserError(
      f'grid={grid} must divide the sides of features [N, H, W, C], of shape {features.shape}'
    )
  n, h, w, c = features.shape
  parts = features.reshape(n, grid, h // grid, grid, w // grid, c)
  return parts.mean((2, 4)).reshape(n, -1)


def probe(
  train: Features,
  labels: Any,
  test: Features,
  truth: Any,
  *,
  num_classes: int,
  grid: int = 1,
  classify: Callable[..., np.ndarray] = probes.linear,
) -> dict[str, float]:
  """What share of the test images a classifier on each layer's features gets right.

  Alain & Bengio 2016, arXiv:1610.01644. Deeper layers have more channels, hence probes more
  weights: compare with the same layers of a network that isn't trained.

  Args:
    train: name to features `[N, H, W, C]` or `[N, C]`.
    labels: integer `[N]`.
    test: the same layers' `[M, ...]`.
    truth: integer `[M]`.
    num_classes: how many there are.
    grid: maps are averaged over so many parts along each side; see `pooled`.
    classify: of `cnnjax.training.probes`, or called as these are.
  """
  accuracy = {}
  for name, features in train.items():
    found = classify(
      pooled(features, grid), labels, pooled(test[name], grid), num_classes=num_classes
    )
    accuracy[name] = float(np.mean(found == np.asarray(truth)))
  return accuracy
