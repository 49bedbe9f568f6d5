"""All threads for every operation here: arrays are small, and one thread would do."""

import jax
import pytest

from cnnjax.ops import plugin


@pytest.fixture(autouse=True)
def all_threads(monkeypatch):
  if plugin.load() is not None:
    count = max(2, plugin.load().cores() // jax.local_device_count('cpu'))
    monkeypatch.setattr(plugin, 'threads', lambda *_: count)
