"""timm's names for `cnnjax.models.convnext_v2`."""

_PARTS = {
  'stem/conv': 'stem.0',
  'stem/norm': 'stem.1',
  'head/norm': 'head.norm',
  'head/logits': 'head.fc',
  'downsample/norm': 'downsample.0',
  'downsample/conv': 'downsample.1',
  'depthwise': 'conv_dw',
  'norm': 'norm',
  'expand': 'mlp.fc1',
  'grn': 'mlp.grn',
  'project': 'mlp.fc2',
}


def torch_name(path: str) -> str:
  """'stage2/block1/grn' -> 'stages.1.blocks.0.mlp.grn'."""
  if path in _PARTS:
    return _PARTS[path]
  stage, block, layer = path.split('/')
  if block == 'downsample':
    return f'stages.{int(stage[5:]) - 1}.{_PARTS[f"{block}/{layer}"]}'
  return f'stages.{int(stage[5:]) - 1}.blocks.{int(block[5:]) - 1}.{_PARTS[layer]}'
