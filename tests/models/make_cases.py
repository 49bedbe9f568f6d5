"""Writes reference cases for `test_cases.py` from PyTorch's public model definitions.

Needs torch (CPU), torchvision and timm (both `--no-deps`), NumPy; not cnnjax. From the root:
`python -m tests.models.make_cases [MODEL ...]`; all of MODELS by default. PyTorch computes in
float64, from the weights and images of `golden.py`. A file, cases/MODEL.npz, holds
  names, shapes  [n] str        the state dict's keys, and their shapes, 'x'-separated
  input          [4] int        N, H, W, C
  logits         [N, classes]   in evaluation mode
and, for a model that trains here,
  train_input    [4] int
  train_stages   [k] int        blocks of each stage, where the trained network is cut to fewer
  train_names, train_shapes     of that one, as above
  loss           []             cross-entropy, the mean over labels 0, 1, ..., N - 1; training mode,
                                dropout and stochastic depth off
  keys           [m] str        the parameters, then the running statistics after that one step
  norms          [m]            the norm of a parameter's gradient; of a statistic
  probes         [m]            its product with fixed noise, `probe`: sensitive to every element
  source         str            package and version
"""

import pathlib
import sys
import warnings

import numpy as np

from tests.models import golden

FOLDER = pathlib.Path(__file__).parent / 'cases'

# Sizes that are odd, not square and no multiple of any stride; more for nets that need it.
TINY, SMALL, LARGE = (21, 15), (97, 113), (139, 151)
# N, H, W to train at: the last maps have more than one pixel still, and what is normalised after
# pooling has more than two values (of two, it keeps the signs alone).
TRAIN = (2, 33, 41)
# Where a stage repeats one block, two of them train: the same gradients, in less time to compile.
STAGES = {
  'resnet50': (2, 2, 2, 2),
  'nf_resnet50': (2, 2, 2, 2),
  'densenet121': (2, 2, 2, 2),
  'repvgg_a0': (2, 2, 2, 1),
  'convnext_tiny': (2, 2, 2, 2),
  'convnextv2_atto': (2, 2, 2, 2),
}
# Model: size, and the input to train on, if it does: the smallest of each kind of block do (those
# of VGG, GoogLeNet, MnasNet and EfficientNet-Lite are in others).
MODELS = {
  'alexnet': (SMALL, (2, *SMALL)),
  'vgg11': (SMALL, None),
  'googlenet': (SMALL, None),
  'inception_v3': (LARGE, (2, 75, 107)),
  'xception': (SMALL, None),
  'xception41': (SMALL, None),
  'resnet18': (SMALL, TRAIN),
  'resnet50': (SMALL, TRAIN),
  'resnet50d': (SMALL, None),
  'resnext50_32x4d': (SMALL, None),
  'wide_resnet50_2': (SMALL, None),
  'seresnet50': (SMALL, None),
  'ecaresnet50d': (SMALL, None),
  'resnet50_v1': (SMALL, None),
  'resnetblur50': (SMALL, None),
  'resnetv2_50': (SMALL, None),
  'nf_resnet50': (SMALL, TRAIN),
  'cifar_resnet20': (TINY, (2, *TINY)),
  'cifar_resnet110_v2': (TINY, None),
  'wrn_40_4': (TINY, None),
  'densenet121': (SMALL, (2, 45, 61)),
  'squeezenet1_0': (SMALL, None),
  'squeezenet1_1': (SMALL, TRAIN),
  'mobilenetv1_100': (SMALL, TRAIN),
  'mobilenet_v2': (SMALL, TRAIN),
  'mobilenet_v3_small': (SMALL, TRAIN),
  'mobilenet_v3_large': (SMALL, None),
  'mobilenetv4_conv_small': (SMALL, (3, 33, 41)),
  'mnasnet0_5': (SMALL, None),
  'mnasnet1_0': (SMALL, None),
  'shufflenet_v2_x0_5': (SMALL, TRAIN),
  'ghostnet_100': (SMALL, TRAIN),
  'efficientnet_b0': (SMALL, TRAIN),
  'efficientnet_b3': (SMALL, None),
  'tf_efficientnet_lite0': (SMALL, None),
  'regnet_x_400mf': (SMALL, None),
  'regnet_y_400mf': (SMALL, TRAIN),
  'repvgg_a0': (SMALL, TRAIN),
  'convnext_tiny': (SMALL, (2, 49, 65)),
  'convnextv2_atto': (SMALL, (2, 49, 65)),
}


