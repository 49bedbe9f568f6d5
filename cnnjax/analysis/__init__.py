"""What a network is and does: its size and cost, what its convolutions share and its layers see,
the matrices they are, what moves with the image, where answers come from, how its cost is curved.
"""

from cnnjax.analysis import (
  attribution,
  curvature,
  effective_field,
  equivariance,
  evaluation,
  field_plots,
  filters,
  gradients,
  landscape,
  ledger,
  similarity,
  synthesis,
  toeplitz,
)
from cnnjax.analysis.macs import Count, Layer, count, count_fn, register
from cnnjax.analysis.receptive_field import Field, fields, fields_fn

__all__ = [
  'Count',
  'Field',
  'Layer',
  'attribution',
  'count',
  'count_fn',
  'curvature',
  'effective_field',
  'equivariance',
  'evaluation',
  'field_plots',
  'fields',
  'fields_fn',
  'filters',
  'gradients',
  'landscape',
  'ledger',
  'register',
  'similarity',
  'synthesis',
  'toeplitz',
]
