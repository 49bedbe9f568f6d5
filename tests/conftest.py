"""Strict for every test: rank promotion raises; warnings are errors (see pyproject.toml).

Properties (hypothesis) take the same few examples in every run. PROPERTY_MINUTES=10 lets each file
try fresh ones for so long, its properties in turn; `make test-properties` does.
"""

import gc
import os
import time

# Two virtual devices for the parallel tests; must be set before JAX starts its CPU client.
os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=2')

import hypothesis
import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')

_MINUTES = float(os.environ.get('PROPERTY_MINUTES', 0))
# No deadline: how long an example takes is the machine's business. Hangs end by `bounded`.
hypothesis.settings.register_profile(
  'cnnjax',
  max_examples=200 if _MINUTES else 40,
  derandomize=not _MINUTES,
  deadline=None,
  database=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile('cnnjax')


def pytest_collection_finish():
  """Tracing allocates much: keep the collector from looking through every module each time."""
  gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
  """The long form: a property again and again, with fresh examples, until its minutes are over."""
  if not (_MINUTES and hypothesis.is_hypothesis_test(pyfuncitem.obj)):
    return (yield)
  properties = [
    item
    for item in pyfuncitem.session.items
    if item.path == pyfuncitem.path and hypothesis.is_hypothesis_test(item.obj)
  ]
  inner, examples = pyfuncitem.obj.hypothesis.inner_test, 0

  def counted(*args, **kwargs):
    nonlocal examples
    examples += 1
    inner(*args, **kwargs)

  pyfuncitem.obj.hypothesis.inner_test = counted
  arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
  end = time.monotonic() + 60 * _MINUTES / len(properties)
  while time.monotonic() < end:
    pyfuncitem.obj(**arguments)
  capture = pyfuncitem.config.pluginmanager.getplugin('capturemanager')
  with capture.global_and_fixture_disabled():
    print(f'\n  {pyfuncitem.name}: {examples:,} examples')
  return (yield)
