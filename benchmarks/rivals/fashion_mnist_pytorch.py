"""The recipe of `experiments/fashion_mnist/fast.py` in PyTorch, at its fastest settings here.

  python fashion_mnist_pytorch.py SPEC

SPEC is a JSON object: `data` (an .npz file of uint8 `train_images` [N, H, W, C], `train_labels`,
`test_images`, `test_labels`), `mean` and `std`, `seed`, `threads`, `mode` ('eager', 'compile' or
'auto', the faster of the two over some steps that don't count) and the config's numbers under
`recipe`. Prints one JSON object.
"""

import json
import math
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

TRIAL = 12  # steps; the first four don't count
EVAL_BATCH = 1000


def conv(inputs: int, outputs: int) -> nn.Conv2d:
  """3 x 3 without a bias, He et al.'s kernel."""
  layer = nn.Conv2d(inputs, outputs, 3, padding='same', bias=False)
  nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
  return layer


class Stage(nn.Sequential):
  """Convolution, pooling, normalisation, ReLU; then convolutions, normalisation, ReLU."""

  def __init__(self, inputs: int, features: int, convs: int):
    layers: list[nn.Module] = []
    for i in range(convs):
      layers.append(conv(features if i else inputs, features))
      if i == 0:
        layers.append(nn.MaxPool2d(2))
      layers += [nn.BatchNorm2d(features), nn.ReLU()]
    super().__init__(*layers)


class Net(nn.Module):
  """cnnjax's `cnn` with normalisation and `pool_first`."""

  def __init__(self, image: tuple[int, ...], classes: int, model: dict[str, Any]):
    super().__init__()
    height, width, inputs = image
    stages = []
    for features in model['features']:
      stages.append(Stage(inputs, features, model['convs']))
      height, width, inputs = height // 2, width // 2, features
    self.stages = nn.Sequential(*stages)
    head: list[nn.Module] = [nn.Flatten()]
    inputs *= height * width
    for units in model['dense']:
      layer = nn.Linear(inputs, units, bias=False)
      nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
      head += [nn.Dropout(model['dropout']), layer, nn.BatchNorm1d(units), nn.ReLU()]
      inputs = units
    logits = nn.Linear(inputs, classes)
    nn.init.uniform_(logits.weight, -((3 / inputs) ** 0.5), (3 / inputs) ** 0.5)
    nn.init.zeros_(logits.bias)
    self.head = nn.Sequential(*head, logits)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.head(self.stages(x))


class Feed:
  """Batches in a new order every epoch, each image mirrored half of the time."""

  def __init__(self, spec: dict[str, Any], data: Any, generator: torch.Generator):
    self.generator, self.batch_size = generator, spec['recipe']['batch_size']
    self.images = normalise(channels_first(data['train_images']), spec['mean'], spec['std'])
    self.labels = torch.from_numpy(data['train_labels']).long()
    self.order = torch.empty(0, dtype=torch.long)

  def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
    while len(self.order) < self.batch_size:  # batches straddle epochs
      epoch = torch.randperm(len(self.labels), generator=self.generator)
      self.order = torch.cat([self.order, epoch])
    ids, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
    x = self.images[ids]
    mirrored = torch.randint(2, (len(ids), 1, 1, 1), generator=self.generator).bool()
    x = torch.where(mirrored, x.flip(3), x)
    return x.contiguous(memory_format=torch.channels_last), self.labels[ids]


def channels_first(images: np.ndarray) -> torch.Tensor:
  return torch.from_numpy(images).permute(0, 3, 1, 2)


