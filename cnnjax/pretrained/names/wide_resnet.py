"""torchvision's names; those of timm's pre-activation ResNet for the CIFAR form."""

from cnnjax.pretrained.names import resnet, resnetv2


def torch_name(path: str, model: str) -> str:
  """See the two tables."""
  return (resnetv2 if model.startswith('wrn_') else resnet).torch_name(path)
