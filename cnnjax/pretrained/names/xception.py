"""timm's names of Xception's layers (`legacy_xception`, and the aligned form's)."""

import re

from cnnjax.models.xception import VARIANTS

_ALIGNED = {
  'depthwise': 'conv_dw',
  'depthwise_norm': 'bn_dw',
  'pointwise': 'conv_pw',
  'norm': 'bn_pw',
}


def torch_name(path: str, model: str) -> str:
  """timm's name of the module at `path`."""
  return _chollet(path) if model == 'xception' else _aligned(path, model)


def _chollet(path: str) -> str:
  if path == 'head/logits':
    return 'fc'
  if path.startswith('stem/'):
    return path.removeprefix('stem/').replace('norm', 'bn')
  if path.startswith('head/'):
    _, conv, layer = path.split('/')
    number = int(conv.removeprefix('conv')) + 2
    return f'bn{number}' if layer == 'norm' else f'conv{number}.{_separable(layer)}'
  stage, block, unit, layer = path.split('/')
  number = int(block.removeprefix('block')) + {'stage1': 0, 'stage2': 3, 'stage3': 11}[stage]
  if unit == 'shortcut':
    return f'block{number}.skip' + ('bn' if layer == 'norm' else '')
  # Activation, convolution, normalisation in turn; the first block starts without the first.
  position = 3 * int(unit.removeprefix('conv')) - 2 - (number == 1)
  rep = f'block{number}.rep'
  return f'{rep}.{position + 1}' if layer == 'norm' else f'{rep}.{position}.{_separable(layer)}'


def _separable(layer: str) -> str:
  return {'depthwise': 'conv1', 'pointwise': 'pointwise'}[layer]


def _aligned(path: str, model: str) -> str:
  if path == 'head/logits':
    return 'head.fc'
  match = re.fullmatch(r'stem/(conv|norm)(\d)', path)
  if match:
    return f'stem.{int(match[2]) - 1}.{match[1].replace("norm", "bn")}'
  stage, block, unit, layer = path.split('/')
  sizes = [len(blocks) for blocks in VARIANTS[model].build.keywords['stages']]
  number = sum(sizes[: int(stage[-1]) - 1]) + int(block.removeprefix('block')) - 1
  if unit == 'shortcut':
    return f'blocks.{number}.shortcut.{layer.replace("norm", "bn")}'
  return f'blocks.{number}.stack.{unit}.{_ALIGNED[layer]}'
