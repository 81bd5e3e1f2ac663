"""Layers that compute fast on every platform, with one code path in models."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Zeros (before, after) in rows and columns.
Padding = Sequence[tuple[int, int]]

# He et al., 2015, as torchvision's ResNets use it: variance 2 / fan_out.
kaiming_normal_fan_out = nn.initializers.variance_scaling(
  2.0, "fan_out", "normal"
)


def conv2d(
  images: jax.Array,
  kernel: jax.Array,
  *,
  strides: tuple[int, int] = (1, 1),
  padding: Padding = ((0, 0), (0, 0)),
  groups: int = 1,
) -> jax.Array:
  """Two-dimensional convolution, lowered to what the platform does well.

  On GPU and TPU this is ``jax.lax.conv_general_dilated``. XLA's convolutions on
  the CPU are slow, and slower still under a vmap over runs, where they become
  grouped convolutions; there it is one matrix product: a 1x1 kernel acts on
  the channels, and a k x k kernel on k * k shifted slices, concatenated.

  Args:
    images: ``[N, H, W, C]``.
    kernel: ``[kh, kw, C / groups, D]``.
    strides: Step of the window in rows and columns.
    padding: Zeros ``(before, after)`` in rows and columns.
    groups: Number of groups of channels that do not see each other; C of them
      is a depthwise convolution.

  Returns:
    ``[N, H', W', D]``, the same on every platform up to rounding.
  """
  return jax.lax.platform_dependent(
    images,
    kernel,
    cpu=lambda x, k: _conv2d_as_matmul(x, k, strides, padding, groups),
    default=lambda x, k: jax.lax.conv_general_dilated(
      x,
      k,
      strides,
      padding,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups,
    ),
  )


def _conv2d_as_matmul(images, kernel, strides, padding, groups):
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
  if groups == 1:
    patches = slices[0] if len(slices) == 1 else jnp.concatenate(slices, -1)
    return patches @ kernel.reshape(kh * kw * channels, out)
  if channels == 1 and groups == out:
    taps = kernel.reshape(kh * kw, out)
    return sum(x * tap for x, tap in zip(slices, taps, strict=True))
  slices = [x.reshape(*x.shape[:-1], groups, channels) for x in slices]
  taps = kernel.reshape(kh * kw * channels, groups, out // groups)
  output = jnp.einsum("nhwgc,cgd->nhwgd", jnp.concatenate(slices, -1), taps)
  return output.reshape(*output.shape[:-2], out)


def same_padding(
  size: tuple[int, int], kernel_size: int, stride: int
) -> tuple[tuple[int, int], ...]:
  """TensorFlow's "SAME" padding: ceil(size / stride) outputs, extra at the end.

  Args:
    size: Height and width of the input.
    kernel_size: Side of the window.
    stride: Its step.

  Returns:
    Zeros ``(before, after)`` in rows and columns.
  """
  total = [
    max((-(-s // stride) - 1) * stride + kernel_size - s, 0) for s in size
  ]
  return tuple((t // 2, t - t // 2) for t in total)


class Conv(nn.Module):
  """Convolution with explicit padding, as PyTorch's ``Conv2d`` counts it.

  Attributes:
    features: Channels of the output.
    kernel_size: Side of the square window.
    stride: Step of the window.
    padding: Zeros on each side, or "same" as TensorFlow pads; by default
      ``kernel_size // 2`` on each.
    groups: Groups of channels; see :func:`conv2d`.
    use_bias: Whether to add a bias.
    dtype: Type to compute in; parameters are float32.
  """

  features: int
  kernel_size: int = 3
  stride: int = 1
  padding: Padding | str | None = None
  groups: int = 1
  use_bias: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    k = self.kernel_size
    padding = self.padding
    if padding is None:
      padding = ((k // 2, k // 2),) * 2
    elif padding == "same":
      padding = same_padding(images.shape[-3:-1], k, self.stride)
    kernel = self.param(
      "kernel",
      kaiming_normal_fan_out,
      (k, k, images.shape[-1] // self.groups, self.features),
    )
    output = conv2d(
      images.astype(self.dtype),
      kernel.astype(self.dtype),
      strides=(self.stride, self.stride),
      padding=padding,
      groups=self.groups,
    )
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
      output = output + bias.astype(self.dtype)
    return output


class BatchNorm(nn.Module):
  """Batch normalisation as PyTorch's ``BatchNorm2d``.

  A batch is normalised by its own biased variance, and the unbiased one, a
  factor n / (n - 1) larger for n positions, enters the running statistics;
  flax's keeps the biased one. Statistics are float32 whatever is computed in,
  and those of the global batch where it is sharded over devices.

  Attributes:
    train: Whether to use and update the batch's statistics.
    momentum: What the running statistics keep of themselves a step; PyTorch
      counts the complement.
    epsilon: Added to the variance.
    dtype: Type of the output; parameters and statistics are float32.
  """

  train: bool
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape, axes = x.shape[-1:], tuple(range(x.ndim - 1))
    scale = self.param("scale", nn.initializers.ones_init(), shape)
    bias = self.param("bias", nn.initializers.zeros_init(), shape)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
    running_var = self.variable("batch_stats", "var", jnp.ones, shape)
    x = x.astype(jnp.float32)
    if self.train:
      mean = x.mean(axes)
      # One pass over x, as flax; rounding must not make it negative.
      var = jnp.maximum((x * x).mean(axes) - mean * mean, 0)
      if not self.is_initializing():
        count = x.size // x.shape[-1]
        unbiased = var * (count / max(count - 1, 1))
        keep = self.momentum
        running_mean.value = keep * running_mean.value + (1 - keep) * mean
        running_var.value = keep * running_var.value + (1 - keep) * unbiased
    else:
      mean, var = running_mean.value, running_var.value
    normalised = (x - mean) * (scale * jax.lax.rsqrt(var + self.epsilon))
    return (normalised + bias).astype(self.dtype)
