"""timm's names of ResNet-D's layers; its stem and shortcuts are sequences."""

from cnnjax.pretrained.names import resnet

_STEM = {
  'stem/conv1': 'conv1.0',
  'stem/norm1': 'conv1.1',
  'stem/conv2': 'conv1.3',
  'stem/norm2': 'conv1.4',
  'stem/conv3': 'conv1.6',
  'stem/norm3': 'bn1',
}


def torch_name(path: str) -> str:
  """'stage1/block1/shortcut/conv' -> 'layer1.0.downsample.1'."""
  name = _STEM.get(path) or resnet.torch_name(path)
  block, shortcut, index = name.partition('.downsample.')
  return f'{block}{shortcut}{int(index) + 1}' if shortcut else name
