"""Residual networks, for photographs and for images of 32 px.

He et al., `Deep Residual Learning for Image Recognition
<https://arxiv.org/abs/1512.03385>`_, 2015, in the variant called v1.5, as in
torchvision: where a bottleneck block halves the map, its 3x3 convolution does.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from synguide_jax.models.base import pool
from synguide_jax.models.layers import (
  BatchNorm,
  classify,
  Conv,
  max_pool,
  numbered_stages,
)


class Block(nn.Module):
  """Convolutions around a shortcut, each followed by batch normalisation.

  Two of 3x3, or, in a bottleneck, one of 1x1, 3x3 and 1x1 each, the last with
  four times the channels.
  """

  width: int
  stride: int
  bottleneck: bool
  train: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    conv = functools.partial(Conv, dtype=self.dtype)
    norm = functools.partial(BatchNorm, self.train, dtype=self.dtype)
    if self.bottleneck:
      # Output channels, side of the window, stride.
      layers = [
        (self.width, 1, 1),
        (self.width, 3, self.stride),
        (4 * self.width, 1, 1),
      ]
    else:
      layers = [(self.width, 3, self.stride), (self.width, 3, 1)]
    y = x
    for number, (features, kernel_size, stride) in enumerate(layers, start=1):
      y = conv(features, kernel_size, stride, name=f"conv{number}")(y)
      y = norm(name=f"norm{number}")(y)
      if number < len(layers):
        y = nn.relu(y)
    if x.shape != y.shape:
      x = conv(y.shape[-1], 1, self.stride, name="shortcut_conv")(x)
      x = norm(name="shortcut_norm")(x)
    return nn.relu(y + x)


class ResNet(nn.Module):
  """A ResNet; its stages' maps are after the last ReLU of each.

  Attributes:
    num_classes: Number of logits; 0: no head.
    blocks: Blocks in each stage.
    bottleneck: Kind of the blocks.
    width: Channels in the first stage (a quarter of its output's, with
      bottlenecks); every further stage has twice as many and half the side.
    small_images: A stem of one 3x3 convolution that keeps the side, instead of
      7x7 with stride 2 and max pooling, which leave a quarter of it.
    dtype: Type to compute in.
    remat: Whether blocks are computed again in the backward pass.
  """

  num_classes: int
  blocks: tuple[int, ...] = (3, 4, 6, 3)
  bottleneck: bool = True
  width: int = 64
  small_images: bool = False
  dtype: Any = jnp.float32
  remat: bool = False

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the features, from input to output."""
    return numbered_stages(len(self.blocks))

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool, upto: str | None = None
  ) -> tuple[jax.Array | None, dict[str, jax.Array]]:
    kernel_size, stride = (3, 1) if self.small_images else (7, 2)
    x = Conv(
      self.width,
      kernel_size,
      stride,
      dtype=self.dtype,
      name="stem_conv",
    )(images)
    x = nn.relu(BatchNorm(train, dtype=self.dtype, name="stem_norm")(x))
    if not self.small_images:
      x = max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    block_type = nn.remat(Block) if self.remat else Block
    features = {}
    for number, blocks in enumerate(self.blocks, start=1):
      for block in range(blocks):
        x = block_type(
          width=self.width * 2 ** (number - 1),
          stride=2 if number > 1 and block == 0 else 1,
          bottleneck=self.bottleneck,
          train=train,
          dtype=self.dtype,
          name=f"stage{number}_block{block}",
        )(x)
      features[f"stage{number}"] = x
      if upto == f"stage{number}":
        return None, features
    return classify(features, pool(x), num_classes=self.num_classes, upto=upto)
