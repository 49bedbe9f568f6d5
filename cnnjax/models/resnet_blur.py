"""Anti-aliased ResNet: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again",
arXiv:1904.11486.

Whatever had a stride runs densely and a blur subsamples: after the activation of a block's 3 x 3,
and after the stem's max-pool. As in timm the blur is 3 x 3 with reflected borders, and the stem's
convolution and the shortcuts keep their strides (the paper blurs the shortcuts too).
"""

from functools import partial

import jax

from cnnjax.layers.pool import blur_pool, max_pool
from cnnjax.models.resnet import SIZES, Bottleneck, Stem, imagenet


def max_blur_pool(x: jax.Array) -> jax.Array:
  """3 x 3 maxima at every pixel, blurred and subsampled by 2 (section 3.2)."""
  return blur_pool(max_pool(x, 3, strides=1, padding=1), strides=2)


VARIANTS = {
  'resnetblur50': imagenet(
    SIZES[50],
    partial(Bottleneck, antialias=blur_pool),
    stem_layer=partial(Stem, pool=max_blur_pool),
    narrowest=2,  # a blur reflects
    paper='Zhang 2019, arXiv:1904.11486',
  )
}
