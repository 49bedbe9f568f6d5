"""What a network is: its size and cost, what its convolutions share, what its layers see, the
matrices they are, and where their answers come from."""

from cnnjax.analysis import attribution, ledger, toeplitz
from cnnjax.analysis import equivariance, ledger, toeplitz
from cnnjax.analysis import curvature, gradients, landscape, ledger, toeplitz
from cnnjax.analysis import filters, ledger, similarity, synthesis, toeplitz
from cnnjax.analysis import effective_field, field_plots, ledger, toeplitz
from cnnjax.analysis import attribution, evaluation, ledger, toeplitz
from cnnjax.analysis.macs import Count, Layer, count, count_fn, register
from cnnjax.analysis.receptive_field import Field, fields, fields_fn

__all__ = [
  'Count',
  'Field',
  'Layer',
  'attribution',
  'count',
  'count_fn',
  'equivariance',
  'curvature',
  'effective_field',
  'field_plots',
  'evaluation',
  'fields',
  'fields_fn',
  'gradients',
  'landscape',
  'filters',
  'ledger',
  'register',
  'similarity',
  'synthesis',
  'toeplitz',
]
