"""The command line as a user meets it: every mistake is one line and status 2."""

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from tests.commands import refused, run, start

DIGITS = 'experiments/digits/lenet5.py'


def train(workdir, *overrides, config=DIGITS):
  return ('main', f'--config={config}', f'--workdir={workdir}', *overrides)


SHORT = (
  '--config.epochs=1', '--config.log_every=5', '--config.eval_every=10',
  '--config.schedule.warmup_epochs=0',
)  # fmt: skip


@pytest.mark.parametrize(
  ('override', 'said'),
  [
    ('--config.optimizer.learning_rat=0.1', ['optimizer.learning_rat', 'optimizer.learning_rate']),
    ('--config.optimiser.learning_rate=0.1', ['optimiser', 'optimizer']),
    ('--config.model.name=lenet6', ['model.name', 'lenet6', 'lenet5']),
    ('--config.model.width=3', ['model.width', 'num_classes']),
    ('--config.data.name=digit', ['data.name', 'digit', 'digits', 'fashion_mnist']),
    ('--config.data.name=tfds:cifar11', ['cifar11', 'cifar10']),
    ('--config.optimizer.name=adamm', ['optimizer.name', 'adamm', 'adam', 'lion']),
    ('--config.optimizer.learning_rate=abc', ['optimizer.learning_rate', 'abc', 'float']),
    ('--config.optimizer.learning_rate=-1', ['learning_rate', '-1', 'negative']),
    ('--config.schedule.name=cosin', ['schedule.name', 'cosin', 'cosine']),
    ('--config.loss.name=hinge', ['loss.name', 'hinge', 'softmax_cross_entropy']),
    ('--config.augment=flop', ['augment', 'flop', 'flip_horizontal']),
    ('--config.steps=0', ['steps', '0', 'at least 1']),
    ('--config.epochs=0', ['epochs', '0', 'more than 0']),
    ('--config.batch_size=0', ['batch_size', '0', 'at least 1']),
    ('--config.batch_size=2.5', ['batch_size', '2.5', 'int']),
    ('--config.parallel.devices=9', ['parallel.devices', '9']),
    ('--config.parallel.strategy=pmapp', ['parallel.strategy', 'pmapp', 'shard_map']),
    ('--config.data.name=tfds:cifar10', ['cifar10', 'cnnjax.datasets prepare tfds:cifar10']),
    ('--config.data.name=folder:missing', ['missing']),
    ('--mode=trian', ['mode', 'trian', 'train']),
    ('--worker=3', ['worker']),
  ],
)
def test_a_mistake_is_one_line_and_status_2(tmp_path, monkeypatch, override, said):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'tfds'))
  line = refused(*train(tmp_path / 'run', override))
  for words in said:
    assert words in line


def test_probes_and_profile(tmp_path):
  status, out, err = run(
    *train(tmp_path), *SHORT, '--config.profile=3:4', "--config.eval_probes=('knn', 'linear')"
  )
  assert status == 0, err
  assert list(tmp_path.glob('profile/plugins/profile/*/*.xplane.pb'))
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  (probe,) = [row for row in rows if row['split'] == 'probe']
  assert 0.5 < probe['knn_accuracy'] < probe['linear_accuracy'] <= 1
  assert f'linear_accuracy {probe["linear_accuracy"]:.4f}' in out


def test_missing_flags(tmp_path):
  assert '--config' in refused('main', f'--workdir={tmp_path}')
  assert '--workdir' in refused('main', f'--config={DIGITS}')
  assert 'nowhere.py' in refused(*train(tmp_path, config='nowhere.py'))


def test_a_config_that_raises_is_one_line(tmp_path):
  config = tmp_path / 'broken.py'
  config.write_text('def get_config():\n  return 1 / 0\n')
  assert 'division by zero' in refused(*train(tmp_path / 'run', config=config))


def test_a_typo_in_a_config_file(tmp_path):
  config = tmp_path / 'typo.py'
  config.write_text(
    'from cnnjax import config\n\n\ndef get_config():\n'
    '  c = config.default()\n  c.bathc_size = 3\n  return c\n'
  )
  line = refused(*train(tmp_path / 'run', config=config))
  assert 'bathc_size' in line
  assert 'batch_size' in line


def test_batch_that_devices_cannot_share(tmp_path):
  line = refused(*train(tmp_path, '--config.batch_size=63'), devices=2)
  for words in ('batch_size', '63', '2'):
    assert words in line


def test_workdir_without_permission(tmp_path):
  (tmp_path / 'file').write_text('')
  line = refused(*train(tmp_path / 'file' / 'run'))
  assert 'workdir' in line
  assert str(tmp_path / 'file' / 'run') in line


