"""PyTorch definitions, for `make_cases.py`, of what neither torchvision nor timm has.

Each is put together from their parts. Needs torch, torchvision and timm.
"""

from timm.layers import BatchNormAct2d, create_conv2d
from timm.models.resnetv2 import ResNetV2
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock


class _ZeroPad(nn.Module):
  """Option A: every second pixel, the new channels zero."""

  def __init__(self, channels: int):
    super().__init__()
    self.channels = channels

  def forward(self, x):
    return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.channels))


def resnet50_v1():
  model = models.resnet50()
  for stage in (model.layer2, model.layer3, model.layer4):
    stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
  return model


def cifar_resnet20():
  model = models.resnet18(num_classes=10)
  model.conv1, model.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
  model.maxpool = model.layer4 = nn.Identity()
  for i, width in enumerate((16, 32, 64)):
    first = BasicBlock(width // 2, width, 2, _ZeroPad(width // 2)) if i else BasicBlock(16, 16)
    rest = [BasicBlock(width, width) for _ in range(2)]
    setattr(model, f'layer{i + 1}', nn.Sequential(first, *rest))
  model.fc = nn.Linear(64, 10)
  return model


def _preactivation(size: int, widths: tuple[int, ...], *, basic: bool):
  model = ResNetV2(
    layers=[size] * 3,
    channels=widths,
    basic=basic,
    bottle_ratio=1.0 if basic else 0.25,
    num_classes=10,
    stem_chs=16,
    conv_layer=create_conv2d,
    norm_layer=BatchNormAct2d,
  )
  model.stem = nn.Sequential()
  model.stem.add_module('conv', create_conv2d(3, 16, 3))
  return model


def wrn_40_4():
  return _preactivation(6, (64, 128, 256), basic=True)


def cifar_resnet110_v2():
  model = _preactivation(18, (16, 32, 64), basic=True)
  for stage, channels in zip(model.stages[1:], (16, 32), strict=True):
    stage.blocks[0].downsample = _ZeroPad(channels)
  return _activate_before_the_first_split(model)


def cifar_resnet164_v2():
  model = _preactivation(18, (64, 128, 256), basic=False)
  for stage in model.stages[1:]:
    stage.blocks[0].conv1.stride, stage.blocks[0].conv2.stride = (2, 2), (1, 1)
  return _activate_before_the_first_split(model)


def _activate_before_the_first_split(model):
  model.stem.add_module('norm', BatchNormAct2d(16))
  model.stages[0].blocks[0].norm1 = nn.Identity()
  return model
