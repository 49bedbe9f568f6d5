"""TFDS's mock data without TensorFlow: random examples of the right shapes and classes."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import pytest


class _Examples:
  """Random decoded examples; TFDS's own mock would encode them with TensorFlow."""

  def __init__(self, features: Any, num_examples: int):
    from tensorflow_datasets.testing import mocking

    self._generator = mocking.RandomFakeGenerator(features, num_examples)
    self._num_examples = num_examples

  def __len__(self) -> int:
    return self._num_examples

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._generator[index]

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    return [self[i] for i in indices]


@contextlib.contextmanager
def mock_tfds(num_examples: int = 32) -> Iterator[None]:
  """Every `tfds:NAME` that TFDS knows is there, with `num_examples` random examples per split.

  Images whose size varies get random sizes from 5 to 49, so these sets need `image_size`. The
  examples are the same in every split and every time.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import dataset_builder

  def as_data_source(self: Any, split: str, decoders: Any = None, **_: Any) -> _Examples:
    return _Examples(self.info.features, num_examples)

  with (
    tfds.testing.mock_data(num_examples, as_data_source_fn=as_data_source),
    mock.patch.object(dataset_builder.DatasetBuilder, 'is_prepared', return_value=True),
  ):
    yield


@pytest.fixture
def tfds_mock() -> Iterator[None]:
  """`mock_tfds()` as a fixture: `from tests.data.mock import tfds_mock`."""
  with mock_tfds():
    yield
