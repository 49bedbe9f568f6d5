"""What a network is: its size and cost, what its convolutions share, what its layers see, the
matrices they are, and where their answers come from."""

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
  'evaluation',
  'fields',
  'fields_fn',
  'ledger',
  'register',
  'toeplitz',
]
