"""Layers that compute fast on every platform, with one code path in models."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# He et al., 2015, as torchvision's ResNets use it: variance 2 / fan_out.
kaiming_normal_fan_out = nn.initializers.variance_scaling(
  2.0, "fan_out", "normal"
)


def conv2d(
  images: jax.Array,
  kernel: jax.Array,
  *,
  strides: tuple[int, int] = (1, 1),
  padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
) -> jax.Array:
  """Two-dimensional convolution, lowered to what the platform does well.

  On GPU and TPU this is ``jax.lax.conv_general_dilated``. XLA's convolutions on
  the CPU are slow, and slower still under a vmap over runs, where they become
  grouped convolutions; there it is one matrix product: a 1x1 kernel acts on
  the channels, and a k x k kernel on k * k shifted slices, concatenated.

  Args:
    images: ``[N, H, W, C]``.
    kernel: ``[kh, kw, C, D]``.
    strides: Step of the window in rows and columns.
    padding: Zeros ``(before, after)`` in rows and columns.

  Returns:
    ``[N, H', W', D]``, the same on every platform up to rounding.
  """
  return jax.lax.platform_dependent(
    images,
    kernel,
    cpu=lambda x, k: _conv2d_as_matmul(x, k, strides, padding),
    default=lambda x, k: jax.lax.conv_general_dilated(
      x, k, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
  )


def _conv2d_as_matmul(images, kernel, strides, padding):
  kh, kw, channels, out = kernel.shape
  images = jnp.pad(images, ((0, 0), *padding, (0, 0)))
  height = (images.shape[1] - kh) // strides[0] + 1
  width = (images.shape[2] - kw) // strides[1] + 1
  slices = [
    images[
      :,
      i : i + strides[0] * (height - 1) + 1 : strides[0],
      j : j + strides[1] * (width - 1) + 1 : strides[1],
    ]
    for i in range(kh)
    for j in range(kw)
  ]
  patches = slices[0] if len(slices) == 1 else jnp.concatenate(slices, -1)
  return patches @ kernel.reshape(kh * kw * channels, out)


class Conv(nn.Module):
  """Convolution with explicit padding, as PyTorch's ``Conv2d`` counts it.

  Attributes:
    features: Channels of the output.
    kernel_size: Side of the square window.
    stride: Step of the window.
    padding: Zeros on each side; by default ``kernel_size // 2``.
    use_bias: Whether to add a bias.
    dtype: Type to compute in; parameters are float32.
  """

  features: int
  kernel_size: int = 3
  stride: int = 1
  padding: int | None = None
  use_bias: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    k = self.kernel_size
    pad = k // 2 if self.padding is None else self.padding
    kernel = self.param(
      "kernel", kaiming_normal_fan_out, (k, k, images.shape[-1], self.features)
    )
    output = conv2d(
      images.astype(self.dtype),
      kernel.astype(self.dtype),
      strides=(self.stride, self.stride),
      padding=((pad, pad), (pad, pad)),
    )
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
      output = output + bias.astype(self.dtype)
    return output
