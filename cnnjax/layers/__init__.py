"""Layers, each usable by itself: `from cnnjax.layers import conv, init, norm, pool, stochastic`."""