def normalise(images: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
  mean_, std_ = (torch.tensor(v)[None, :, None, None] for v in (mean, std))
  return (images.float() / 255 - mean_) / std_


def rate(step: int, steps: int, recipe: dict[str, Any]) -> float:
  """The learning rate: up to the peak and down to the end, both on half a cosine."""
  top = min(round(recipe['peak'] * steps), steps - 1)
  start, end = recipe['start_factor'], recipe['end_factor']
  ease = lambda progress: 0.5 - 0.5 * math.cos(math.pi * progress)
  if step < top:
    factor = start + (1 - start) * ease(step / top)
  else:
    factor = 1 + (end - 1) * ease((step - top) / (steps - top))
  return recipe['learning_rate'] * factor


def build(
  spec: dict[str, Any], data: Any, *, compiled: bool, form: dict[str, bool]
) -> tuple[Net, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]]:
  """A new network and its training step."""
  torch.manual_seed(spec['seed'])
  recipe = spec['recipe']
  image, classes = data['train_images'].shape[1:], int(data['train_labels'].max()) + 1
  net = Net(image, classes, recipe['model']).to(memory_format=torch.channels_last).train()
  named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
  groups = [
    {'params': [p for _, p in named if p.ndim > 1], 'weight_decay': recipe['weight_decay']},
    {'params': [p for _, p in named if p.ndim == 1], 'weight_decay': 0.0},
  ]
  optimizer = torch.optim.AdamW(groups, recipe['learning_rate'], **form)

  def cost(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(net(images), labels, label_smoothing=recipe['label_smoothing'])

  if compiled:
    cost = torch.compile(cost)

  def step(images: torch.Tensor, labels: torch.Tensor, learning_rate: float) -> torch.Tensor:
    for group in optimizer.param_groups:
      group['lr'] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    loss = cost(images, labels)
    loss.backward()
    optimizer.step()
    return loss.detach()

  return net, step


def trial(spec: dict[str, Any], data: Any, feed: Feed, **options: Any) -> float:
  """Milliseconds per step: the median of some steps."""
  torch._dynamo.reset()
  _, step = build(spec, data, **options)
  times = []
  for _ in range(TRIAL):
    start = time.perf_counter()
    step(*feed(), 1e-3)
    times.append(time.perf_counter() - start)
  return round(float(np.median(times[4:])) * 1e3, 2)


@torch.inference_mode()
def accuracy(net: Net, spec: dict[str, Any], data: Any) -> float:
  """On the test images, each seen as it is and mirrored."""
  net.eval()
  images, labels = channels_first(data['test_images']), torch.from_numpy(data['test_labels'])
  correct = 0
  for x, y in zip(images.split(EVAL_BATCH), labels.split(EVAL_BATCH), strict=True):
    x = normalise(x, spec['mean'], spec['std']).contiguous(memory_format=torch.channels_last)
    correct += int(((net(x) + net(x.flip(3))).argmax(1) == y).sum())
  return correct / len(labels)


def main() -> None:
  spec = json.loads(sys.argv[1])
  torch.set_num_threads(spec['threads'])
  torch.set_flush_denormal(True)  # as XLA does
  data = dict(np.load(spec['data']))
  feed = Feed(spec, data, torch.Generator().manual_seed(spec['seed']))
  modes = {'eager': (False,), 'compile': (True,), 'auto': (False, True)}[spec['mode']]
  candidates = {
    f'{"compile" if compiled else "eager"}, {form}': {'compiled': compiled, 'form': {form: True}}
    for compiled in modes
    for form in ('foreach', 'fused')
  }
  tried = {name: trial(spec, data, feed, **options) for name, options in candidates.items()}
  chosen = min(tried, key=tried.__getitem__)

  torch._dynamo.reset()
  feed = Feed(spec, data, torch.Generator().manual_seed(spec['seed']))
  begin = time.perf_counter()
  net, step = build(spec, data, **candidates[chosen])
  recipe = spec['recipe']
  steps = round(recipe['epochs'] * len(data['train_labels']) / recipe['batch_size'])
  start, loss = begin, torch.zeros(())
  for i in range(steps):
    loss = step(*feed(), rate(i, steps, recipe))
    if i == 0:
      start = time.perf_counter()  # this step was compiled as well
  end = time.perf_counter()
  if not torch.isfinite(loss):
    raise FloatingPointError(f'loss {loss.item()}')
  report = {
    'seconds': end - start,
    'seconds_with_compilation': end - begin,
    'accuracy': accuracy(net, spec, data),
    'parameters': sum(p.numel() for p in net.parameters() if p.requires_grad),
    'settings': {'chosen': chosen, 'tried_ms': tried, 'threads': torch.get_num_threads()},
    'versions': {'torch': torch.__version__, 'python (torch)': platform.python_version()},
  }
  print(json.dumps(report))


if __name__ == '__main__':
  main()
