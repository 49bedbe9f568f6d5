"""The compiled part: where its headers and libraries are is known only to the environment."""

import importlib.metadata
import pathlib

import jaxlib
from setuptools import Extension, setup


def _folder(distribution, suffix):
  """The folder of the environment that holds a distribution's file of that name."""
  for file in importlib.metadata.files(distribution) or ():
    if str(file).endswith(suffix):
      return str(pathlib.Path(str(file.locate())).resolve().parents[suffix.count('/')])
  raise FileNotFoundError(f'{distribution} has no file {suffix}')


setup(
  ext_modules=[
    Extension(
      'cnnjax_onednn._kernels',
      sources=sorted(str(path) for path in pathlib.Path('src').glob('*.cc')),
      depends=sorted(str(path) for path in pathlib.Path('src').glob('*.h')),
      include_dirs=[
        str(pathlib.Path(jaxlib.__file__).parent / 'include'),
        _folder('onednn-devel-cpu-gomp', 'oneapi/dnnl/dnnl.hpp'),
      ],
      library_dirs=[_folder('onednn-cpu-gomp', 'libdnnl.so')],
      libraries=['dnnl'],
      extra_compile_args=['-std=c++20', '-O3', '-fopenmp', '-Wall', '-Wno-unused-parameter'],
      extra_link_args=['-fopenmp'],
    ),
    Extension(
      'cnnjax_onednn._memory',
      sources=['memory/retain.cc'],
      extra_compile_args=['-std=c++20', '-O2', '-Wall'],
    ),
  ]
)
