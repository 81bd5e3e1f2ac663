"""Layers that compute fast on every platform, with one code path in models."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from synguide_jax.errors import UserError

# Zeros (before, after) in rows and columns.
Padding = tuple[tuple[int, int], tuple[int, int]]

# He et al., 2015, as torchvision's ResNets use it: variance 2 / fan_out.
kaiming_normal_fan_out = nn.initializers.variance_scaling(
  2.0, "fan_out", "normal"
)


# Layers of one shape are traced once; what JAX does not inline, XLA does.
@functools.partial(
  jax.jit, static_argnames=("strides", "padding", "groups"), inline=True
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

  On GPU and TPU this is ``jax.lax.conv_general_dilated``. On the CPU it is a
  matrix product, or a sum of products with single taps if it is depthwise,
  because there XLA computes the gradients of kernels slowly, and everything
  under a vmap over runs, where convolutions become grouped ones.

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
  """A convolution as one product; memory traffic decides what is copied.

  Where it is cheaper than k * k copies of the input, what a window sees of a
  row is multiplied by every row of the kernel, and the products are added,
  shifted: k copies of the input and of the output.
  """
  kh, kw, channels, out = kernel.shape
  no_padding = (0, 0)
  copied = kw * channels + kh * out
  if strides[0] == groups == 1 and copied < kh * kw * channels:
    columns = _windows(images, (1, kw), strides, (no_padding, padding[1]))
    taps = kernel.transpose(1, 2, 0, 3).reshape(kw * channels, kh * out)
    products = _matmul(jnp.concatenate(columns, -1), taps)
    # Apart before they are shifted, so that the gradient is put together by a
    # concatenation; that of slices is slow.
    rows = jax.lax.split(products, [out] * kh, -1)
    rows = [
      jnp.pad(r, (no_padding, padding[0], no_padding, no_padding)) for r in rows
    ]
    return sum(_shifted(r, 1, kh, 1)[i] for i, r in enumerate(rows))
  if (kh, kw) == tuple(strides) and not any(map(any, padding)):
    patches = _patches(images, kh, kw)
  else:
    windows = _windows(images, (kh, kw), strides, padding)
    if channels == 1 and groups == out > 1:
      taps = kernel.reshape(kh * kw, out)
      return sum(x * tap for x, tap in zip(windows, taps, strict=True))
    patches = jnp.concatenate(windows, -1)
  if groups == 1:
    return _matmul(patches, kernel.reshape(-1, out))
  output = jnp.einsum(
    "nhwkgc,kcgd->nhwgd",
    patches.reshape(*patches.shape[:3], kh * kw, groups, channels),
    kernel.reshape(kh * kw, channels, groups, out // groups),
  )
  return output.reshape(*output.shape[:3], out)


def _matmul(x, matrix):
  """x @ matrix, in two dimensions: for more, XLA would transpose for grad."""
  output = x.reshape(-1, x.shape[-1]) @ matrix
  return output.reshape(*x.shape[:-1], matrix.shape[-1])


def _shifted(x, axis, size, stride):
  """What each position of a window along an axis sees, in order."""
  span = max(stride * ((x.shape[axis] - size) // stride) + 1, 0)
  return [
    jax.lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(size)
  ]


def _windows(images, size, strides, padding):
  """What every position of a window sees, row by row."""
  images = jnp.pad(images, ((0, 0), *padding, (0, 0)))
  return [
    x
    for rows in _shifted(images, 1, size[0], strides[0])
    for x in _shifted(rows, 2, size[1], strides[1])
  ]


def _patches(images, kh, kw):
  """Windows that do not overlap, flattened: a mere reshape."""
  n, height, width, channels = images.shape
  height, width = height // kh, width // kw
  images = images[:, : height * kh, : width * kw]
  images = images.reshape(n, height, kh, width, kw, channels)
  images = images.swapaxes(2, 3)
  return images.reshape(n, height, width, kh * kw * channels)


def max_pool(
  images: jax.Array,
  window: tuple[int, int],
  *,
  strides: tuple[int, int],
  padding: Padding = ((0, 0), (0, 0)),
) -> jax.Array:
  """Maximum over windows; the first of equal ones receives the gradient.

  That is the rule of ``flax.linen.max_pool`` and of PyTorch. On the CPU, where
  XLA's gradient is slow, maxima of columns and then of rows are taken.

  Args:
    images: ``[N, H, W, C]``, floating point.
    window: Rows and columns.
    strides: Step of the window in rows and columns.
    padding: Minus infinities ``(before, after)`` in rows and columns.

  Returns:
    ``[N, H', W', C]``.
  """
  return jax.lax.platform_dependent(
    images,
    cpu=lambda x: _max_pool_by_axis(x, window, strides, padding),
    default=lambda x: nn.max_pool(x, window, strides, padding),
  )


def _max_pool_by_axis(x, window, strides, padding):
  def later_if_greater(first, later):
    return jnp.where((later > first) | jnp.isnan(later), later, first)

  zeros = (0, 0)
  pads = ((zeros, padding[0], zeros, zeros), (zeros, zeros, padding[1], zeros))
  for axis in (2, 1):
    x = jnp.pad(x, pads[axis - 1], constant_values=-jnp.inf)
    shifted = _shifted(x, axis, window[axis - 1], strides[axis - 1])
    x = functools.reduce(later_if_greater, shifted)
  return x


def same_padding(
  size: tuple[int, int], kernel_size: int, stride: int
) -> Padding:
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
  rows, columns = ((t // 2, t - t // 2) for t in total)
  return rows, columns


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
    kernel_init: Initialiser of the kernel ``[kh, kw, C / groups, features]``.
    dtype: Type to compute in; parameters are float32.
  """

  features: int
  kernel_size: int = 3
  stride: int = 1
  padding: Padding | str | None = None
  groups: int = 1
  use_bias: bool = False
  kernel_init: nn.initializers.Initializer = kaiming_normal_fan_out
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    k = self.kernel_size
    padding = self.padding
    if padding is None:
      padding = ((k // 2, k // 2),) * 2
    elif padding == "same":
      padding = same_padding(images.shape[-3:-1], k, self.stride)
    sides = images.shape[-3:-1]
    if any(s + sum(p) < k for s, p in zip(sides, padding, strict=True)):
      raise UserError(
        f"The images are too small for this network: {sides[0]}x{sides[1]} px "
        f"are left of them where a convolution of {k}x{k} sees them."
      )
    kernel = self.param(
      "kernel",
      self.kernel_init,
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
    # A factor and a term for each channel: its gradient needs x alone, where
    # that of (x - mean) * factor would keep x - mean as well.
    factor = scale * jax.lax.rsqrt(var + self.epsilon)
    return (x * factor + (bias - mean * factor)).astype(self.dtype)


def numbered_stages(count: int) -> tuple[str, ...]:
  """Returns ``("stage1", ..., "embedding")``, for ``count`` stages."""
  return (*(f"stage{number}" for number in range(1, count + 1)), "embedding")


def classify(
  features: dict[str, jax.Array],
  embedding: jax.Array,
  *,
  num_classes: int,
  upto: str | None,
  dropout: float = 0.0,
  train: bool = False,
) -> tuple[jax.Array | None, dict[str, jax.Array]]:
  """Ends a network, inside its compact method; its head is named "head".

  Args:
    features: The stages' maps; gets the embedding.
    embedding: What the head sees, ``[N, C]``.
    num_classes: Number of logits; 0: no head.
    upto: Name of the last stage to compute, or None.
    dropout: Rate before the head.
    train: Whether dropout is on.

  Returns:
    Logits ``[N, num_classes]``, or None, and the features.
  """
  features["embedding"] = embedding
  if upto == "embedding" or not num_classes:
    return None, features
  embedding = nn.Dropout(dropout, deterministic=not train)(embedding)
  return nn.Dense(num_classes, name="head")(embedding), features
