"""What a network is and does: its size and cost so far."""

from cnnjax.analysis.macs import Count, Layer, count, count_fn, register

__all__ = ['Count', 'Layer', 'count', 'count_fn', 'register']
