"""Initialisers of the papers and frameworks that the models follow.

Each is `f(key, shape, dtype) -> Array`. Kernels are [..., in, out]; the fan is the product of the
window and the channels that one output sees (in) or feeds (out). 'normal' is never truncated: the
frameworks that truncate also rescale, and the papers do neither.
"""

import math

import jax.numpy as jnp
from flax.linen import initializers
from jax import random

# He et al. 2015, arXiv:1502.01852: keeps the variance through ReLU, backward (fan_out; what
# PyTorch's ResNets use) or forward (fan_in).
he_fan_out = initializers.variance_scaling(2.0, 'fan_out', 'normal')
he_fan_in = initializers.variance_scaling(2.0, 'fan_in', 'normal')
he_uniform = initializers.variance_scaling(2.0, 'fan_in', 'uniform')

# Glorot & Bengio 2010, eq. 16; Keras's default.
glorot_uniform = initializers.variance_scaling(1.0, 'fan_avg', 'uniform')

# LeCun, Bottou, Orr & Müller 1998, "Efficient BackProp", eq. 16: standard deviation fan_in^-1/2,
# for units near tanh's linear range.
lecun_tanh = initializers.variance_scaling(1.0, 'fan_in', 'uniform')

# U(±fan_out^-1/2): the logits of MobileNets and EfficientNets in their authors' TensorFlow code.
uniform_fan_out = initializers.variance_scaling(1 / 3, 'fan_out', 'uniform')

# PyTorch's default for convolutions and dense layers: U(±fan_in^-1/2), so a variance of 1 / 3.
torch_uniform = initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def uniform_fan_in(scale: float, *, fan_in: int | None = None) -> initializers.Initializer:
  """U(±scale / fan_in), as LeCun et al. 1998 (LeNet-5, appendix A) have it with scale 2.4.

  Args:
    scale: the bound, times the fan.
    fan_in: given for biases, whose shape doesn't tell it.
  """

  def initialise(key, shape, dtype=jnp.float32, *_, **__):
    fan = fan_in or math.prod(shape[:-1])
    return random.uniform(key, shape, dtype, -scale / fan, scale / fan)

  return initialise


def torch_bias(fan_in: int) -> initializers.Initializer:
  """PyTorch's default for the bias of a layer with that fan: U(±fan_in^-1/2)."""
  return uniform_fan_in(fan_in**0.5, fan_in=fan_in)
