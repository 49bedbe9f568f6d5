"""Strict for every test: rank promotion raises; warnings are errors (see pyproject.toml)."""

import os

# Two virtual devices for the parallel tests; must be set before JAX starts its CPU client.
os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=2')

import jax

jax.config.update('jax_numpy_rank_promotion', 'raise')
