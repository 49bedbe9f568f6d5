"""A directory holds one sweep: the same again goes on, another one is refused by name."""

import pytest

from cnnjax import config as config_lib
from cnnjax.errors import UserError
from cnnjax.sweep import directory
from cnnjax.sweep import space as space_lib
from tests.commands import is_one_line

SPACE = space_lib.Space({'optimizer.learning_rate': space_lib.log_uniform(1e-4, 1e-1)})
CONFIG = config_lib.validate(config_lib.default())


def identify(path, space=SPACE, config=CONFIG, *, storage=None, name=None, workers=1):
  return directory.identify(
    str(path), space, config, storage=storage, name=name, workers=workers
  )  # fmt: skip


def keep(path, **options):
  found = identify(path, **options)
  directory.remember(str(path), found)
  return found


def said(path, *args, **options):
  with pytest.raises(UserError) as error:
    identify(path, *args, **options)
  is_one_line(error.value)
  return str(error.value)


def test_storages_by_default(tmp_path):
  assert identify(tmp_path / 'new').url == f'sqlite:///{tmp_path}/new/sweep.db'
  assert identify(tmp_path / 'new', workers=2).url == f'journal:{tmp_path}/new/sweep.journal'
  assert identify(tmp_path / 'new').name == 'new'
  assert not (tmp_path / 'new').exists()


def test_the_same_sweep_goes_on(tmp_path):
  found = keep(tmp_path, workers=2, name='mine')
  assert identify(tmp_path) == found  # the journal, also for one worker
  assert identify(tmp_path, SPACE._replace(trials=99)) == found


def test_another_sweep_is_refused_by_what_differs(tmp_path):
  keep(tmp_path)
  config = space_lib.apply(CONFIG, {'batch_size': 32, 'model.features': (8,)})
  line = said(tmp_path, config=config)
  for words in (str(tmp_path), 'batch_size', 'was 64, is 32', 'model.features', 'workdir'):
    assert words in line
  line = said(tmp_path, SPACE._replace(sampler='random', seeds=3))
  assert "space.sampler, space.seeds (space.sampler was 'tpe', is 'random')" in line
  wider = {'optimizer.learning_rate': space_lib.log_uniform(1e-5, 1e-1)}
  assert 'optimizer.learning_rate.low was 0.0001, is 1e-05' in said(
    tmp_path, SPACE._replace(parameters=wider)
  )
  assert '--name' in said(tmp_path, name='other')
  assert 'sweep.db' in said(tmp_path, storage='journal:x')


def test_sqlite_serves_one_worker(tmp_path):
  assert '--workers=2' in said(tmp_path, storage='sqlite:///x.db', workers=2)
  keep(tmp_path)
  assert 'sweep.db' in said(tmp_path, workers=2)


def test_a_password_is_not_kept(tmp_path):
  urls = {
    'postgresql://me:se/cr@et@host:5432/db': 'postgresql://me@host:5432/db',
    'postgresql://host/db?user=me&password=secret&connect_timeout=3': (
      'postgresql://host/db?user=me&connect_timeout=3'
    ),
    'postgresql://me@host/db': 'postgresql://me@host/db',
    'journal:/a/b': 'journal:/a/b',
  }
  for i, (url, kept) in enumerate(urls.items()):
    path = tmp_path / str(i)
    path.mkdir()
    assert keep(path, storage=url).url == url
    text = (path / 'sweep.json').read_text()
    assert kept in text
    assert 'se/cr' not in text
    assert 'secret' not in text
    assert identify(path, storage=url).url == url
    assert identify(path).url == kept


def test_damage_is_told(tmp_path):
  (tmp_path / 'sweep.json').write_text('{')
  assert 'sweep.json' in said(tmp_path)
