"""timm's names for `cnnjax.models.repvgg`, in the training form."""

_PARTS = {'conv3x3': 'conv_kxk', 'conv1x1': 'conv_1x1', 'norm': 'bn'}


def torch_name(path: str) -> str:
  """'stage1/block2/conv3x3/norm' -> 'stages.0.1.conv_kxk.bn'."""
  match path.split('/'):
    case ['head', 'logits']:
      return 'head.fc'
    case ['stem', *parts]:
      names = ['stem']
    case [stage, block, *parts]:
      names = [f'stages.{int(stage[5:]) - 1}.{int(block[5:]) - 1}']
    case _:
      raise KeyError(path)
  return '.'.join(names + [_PARTS.get(part, part) for part in parts])
