"""timm's names of MobileNet v4's layers."""

import re

UNIVERSAL = {
  'start': 'dw_start',
  'expand': 'pw_exp',
  'depthwise': 'dw_mid',
  'project': 'pw_proj',
}
FUSED = {
  'expand/conv': 'conv_exp',
  'expand/norm': 'bn1',
  'project/conv': 'conv_pwl',
  'project/norm': 'bn2',
}
OTHERS = {
  'stem/conv': 'conv_stem',
  'stem/norm': 'bn1',
  'head/hidden/conv': 'conv_head',
  'head/hidden/norm': 'norm_head',
  'head/logits': 'classifier',
}


def torch_name(path: str) -> str:
  """'stage3/block1/start/conv' -> 'blocks.2.0.dw_start.conv'."""
  match = re.fullmatch(r'stage(\d+)/block(\d+)/(.+)', path)
  if match is None:
    return OTHERS[path]
  block, rest = f'blocks.{int(match[1]) - 1}.{int(match[2]) - 1}', match[3]
  part, _, layer = rest.rpartition('/')
  if not part:  # a convolution
    return f'{block}.{"conv" if layer == "conv" else "bn1"}'
  if match[1] == '1':  # only there are blocks fused
    return f'{block}.{FUSED[rest]}'
  return f'{block}.{UNIVERSAL[part]}.{"conv" if layer == "conv" else "bn"}'
