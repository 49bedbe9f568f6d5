"""The worker for PyTorch: eager or `torch.compile`, at the fastest settings that short trials find.

Tried: contiguous and channels-last memory; foreach, fused and plain SGD; for compiled inference
also Inductor's freezing, which folds batch normalisation. Threads: one for each physical core.
"""

import functools
import platform
from collections.abc import Callable
from typing import Any

import torch
import torch_models
from serve import Run, batch, fastest, serve
from torch.nn import functional

LEARNING_RATE, MOMENTUM = 1e-3, 0.9
LAYOUTS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
SGD = {'foreach': {'foreach': True}, 'fused': {'fused': True}, 'plain': {'foreach': False}}


def make(spec: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
  """The fastest step for a specification; see `serve`."""
  torch.set_num_threads(spec['threads'])
  torch.set_flush_denormal(True)  # as XLA does
  train, compiled = spec['mode'] == 'train', spec['contestant'] == 'compile'
  build = functools.partial(_training if train else _inference, spec, compiled=compiled)
  candidates, settings = {layout: {'layout': layout} for layout in LAYOUTS}, {}
  if train:
    sgd, tried = fastest({name: functools.partial(_updates, spec, name) for name in SGD})
    candidates = {name: {**options, 'sgd': sgd} for name, options in candidates.items()}
    settings = {'sgd': sgd, 'sgd_tried_ms': tried}
  elif compiled:
    candidates |= {f'{k}, frozen': {**v, 'freezing': True} for k, v in candidates.items()}
  trials = {k: functools.partial(_fresh, build, **v) for k, v in candidates.items()}
  layout, tried = fastest(trials)
  model = torch_models.build(spec['model'], spec['classes'])
  return trials[layout](), {
    'parameters': torch_models.parameters(model),
    'versions': {'torch': torch.__version__, 'python (torch)': platform.python_version()},
    'settings': {
      **{'layout': layout, 'tried_ms': tried, **settings},
      'threads': torch.get_num_threads(),
    },
  }


def _training(spec: dict[str, Any], *, compiled: bool, layout: str, sgd: str) -> Run:
  images, labels = _tensors(spec, layout)
  model = _model(spec, layout).train()
  optimizer = _sgd(model, sgd)

  def cost(images, labels):
    return functional.cross_entropy(model(images), labels)

  if compiled:
    cost = torch.compile(cost)

  def run(steps: int) -> None:
    for _ in range(steps):
      optimizer.zero_grad(set_to_none=True)
      loss = cost(images, labels)
      loss.backward()
      optimizer.step()
    if not torch.isfinite(loss):
      raise FloatingPointError(f'loss {loss.item()}')

  return run


def _inference(spec: dict[str, Any], *, compiled: bool, layout: str, freezing: bool = False) -> Run:
  images, _ = _tensors(spec, layout)
  model = _model(spec, layout).eval()
  if compiled:
    model = torch.compile(model, options={'freezing': freezing})

  @torch.inference_mode()
  def run(steps: int) -> None:
    for _ in range(steps):
      model(images)

  return run


def _model(spec: dict[str, Any], layout: str) -> torch.nn.Module:
  model = torch_models.build(spec['model'], spec['classes'])
  return model.to(memory_format=LAYOUTS[layout])


def _tensors(spec: dict[str, Any], layout: str) -> tuple[torch.Tensor, torch.Tensor]:
  images, labels = batch(spec)
  images = torch.from_numpy(images).permute(0, 3, 1, 2)  # (N, C, H, W)
  return images.contiguous(memory_format=LAYOUTS[layout]), torch.from_numpy(labels).long()


def _sgd(model: torch.nn.Module, name: str) -> torch.optim.Optimizer:
  return torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM, **SGD[name])


def _updates(spec: dict[str, Any], sgd: str) -> Run:
  """The optimizer's update alone."""
  model = _model(spec, 'channels_last')
  for p in model.parameters():
    p.grad = torch.full_like(p, 1e-3)
  optimizer = _sgd(model, sgd)

  def run(steps: int) -> None:
    for _ in range(steps):
      optimizer.step()

  return run


def _fresh(build: Callable[..., Run], **options: Any) -> Run:
  """A step compiled as if it were the first: nothing is left of other candidates."""
  torch._dynamo.reset()
  return build(**options)


if __name__ == '__main__':
  serve(make)
