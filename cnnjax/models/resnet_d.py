"""ResNet-D: He, Zhang, Zhang, Zhang, Xie & Li 2019, "Bag of Tricks for Image Classification with
Convolutional Neural Networks", arXiv:1812.01187, section 4 (figure 2), as timm has it.

Three 3 x 3 convolutions make the stem (C), the stride is on a bottleneck's 3 x 3 (B), and a
shortcut halves the image by a 2 x 2 mean before its 1 x 1 convolution (D).
"""

from functools import partial

import flax.linen as nn
import jax

from cnnjax.layers.pool import avg_pool
from cnnjax.models.resnet import SIZES, Bottleneck, Projection, Stem, imagenet


class DeepStem(Stem):
  """Three 3 x 3 convolutions, the first of them strided and two of half the width; max-pool."""

  kernel_size: int = 3

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    half = self.features // 2
    for i, (width, strides) in enumerate(((half, self.strides), (half, 1), (self.features, 1)), 1):
      x = self.conv(width, self.kernel_size, strides=strides, name=f'conv{i}')(x)
      x = self.act(self.norm(name=f'norm{i}')(x))
    return self.pool(x)


class AvgProjection(Projection):
  """Mean of 2 x 2 pixels (of those there are, at an odd edge), 1 x 1 convolution, normalisation."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.strides != 1:
      x = avg_pool(x, 2, strides=self.strides, ceil_mode=True, count_include_pad=False)
    return self.norm(name='norm')(self.conv(self.features, 1, name='conv')(x))


VARIANTS = {
  'resnet50d': imagenet(
    SIZES[50],
    partial(Bottleneck, shortcut=AvgProjection),
    stem_layer=DeepStem,
    paper='He et al. 2019, arXiv:1812.01187',
  )
}
