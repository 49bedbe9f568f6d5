"""torchvision's names for `cnnjax.models.convnext`: stages and what lies between take turns."""

SPECIAL = {'gamma': 'layer_scale'}

_PATCHES = {'stem': ('0', '1'), 'downsample': ('1', '0')}  # of the convolution, the normalisation
_BLOCK = {'depthwise': '.block.0', 'norm': '.block.2', 'expand': '.block.3', 'project': '.block.5'}


def torch_name(path: str) -> str:
  """'stage2/block1/norm' -> 'features.3.0.block.2'."""
  match path.split('/'):
    case ['head', layer]:
      return {'norm': 'classifier.0', 'logits': 'classifier.2'}[layer]
    case ['stem', layer]:
      return f'features.0.{_PATCHES["stem"][layer == "norm"]}'
    case [stage, 'downsample', layer]:
      return f'features.{2 * int(stage[5:]) - 2}.{_PATCHES["downsample"][layer == "norm"]}'
    case [stage, block, layer]:  # the layer scale is the block's own parameter
      return f'features.{2 * int(stage[5:]) - 1}.{int(block[5:]) - 1}{_BLOCK.get(layer, "")}'
  raise KeyError(path)
