"""As ResNet's."""

from cnnjax.pretrained.names.resnet import torch_name

__all__ = ['torch_name']
