"""timm's names for `cnnjax.models.efficientnet_lite`."""

_OTHERS = {
  'stem/conv': 'conv_stem',
  'stem/norm': 'bn1',
  'head/last/conv': 'conv_head',
  'head/last/norm': 'bn2',
  'head/logits': 'classifier',
}
_WITHOUT_EXPANSION = {
  'depthwise/conv': 'conv_dw',
  'depthwise/norm': 'bn1',
  'project/conv': 'conv_pw',
  'project/norm': 'bn2',
}
_INVERTED = {
  'expand/conv': 'conv_pw',
  'expand/norm': 'bn1',
  'depthwise/conv': 'conv_dw',
  'depthwise/norm': 'bn2',
  'project/conv': 'conv_pwl',
  'project/norm': 'bn3',
}


def torch_name(path: str) -> str:
  """'stage2/block1/expand/conv' -> 'blocks.1.0.conv_pw'."""
  if path in _OTHERS:
    return _OTHERS[path]
  stage, block, part = path.split('/', 2)
  table = _WITHOUT_EXPANSION if stage == 'stage1' else _INVERTED
  return f'blocks.{int(stage[5:]) - 1}.{int(block[5:]) - 1}.{table[part]}'
