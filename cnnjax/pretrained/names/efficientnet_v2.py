"""torchvision's names for `cnnjax.models.efficientnet_v2`: as v1's, but for the fused stages."""

from cnnjax.pretrained.names import efficientnet

_FUSED = {'fused': '0', 'project': '1'}
_LAYERS = {'conv': '0', 'norm': '1'}


def torch_name(path: str, model: str) -> str:
  """'stage2/block1/fused/conv' -> 'features.2.0.block.0.0'."""
  match path.split('/'):
    case ['head', 'last', layer] if model.endswith('_s'):  # six stages, the others seven
      return f'features.7.{_LAYERS[layer]}'
    case [('stage1' | 'stage2' | 'stage3') as stage, block, part, layer]:
      return f'features.{stage[5:]}.{int(block[5:]) - 1}.block.{_FUSED[part]}.{_LAYERS[layer]}'
  return efficientnet.torch_name(path)
