"""What README shows runs as it stands there."""

import contextlib
import io
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent


def blocks(section):
  text = (ROOT / 'README.md').read_text().split(f'## {section}\n')[1].split('\n## ')[0]
  return re.findall(r'```python\n(.*?)```', text, flags=re.DOTALL)


def test_the_research_example_learns():
  (code,) = blocks('Use it in your research code')
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    exec(compile(code, 'README.md', 'exec'), {})
  assert float(printed.getvalue()) > 0.95


def test_the_config_example_is_valid():
  from cnnjax import config

  (code,) = blocks('Write a config')
  names = {}
  exec(compile(code, 'README.md', 'exec'), names)
  assert config.validate(names['get_config']()).model.features == (32, 64, 128)


def test_the_model_example_is_a_model():
  import flax.linen as nn
  import jax
  import jax.numpy as jnp

  from cnnjax.layers.conv import conv
  from cnnjax.layers.norm import BatchNorm, bind
  from cnnjax.layers.pool import global_avg_pool
  from cnnjax.models.entry import Entry

  (code,) = blocks('Add a model')
  names = {'nn': nn, 'jnp': jnp, 'conv': conv, 'BatchNorm': BatchNorm, 'bind': bind,
           'global_avg_pool': global_avg_pool, 'Entry': Entry, 'Any': object}  # fmt: skip
  exec(compile(code, 'README.md', 'exec'), names)
  model = names['VARIANTS']['tiny'].build(num_classes=7)
  logits, variables = model.init_with_output(jax.random.key(0), jnp.ones((2, 9, 8, 3)))
  assert logits.shape == (2, 7)
  assert set(variables) == {'params', 'batch_stats'}
