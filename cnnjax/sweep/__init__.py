"""Sweeps over configs: a search (`python -m cnnjax.sweep`), a population in one program, and the
statistics of seeds (`python -m cnnjax.sweep.report`)."""
