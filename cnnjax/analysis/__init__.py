"""What a network is: its size and cost, what its convolutions share, what its layers see, and the
matrices they are."""

from cnnjax.analysis import effective_field, field_plots, ledger, toeplitz
from cnnjax.analysis.macs import Count, Layer, count, count_fn, register
from cnnjax.analysis.receptive_field import Field, fields, fields_fn

__all__ = [
  'Count',
  'Field',
  'Layer',
  'count',
  'count_fn',
  'effective_field',
  'field_plots',
  'fields',
  'fields_fn',
  'ledger',
  'register',
  'toeplitz',
]
