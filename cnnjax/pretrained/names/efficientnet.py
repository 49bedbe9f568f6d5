"""torchvision's names for `cnnjax.models.efficientnet`: stage i is `features.i`."""

_LAYERS = {'conv': '0', 'norm': '1', 'reduce': 'fc1', 'expand': 'fc2'}
_PARTS = ('expand', 'depthwise', 'se', 'project')


def torch_name(path: str) -> str:
  """'stage2/block1/depthwise/conv' -> 'features.2.0.block.1.0'."""
  match path.split('/'):
    case ['head', 'logits']:
      return 'classifier.1'
    case ['stem', layer]:
      return f'features.0.{_LAYERS[layer]}'
    case ['head', 'last', layer]:
      return f'features.8.{_LAYERS[layer]}'
    case [stage, block, part, layer]:
      index = _PARTS.index(part) - (stage == 'stage1')  # its blocks don't expand
      return f'features.{stage[5:]}.{int(block[5:]) - 1}.block.{index}.{_LAYERS[layer]}'
  raise KeyError(path)
