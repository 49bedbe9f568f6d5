"""What a network is: its size and cost, what its convolutions share, and the matrices they are."""

from cnnjax.analysis import ledger, toeplitz
from cnnjax.analysis.macs import Count, Layer, count, count_fn, register

__all__ = ['Count', 'Layer', 'count', 'count_fn', 'ledger', 'register', 'toeplitz']
