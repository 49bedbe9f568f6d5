"""The PyTorch twins of cnnjax's models: torchvision's definitions, and small ones written out.

Dropout and stochastic depth are those of the definitions, and cnnjax has the same rates: 0.5 in
vgg11_bn, 0.2 in mobilenet_v2 and efficientnet_b0, whose branches also drop with up to 0.2, and
up to 0.1 in convnext_tiny's branches; none in the others.
"""

import sys

import torch
from torch import nn


def build(name: str, classes: int) -> nn.Module:
  """The twin of `cnnjax.models.create(name, num_classes=classes)`; same weights at every call."""
  torch.manual_seed(0)
  if name in TWINS:
    return TWINS[name](classes)
  return getattr(_torchvision().models, name)(num_classes=classes)


def lenet5(classes: int) -> nn.Module:
  """Average pooling and tanh; 28 x 28 images are centred on 32 x 32 zeros."""
  return nn.Sequential(
    nn.ZeroPad2d(2),
    *(nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2)),
    *(nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),
    *(nn.Flatten(), nn.Linear(400, 120), nn.Tanh()),
    *(nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, classes)),
  )


def cnn(classes: int) -> nn.Module:
  """cnnjax's `cnn` as it comes: two 3 x 3 convolutions of 32 and 64, 2 x 2 maxima, 128 units."""
  return nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, classes)),
  )


def resnet18_cifar(classes: int) -> nn.Module:
  """ResNet-18 with a 3 x 3 stem and nothing pooled."""
  model = _torchvision().models.resnet18(num_classes=classes)
  model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
  model.maxpool = nn.Identity()
  return model


TWINS = {'lenet5': lenet5, 'cnn': cnn, 'resnet18_cifar': resnet18_cifar}


def parameters(model: nn.Module) -> int:
  """How many numbers are trained."""
  return sum(p.numel() for p in model.parameters())


def _torchvision():
  """torchvision; its compiled operators, of which no model here has need, may be missing.

  Its wheels for the CPU often don't match torch's. It then refuses to be imported because two
  operators are unknown, so they are made known, without an implementation.
  """
  try:
    import torchvision
  except RuntimeError as error:
    if 'torchvision::nms' not in str(error):
      raise
    for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
      del sys.modules[name]
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
      library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _KEPT.append(library)  # its operators live as long as it does
    import torchvision
  return torchvision


_KEPT = []
