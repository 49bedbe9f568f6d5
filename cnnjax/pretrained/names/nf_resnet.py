"""timm's names of the normaliser-free ResNet's layers."""

from cnnjax.pretrained.names import resnetv2


def torch_name(path: str) -> str:
  """'stage1/block1/conv1' -> 'stages.0.0.conv1'."""
  return resnetv2.torch_name(path).replace('.blocks.', '.')
