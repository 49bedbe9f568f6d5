"""`import cnnjax` is light: what is heavy loads where it is used."""

import subprocess
import sys

HEAVY = ('tensorflow', 'tensorflow_datasets', 'grain', 'orbax', 'tensorboardX', 'matplotlib', 'PIL',
         'sklearn', 'scipy.stats', 'dm_pix', 'chex')  # fmt: skip


def loaded(statement):
  code = f'{statement}; import sys; print("\\n".join(sys.modules))'
  return set(subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  ).stdout.split())  # fmt: skip


def test_import_loads_nothing_heavy():
  modules = loaded('import cnnjax, cnnjax.models, cnnjax.tasks.classification, cnnjax.data.sources')
  assert 'cnnjax.models' in modules
  baseline = loaded('import jax, flax.linen, optax')
  assert not [name for name in HEAVY if name in modules - baseline]


def test_subpackages_load_on_use():
  assert 'cnnjax.models.resnet' not in loaded('import cnnjax')
  assert 'cnnjax.models.resnet' in loaded('import cnnjax; cnnjax.models')