def _build(torch, name):
  """The torch module of `name`, without auxiliary classifiers, and where it comes from."""
  import timm
  import torchvision

  from tests.models import torch_definitions

  options = {
    'googlenet': {'aux_logits': False, 'init_weights': False},
    'inception_v3': {'aux_logits': False, 'init_weights': False, 'transform_input': False},
  }
  if hasattr(torchvision.models, name):
    module = getattr(torchvision.models, name)(**options.get(name, {}))
    return module, f'torchvision {torchvision.__version__.partition("+")[0]}'
  if hasattr(torch_definitions, name):
    return getattr(torch_definitions, name)(), f'torch_definitions.py, timm {timm.__version__}'
  return timm.create_model(name), f'timm {timm.__version__}'


def _shallow(name, stages):
  """The torch module of `name` with so many blocks in each stage."""
  import dataclasses

  import timm
  from timm.models import byobnet, nfnet
  from torchvision.models import convnext, densenet, resnet

  if name == 'resnet50':
    return resnet.ResNet(resnet.Bottleneck, stages)
  if name == 'densenet121':
    return densenet.DenseNet(32, stages, 64)
  if name == 'convnext_tiny':
    widths = (96, 192, 384, 768)
    following = (*widths[1:], None)
    return convnext.ConvNeXt(list(map(convnext.CNBlockConfig, widths, following, stages)))
  if name == 'nf_resnet50':
    return nfnet.NormFreeNet(dataclasses.replace(nfnet.model_cfgs[name], depths=stages))
  if name == 'repvgg_a0':
    config = byobnet.model_cfgs[name]
    blocks = [dataclasses.replace(b, d=d) for b, d in zip(config.blocks, stages, strict=True)]
    return byobnet.ByobNet(dataclasses.replace(config, blocks=tuple(blocks)))
  return timm.create_model(name, depths=stages)


def _fill(torch, name, module):
  """Sets the deterministic weights; the state dict's names and shapes as they are stored."""
  module.double()
  names, shapes = [], []
  with torch.no_grad():
    for key, value in module.state_dict().items():
      value.copy_(torch.from_numpy(np.asarray(golden.fill(name, key, tuple(value.shape)))))
      names.append(key)
      shapes.append('x'.join(map(str, value.shape)))
  return np.array(names), np.array(shapes)


def _make(torch, name, size, train_shape):
  module, source = _build(torch, name)
  names, shapes = _fill(torch, name, module)
  shape = (2, *size, 3)
  tensor = lambda s: torch.from_numpy(golden.images(s).astype(np.float64).transpose(0, 3, 1, 2))
  module.eval()
  with torch.no_grad():
    logits = module(tensor(shape)).numpy()
  case = {
    'names': names,
    'shapes': shapes,
    'input': np.array(shape),
    'logits': logits.astype(np.float32),
    'source': np.array(source),
  }
  if train_shape:
    if name in STAGES:
      module = _shallow(name, STAGES[name])
      names, shapes = _fill(torch, name, module)
      case |= {
        'train_stages': np.array(STAGES[name]),
        'train_names': names,
        'train_shapes': shapes,
      }
    shape = (*train_shape, 3)
    module.train()
    for part in module.modules():
      if any(word in type(part).__name__ for word in ('Drop', 'StochasticDepth')):
        part.eval()
      if getattr(part, 'drop_rate', 0):  # timm's GhostNet calls F.dropout itself
        part.drop_rate = 0.0
    loss = torch.nn.functional.cross_entropy(module(tensor(shape)), torch.arange(shape[0]))
    loss.backward()
    found = {k: p.grad.numpy() for k, p in module.named_parameters()}
    found |= {k: b.numpy() for k, b in module.named_buffers() if golden.is_statistic(k)}
    case |= {
      'train_input': np.array(shape),
      'loss': np.float32(loss.item()),
      'keys': np.array(list(found)),
      'norms': np.array([np.linalg.norm(v) for v in found.values()], np.float32),
      'probes': np.array([golden.probe(k, v) for k, v in found.items()], np.float32),
    }
  np.savez_compressed(FOLDER / f'{name}.npz', **case)
  size = (FOLDER / f'{name}.npz').stat().st_size
  print(f'{name:24s} {source:20s} {size:6d} bytes, logits up to {np.abs(logits).max():.3g}')


def main():
  warnings.filterwarnings('ignore')
  import torch

  torch.set_num_threads(1)
  keep = _declare_torchvision_ops(torch)
  FOLDER.mkdir(exist_ok=True)
  for name in sys.argv[1:] or MODELS:
    _make(torch, name, *MODELS.get(name, (SMALL, None)))
  del keep


def _declare_torchvision_ops(torch):
  """Lets torchvision's models, in Python, import without its compiled operations."""
  library = torch.library.Library('torchvision', 'DEF')
  for name in ('nms', 'qnms'):
    library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
  for name in ('roi_align', 'ps_roi_align', 'roi_pool', 'ps_roi_pool', 'deform_conv2d'):
    library.define(f'{name}(Tensor x) -> Tensor')
    library.define(f'_{name}_backward(Tensor x) -> Tensor')
  return library


if __name__ == '__main__':
  main()
