"""Statistics of batch normalisation, taken anew for the variables that are evaluated.

The running statistics lag behind the parameters, and fit an average of parameters even less (Wu &
Johnson 2021, "Rethinking Batch in BatchNorm", arXiv:2105.07576, section 3: PreciseBN).
"""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from flax import traverse_util


def pool(statistics: Iterable[Any]) -> Any:
  """The statistics of the union of equal batches.

  Args:
    statistics: `batch_stats` of each batch: leaves `mean` and `var`, [C].

  Returns:
    One such tree, float32: means of `mean`; of `var`, its mean plus the variance of `mean`.
  """
  trees: list[dict[Any, Any]] = [
    traverse_util.flatten_dict(jax.device_get(tree)) for tree in statistics
  ]
  pooled = {}
  for path in trees[0]:
    values = np.stack([tree[path] for tree in trees]).astype(np.float64)
    pooled[path] = values.mean(axis=0)
    if path[-1] == 'var':
      means = np.stack([tree[(*path[:-1], 'mean')] for tree in trees]).astype(np.float64)
      pooled[path] += means.var(axis=0)
  return traverse_util.unflatten_dict({k: v.astype(np.float32) for k, v in pooled.items()})