def save_image(path, size=(12, 10), value=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
  """Two classes of 20 uniform images each."""
  for i in range(20):
    save_image(tmp_path / 'images' / 'dark' / f'{i}.png', value=i)
    save_image(tmp_path / 'images' / 'light' / f'{i}.png', value=200 + i)
  return tmp_path / 'images'


def on_folder(folder, *overrides):
  return (
    *train(folder.parent / 'run', f'--config.data.name=folder:{folder}'),
    '--config.batch_size=8', *SHORT, *overrides,
  )  # fmt: skip


def test_folder_trains(folder):
  status, out, err = run(*on_folder(folder))
  assert status == 0, err
  assert 'accuracy' in out


@pytest.mark.parametrize('breakage', ['empty', 'one class', 'mixed', 'unreadable'])
def test_folder_mistakes(folder, breakage):
  said, overrides = [str(folder)], ()
  if breakage == 'empty':
    folder = folder.parent / 'empty'
    folder.mkdir()
    said = [str(folder)]
  elif breakage == 'one class':
    for file in (folder / 'light').iterdir():
      file.unlink()
    (folder / 'light').rmdir()
    said += ['class']
  elif breakage == 'mixed':
    save_image(folder / 'dark' / 'large.png', size=(30, 30))
    said, overrides = ['image_size'], ('--config.data.image_size=()',)
  else:
    for i in range(10):
      (folder / 'dark' / f'{i}.png').write_bytes(b'not an image')
    said, overrides = ['3', 'max_unreadable', '.png'], ('--config.data.max_unreadable=3',)
  status, _, err = run(*on_folder(folder, *overrides))
  assert status == 2, err
  last = err.strip().splitlines()[-1]  # damaged images are named in warnings before it
  for words in said:
    assert words in last
  assert 'Traceback' not in err


def test_another_config_in_the_workdir_is_refused(tmp_path):
  status, _, err = run(*train(tmp_path, *SHORT, '--config.steps=2'))
  assert status == 0, err
  line = refused(*train(tmp_path, *SHORT, '--config.steps=3', '--config.seed=7'))
  assert 'seed' in line
  assert 'steps' in line
  assert 'optimizer' not in line


def test_non_finite_loss_is_status_3_and_keeps_the_good_checkpoint(tmp_path):
  overrides = ('--config.model.name=cnn', '--config.optimizer.name=sgd')
  overrides += ('--config.optimizer.learning_rate=1e15', '--config.checkpoint.every=1', *SHORT)
  overrides += ('--config.ops=xla',)  # with auto, a line says so where there is no plugin
  command = train(tmp_path, *overrides)
  status, _, err = run(*command)
  assert status == 3, err
  assert len(err.strip().splitlines()) == 1
  assert 'step' in err
  status, out, _ = run('checkpoint', f'--workdir={tmp_path}', '--json')
  assert status == 0
  from cnnjax.training import checkpoint

  with checkpoint.Checkpoints(str(tmp_path), read_only=True) as checkpoints:
    assert checkpoints.steps() == json.loads(out)['steps']
    for step in checkpoints.steps():
      for array in checkpoints.read(step).values():
        assert np.isfinite(array).all()


def fingerprint(workdir):
  status, out, err = run('checkpoint', f'--workdir={workdir}', '--json')
  assert status == 0, err
  report = json.loads(out)
  return report['fingerprints'][str(report['steps'][-1])]


def rows(workdir):
  timed = ('seconds', 'images_per_second', 'eta_seconds')
  with open(workdir / 'metrics.jsonl') as f:
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in f]


def test_a_signal_saves_and_the_same_command_resumes_to_the_bit(tmp_path):
  overrides = (*SHORT, '--config.steps=60', '--config.log_every=7', '--config.eval_every=20')
  status, _, err = run(*train(tmp_path / 'straight', *overrides))
  assert status == 0, err

  for number in (signal.SIGTERM, signal.SIGINT, None):
    process = start(*train(tmp_path / 'stopped', *overrides))
    for line in process.stdout:  # wait for a line of training metrics, then stop wherever it is
      if 'train' in line and number:
        process.send_signal(number)
        break
    _, err = process.communicate(timeout=300)
    if process.returncode == 0:
      break
    assert process.returncode == 128 + number, err
    assert number.name in err
  assert process.returncode == 0
  assert number != signal.SIGTERM  # one at least came in time
  assert fingerprint(tmp_path / 'stopped') == fingerprint(tmp_path / 'straight')
  assert rows(tmp_path / 'stopped') == rows(tmp_path / 'straight')

  # Once more, finished: nothing changes, and evaluation says what training said.
  before = (tmp_path / 'straight' / 'metrics.jsonl').read_bytes()
  status, out, _ = run(*train(tmp_path / 'straight', *overrides))
  assert status == 0
  assert 'accuracy' in out
  assert (tmp_path / 'straight' / 'metrics.jsonl').read_bytes() == before
  status, out, err = run(*train(tmp_path / 'straight', '--mode=eval', *overrides))
  assert status == 0, err
  assert json.loads(out) == rows(tmp_path / 'straight')[-1]


def test_what_a_run_leaves(tmp_path):
  status, out, err = run(*train(tmp_path, *SHORT, '--config.steps=4'))
  assert status == 0, err
  assert str(tmp_path / 'metrics.jsonl') in out
  names = os.listdir(tmp_path)
  for name in ('config.json', 'metrics.jsonl', 'environment.json', 'data.json', 'checkpoints'):
    assert name in names
  assert any(name.startswith('events.out.tfevents.') for name in names)
  environment = json.loads((tmp_path / 'environment.json').read_text())
  assert environment['packages']['jax']
  assert environment['devices']
  last = rows(tmp_path)[-1]
  assert (last['step'], last['split']) == (4, 'test')
  confusion = np.array(last['confusion_matrix'])
  assert confusion.sum() == 359  # every test example once
  assert len(last['per_class_accuracy']) == 10
