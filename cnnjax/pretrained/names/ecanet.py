"""As ResNet-D's."""

from cnnjax.pretrained.names.resnet_d import torch_name

__all__ = ['torch_name']
