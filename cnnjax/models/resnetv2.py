"""ResNets with pre-activation: He, Zhang, Ren & Sun 2016, "Identity Mappings in Deep Residual
Networks", arXiv:1603.05027.

Normalisation and activation precede each convolution (figure 4e), and nothing touches the sum.
Where the shape changes, the shortcut too starts from the activated input, and has no normalisation
of its own.

`resnetv2_50` is timm's: the stem is a bare convolution and a max-pool, strides are on the 3 x 3.
The CIFAR forms are the paper's: the stem ends in the first normalisation and activation, before
the first block splits (appendix). 110 layers keep the shortcuts without parameters; 164 are
bottlenecks with projections, their stride on the first 1 x 1, as in the authors' code.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax

from cnnjax.layers.norm import bind
from cnnjax.models.resnet import SIZES, Residual, Stem, ZeroPad, cifar, imagenet


class PreActivation(Residual):
  """What the two blocks share.

  Attributes:
    activated: the input is so already, and the block has no first normalisation.
  """

  activated: bool = False

  @nn.nowrap
  def split(self, x: jax.Array, features: int) -> tuple[jax.Array, jax.Array]:
    """What the shortcut and the branch start from; `features` leave the block."""
    y = x if self.activated else self.act(self.norm(name='norm1')(x))
    return (x if self.strides == 1 and x.shape[-1] == features else y), y

  @nn.nowrap
  def end(self, x: jax.Array, y: jax.Array, name: str, features: int, size: int) -> jax.Array:
    """The last convolution and the sum."""
    zeros: Any = {'kernel_init': nn.initializers.zeros} if self.zero_init else {}
    y = self.conv(features, size, name=name, **zeros)(self.dropout(y))
    return self.join(x, y, norm=bind(None))


class PreActBasicBlock(PreActivation):
  """Two 3 x 3 convolutions."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x, y = self.split(x, self.features)
    y = self.conv_norm_act(y, ('conv1', 'norm2'), self.features, 3, self.strides)
    return self.end(x, y, 'conv2', self.features, 3)


class PreActBottleneck(PreActivation):
  """1 x 1, 3 x 3, 1 x 1 convolutions; 4 * features channels out.

  Attributes:
    strided: which convolution has the stride, 2 or 1.
  """

  strided: int = 2

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    first, second = (self.strides, 1) if self.strided == 1 else (1, self.strides)
    x, y = self.split(x, 4 * self.features)
    y = self.conv_norm_act(y, ('conv1', 'norm2'), self.features, 1, first)
    y = self.conv_norm_act(y, ('conv2', 'norm3'), self.features, 3, second)
    return self.end(x, y, 'conv3', 4 * self.features, 1)


class PreActStem(Stem):
  """A convolution and a max-pool alone: the first block normalises and activates."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.conv(self.features, self.kernel_size, strides=self.strides, name='conv')(x)
    return self.pool(x)


_PAPER = 'He et al. 2016, arXiv:1603.05027'
_CIFAR = {'paper': _PAPER, 'preactivation': True, 'first_block': (('activated', True),)}

VARIANTS = {
  'resnetv2_50': imagenet(
    SIZES[50], PreActBottleneck, stem_layer=PreActStem, preactivation=True, paper=_PAPER
  ),
  'cifar_resnet110_v2': cifar(18, partial(PreActBasicBlock, shortcut=ZeroPad), **_CIFAR),
  'cifar_resnet164_v2': cifar(18, partial(PreActBottleneck, strided=1), **_CIFAR),
}
