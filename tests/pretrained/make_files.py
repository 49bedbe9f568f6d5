"""Writes small files of weights with PyTorch and safetensors themselves, for `test_readers.py`.

From the root: `python -m tests.pretrained.make_files`.
"""

import pathlib

FOLDER = pathlib.Path(__file__).parent / 'files'


def main():
  import torch
  from safetensors.torch import save_file

  torch.manual_seed(0)
  module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
  state = module.state_dict()
  ramp = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
  tensors = {
    **{f'{str(t).removeprefix("torch.")}': (ramp - 7).to(t) for t in (
      torch.float64, torch.float32, torch.float16, torch.bfloat16,
      torch.int64, torch.int32, torch.int16, torch.int8,
    )},
    'uint8': ramp.to(torch.uint8),
    'bool': ramp > 11,
    'scalar': torch.tensor(2.5),
    'empty': torch.zeros(0, 3),
  }  # fmt: skip
  views = {
    'transposed': ramp.permute(2, 0, 1),
    'every_other': ramp[:, 1:, ::2],
    'shared': ramp[1],
    'parameter': torch.nn.Parameter(ramp[0].clone()),
  }
  FOLDER.mkdir(exist_ok=True)
  for form, zipped in (('zip', True), ('stacked', False)):
    options = {'_use_new_zipfile_serialization': zipped}
    torch.save(state, FOLDER / f'state_{form}.pth', **options)
    torch.save({**tensors, **views}, FOLDER / f'types_{form}.pt', **options)
    checkpoint = {'epoch': 3, 'best': 0.5, 'state_dict': state, 'shape': torch.Size([2, 3])}
    torch.save(checkpoint, FOLDER / f'checkpoint_{form}.pt', **options)
  save_file(tensors, FOLDER / 'types.safetensors', metadata={'format': 'pt'})
  # What the files must hold, as text: NumPy alone reads it back.
  with (FOLDER / 'state.txt').open('w') as file:
    for name, value in state.items():
      values = ' '.join(float(x).hex() for x in value.double().flatten())
      print(name, 'x'.join(map(str, value.shape)) or '-', values, file=file)


if __name__ == '__main__':
  main()
