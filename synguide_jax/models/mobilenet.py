"""Networks of inverted residual blocks: MobileNetV2 and EfficientNet.

Sandler et al., `MobileNetV2: Inverted Residuals and Linear Bottlenecks
<https://arxiv.org/abs/1801.04381>`_, 2018; Tan and Le, `EfficientNet:
Rethinking Model Scaling for Convolutional Neural Networks
<https://arxiv.org/abs/1905.11946>`_, 2019.

Published weights differ in how they were padded when they were trained, and
only give their accuracy when they are padded in the same way:

* "torch": half the window on each side.
* "same": TensorFlow's; with stride 2, what a side of even length needs is put
  behind it, and one of odd length gets half the window on each side.
* "keras": with stride 2 always one less before than behind, whatever the side;
  what transformers' EfficientNet does. Equal to "same" on even sides.
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from synguide_jax.errors import UserError
from synguide_jax.models.base import pool
from synguide_jax.models.layers import (
  BatchNorm,
  classify,
  Conv,
  numbered_stages,
)

PADDINGS = ("torch", "same", "keras")


def round_channels(channels: float, divisor: int = 8) -> int:
  """The nearest multiple of ``divisor`` that is at least 0.9 ``channels``."""
  rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
  return rounded + divisor if rounded < 0.9 * channels else rounded


class InvertedResidual(nn.Module):
  """Expands the channels, convolves each on its own, and projects them back.

  Attributes:
    features: Channels of the output.
    kernel_size: Side of the depthwise convolution's window.
    stride: Its step.
    expand: Multiplies the input's channels in between; 1: they stay.
    squeeze: Channels of the squeeze-and-excitation in between; 0: none.
    drop_path: Share of the samples whose block is left out in training.
    activation: Between the convolutions; the last has none.
    padding: Of the depthwise convolution, as of a `Conv`.
    train: Whether batch statistics are used and dropout is on.
    epsilon: Of the batch normalisation.
    dtype: Type to compute in.
  """

  features: int
  kernel_size: int
  stride: int
  expand: int
  squeeze: int
  drop_path: float
  activation: Callable[[jax.Array], jax.Array]
  padding: Any
  train: bool
  epsilon: float
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    norm = functools.partial(
      BatchNorm, self.train, epsilon=self.epsilon, dtype=self.dtype
    )
    conv = functools.partial(Conv, dtype=self.dtype)
    y, width = x, x.shape[-1] * self.expand
    if self.expand > 1:
      y = conv(width, 1, name="expand_conv")(y)
      y = self.activation(norm(name="expand_norm")(y))
    y = conv(
      width,
      self.kernel_size,
      self.stride,
      padding=self.padding,
      groups=width,
      name="depthwise_conv",
    )(y)
    y = self.activation(norm(name="depthwise_norm")(y))
    if self.squeeze:
      gate = y.mean((1, 2), keepdims=True, dtype=jnp.float32)
      gate = conv(self.squeeze, 1, use_bias=True, name="squeeze_reduce")(gate)
      gate = self.activation(gate)
      gate = conv(width, 1, use_bias=True, name="squeeze_expand")(gate)
      y = y * nn.sigmoid(gate)
    y = conv(self.features, 1, name="project_conv")(y)
    y = norm(name="project_norm")(y)
    if x.shape != y.shape:
      return y
    drop = nn.Dropout(self.drop_path, (1, 2, 3), deterministic=not self.train)
    return x + drop(y)


class InvertedResiduals(nn.Module):
  """What both networks are; the stages are the last maps of 1/4 ... 1/32.

  Attributes:
    num_classes: Number of logits; 0: no head.
    width: Multiplies all channels.
    depth: Multiplies the numbers of blocks.
    padding: One of ``PADDINGS``.
    epsilon: Of the batch normalisation.
    dropout: Rate before the head.
    drop_path: Share of samples that leave out the last block in training; it
      rises linearly to it.
    dtype: Type to compute in.
    remat: Whether blocks are computed again in the backward pass.
    GROUPS: Expansion, channels, blocks, stride of the first and kernel size of
      each group of blocks.
    SQUEEZE: Channels of the squeeze-and-excitation, as a share of a block's
      input.
    ACTIVATION: Name in flax.linen.
  """

  num_classes: int
  width: float = 1.0
  depth: float = 1.0
  padding: str = "torch"
  epsilon: float = 1e-5
  dropout: float = 0.2
  drop_path: float = 0.0
  dtype: Any = jnp.float32
  remat: bool = False

  GROUPS = ()
  SQUEEZE = 0.0
  ACTIVATION = "relu6"

  @property
  def repeats(self) -> tuple[int, ...]:
    """Number of blocks in each group."""
    return tuple(math.ceil(group[2] * self.depth) for group in self.GROUPS)

  @property
  def final(self) -> int:
    """Channels of the last convolution."""
    return round_channels(1280 * self.width)

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the features, from input to output."""
    return numbered_stages(4)

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool, upto: str | None = None
  ) -> tuple[jax.Array | None, dict[str, jax.Array]]:
    activation = getattr(nn, self.ACTIVATION)
    conv = functools.partial(Conv, dtype=self.dtype)
    norm = functools.partial(
      BatchNorm, train, epsilon=self.epsilon, dtype=self.dtype
    )
    stem, padding = round_channels(32 * self.width), self._padding(3, 2)
    x = conv(stem, 3, 2, padding=padding, name="stem_conv")(images)
    x = activation(norm(name="stem_norm")(x))
    block_type = InvertedResidual
    if self.remat:
      block_type = nn.remat(InvertedResidual)
    features, block = {}, 0
    for number, (expand, channels, _, stride, kernel) in enumerate(self.GROUPS):
      for index in range(self.repeats[number]):
        stride = stride if index == 0 else 1
        x = block_type(
          features=round_channels(channels * self.width),
          kernel_size=kernel,
          stride=stride,
          expand=expand,
          squeeze=int(x.shape[-1] * self.SQUEEZE),
          drop_path=self.drop_path * block / sum(self.repeats),
          activation=activation,
          padding=self._padding(kernel, stride),
          train=train,
          epsilon=self.epsilon,
          dtype=self.dtype,
          name=f"block{block}",
        )(x)
        block += 1
      if number in (1, 2, 4, 6):
        stage = f"stage{len(features) + 1}"
        features[stage] = x
        if upto == stage:
          return None, features
    x = conv(self.final, 1, name="final_conv")(x)
    x = activation(norm(name="final_norm")(x))
    return classify(
      features,
      pool(x),
      num_classes=self.num_classes,
      upto=upto,
      dropout=self.dropout,
      train=train,
    )

  def _padding(self, kernel_size: int, stride: int) -> Any:
    if self.padding not in PADDINGS:
      raise UserError(
        f"padding={self.padding!r} must be one of {', '.join(PADDINGS)}."
      )
    half = kernel_size // 2
    if self.padding == "keras" and stride == 2:
      return ((half - 1, half),) * 2
    return "same" if self.padding == "same" else ((half, half),) * 2


class MobileNetV2(InvertedResiduals):
  """MobileNetV2."""

  GROUPS = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 3),
    (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
  )

  @property
  def final(self) -> int:
    """Channels of the last convolution, which narrow networks keep."""
    return round_channels(1280 * max(self.width, 1.0))


class EfficientNet(InvertedResiduals):
  """EfficientNet, of B0's size by default."""

  drop_path: float = 0.2

  GROUPS = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
  )
  SQUEEZE = 0.25
  ACTIVATION = "silu"
