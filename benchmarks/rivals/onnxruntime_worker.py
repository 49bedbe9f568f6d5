"""The worker for ONNX Runtime: inference of the PyTorch twin, exported, with all optimisations.

Tried: threads that spin while they wait for work, and threads that sleep.

`python onnxruntime_worker.py --export SPEC PATH` is its other half, which writes the model: a
process of its own, so that PyTorch's threads and memory aren't in the one that is measured.
"""

import functools
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from serve import Run, batch, check_close, fastest, serve


def make(spec: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
  """The step for a specification; see `serve`."""
  import onnxruntime

  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'model.onnx'
    command = [sys.executable, __file__, '--export', json.dumps(spec), str(path)]
    exported = subprocess.run(command, text=True, capture_output=True, check=False)
    if exported.returncode:
      raise RuntimeError(f'no export: {exported.stderr.strip().splitlines()[-1]}')
    expected = dict(np.load(path.with_suffix('.npz')))
    model = path.read_bytes()

  feed = {'images': _channels_first(spec)}

  def build(spinning: bool) -> Run:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = spec['threads']
    options.add_session_config_entry('session.intra_op.allow_spinning', str(int(spinning)))
    session = onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])

    def run(steps: int) -> np.ndarray:
      for _ in range(steps):
        (logits,) = session.run(None, feed)
      return logits

    return run

  trials = {str(spinning): functools.partial(build, spinning) for spinning in (True, False)}
  spinning, tried = fastest(trials)
  run = trials[spinning]()
  error = check_close('ONNX Runtime', run(1), expected['logits'])
  return run, {
    'parameters': int(expected['parameters']),
    'versions': {'onnxruntime': onnxruntime.__version__},
    'settings': {
      **{'spinning': spinning == 'True', 'spinning_tried_ms': tried, 'threads': spec['threads']},
      'difference_from_pytorch': error,
    },
  }


def export(spec: dict[str, Any], path: pathlib.Path) -> None:
  """Writes the model as ONNX, and beside it PyTorch's logits and number of parameters."""
  import torch
  import torch_models

  model = torch_models.build(spec['model'], spec['classes']).eval()
  images = torch.from_numpy(_channels_first(spec))
  torch.onnx.export(model, (images,), str(path), dynamo=False, input_names=['images'])
  with torch.inference_mode():
    logits = model(images).numpy()
  np.savez(path.with_suffix('.npz'), logits=logits, parameters=torch_models.parameters(model))


def _channels_first(spec: dict[str, Any]) -> np.ndarray:
  return np.ascontiguousarray(batch(spec)[0].transpose(0, 3, 1, 2))


if __name__ == '__main__':
  if sys.argv[1] == '--export':
    export(json.loads(sys.argv[2]), pathlib.Path(sys.argv[3]))
  else:
    serve(make)
