"""torchvision's names for `cnnjax.models.regnet`."""

_LAYERS = {'conv': '0', 'norm': '1', 'reduce': 'fc1', 'expand': 'fc2'}
_PARTS = {'shortcut': 'proj', 'conv1': 'f.a', 'conv2': 'f.b', 'se': 'f.se', 'conv3': 'f.c'}


def torch_name(path: str) -> str:
  """'stage1/block2/conv2/norm' -> 'trunk_output.block1.block1-1.f.b.1'."""
  match path.split('/'):
    case ['head', 'logits']:
      return 'fc'
    case ['stem', layer]:
      return f'stem.{_LAYERS[layer]}'
    case [stage, block, part, layer]:
      i, j = stage[5:], int(block[5:]) - 1
      return f'trunk_output.block{i}.block{i}-{j}.{_PARTS[part]}.{_LAYERS[layer]}'
  raise KeyError(path)
