"""lenet5 and its mean cross-entropy against LeNet-5 written by hand in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import models


def convolve(x, kernel, bias):
  """Valid convolution: [N, H, W, C] by [k, k, C, F]; also the patches that its gradient needs."""
  patches = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
  return np.einsum('nhwcij,ijcf->nhwf', patches, kernel) + bias, patches


def convolve_backward(dy, patches, kernel):
  dkernel = np.einsum('nhwcij,nhwf->ijcf', patches, dy)
  n, h, w, c, k, _ = patches.shape
  dx = np.zeros((n, h + k - 1, w + k - 1, c))
  for i in range(k):
    for j in range(k):
      dx[:, i : i + h, j : j + w] += dy @ kernel[i, j].T
  return dx, {'kernel': dkernel, 'bias': dy.sum((0, 1, 2))}


def pool(x):
  return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def pool_backward(dy):
  return dy.repeat(2, 1).repeat(2, 2) / 4


def dense_backward(dy, x, kernel):
  return dy @ kernel.T, {'kernel': x.T @ dy, 'bias': dy.sum(0)}


def lenet(params, images, labels):
  """Logits, cost J = mean cross-entropy, and dJ/dparams."""
  conv1, conv2 = params['stage1']['conv'], params['stage2']['conv']
  dense1, dense2, last = (params['head'][k] for k in ('dense1', 'dense2', 'logits'))
  z1, patches1 = convolve(images, **conv1)
  c1 = np.tanh(z1)  # C1, S2
  z3, patches3 = convolve(pool(c1), **conv2)
  c3 = np.tanh(z3)  # C3, S4
  s4 = pool(c3)
  flat = s4.reshape(len(s4), -1)
  c5 = np.tanh(flat @ dense1['kernel'] + dense1['bias'])
  f6 = np.tanh(c5 @ dense2['kernel'] + dense2['bias'])
  logits = f6 @ last['kernel'] + last['bias']
  shifted = logits - logits.max(1, keepdims=True)
  logp = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
  rows = np.arange(len(labels))
  cost = -logp[rows, labels].mean()

  d = np.exp(logp)
  d[rows, labels] -= 1
  d, dlast = dense_backward(d / len(labels), f6, last['kernel'])
  d, ddense2 = dense_backward(d * (1 - f6**2), c5, dense2['kernel'])
  d, ddense1 = dense_backward(d * (1 - c5**2), flat, dense1['kernel'])
  d = pool_backward(d.reshape(s4.shape)) * (1 - c3**2)
  d, dconv2 = convolve_backward(d, patches3, conv2['kernel'])
  _, dconv1 = convolve_backward(pool_backward(d) * (1 - c1**2), patches1, conv1['kernel'])
  grads = {
    'stage1': {'conv': dconv1},
    'stage2': {'conv': dconv2},
    'head': {'dense1': ddense1, 'dense2': ddense2, 'logits': dlast},
  }
  return logits, cost, grads


@pytest.mark.parametrize(('size', 'channels'), [(28, 1), (36, 3)])
def test_forward_cost_and_gradients(size, channels):
  rng = np.random.default_rng(0)
  images = rng.normal(size=(6, size, size, channels)).astype(np.float32)
  labels = rng.integers(0, 10, 6)
  model = models.create('lenet5', num_classes=10)
  variables = model.init(jax.random.key(1), jnp.asarray(images))
  # Biases start at zero; give them values, so that they count.
  noise = lambda p: p + jnp.asarray(0.1 * rng.normal(size=p.shape), jnp.float32)
  params = jax.tree.map(noise, variables['params'])

  def cost(params):
    logits = model.apply({'params': params}, jnp.asarray(images))
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean(), logits

  (ours, logits), grads = jax.jit(jax.value_and_grad(cost, has_aux=True))(params)
  border = (max(32 - size, 0) // 2,) * 2
  padded = np.pad(images.astype(np.float64), ((0, 0), border, border, (0, 0)))
  exact = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  want_logits, want, want_grads = lenet(exact, padded, labels)
  np.testing.assert_allclose(logits, want_logits, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(ours, want, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max()),
    grads,
    want_grads,
  )
