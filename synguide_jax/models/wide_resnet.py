"""Wide residual networks: WRN-28-10 is the paper's labeler.

Zagoruyko and Komodakis, `Wide Residual Networks
<https://arxiv.org/abs/1605.07146>`_, 2016, with pre-activation blocks.
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
  numbered_stages,
)


class Block(nn.Module):
  """Norm, ReLU and convolution, twice, with dropout between; a shortcut.

  Where the channels change, the shortcut is a 1x1 convolution of the activated
  input.
  """

  features: int
  stride: int
  dropout: float
  train: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    conv = functools.partial(Conv, dtype=self.dtype)
    norm = functools.partial(BatchNorm, self.train, dtype=self.dtype)
    active = nn.relu(norm(name="norm1")(x))
    y = conv(self.features, stride=self.stride, name="conv1")(active)
    y = nn.relu(norm(name="norm2")(y))
    y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
    y = conv(self.features, name="conv2")(y)
    if x.shape[-1] != self.features:
      x = conv(self.features, 1, self.stride, name="shortcut_conv")(active)
    return x + y


class WideResNet(nn.Module):
  """A wide ResNet for images of 32 px: maps of 32, 16 and 8 px.

  The maps are the blocks' sums, except the last stage's, which is normalised
  and rectified before it is pooled.

  Attributes:
    num_classes: Number of logits; 0: no head.
    depth: Convolutions on the way, 6 n + 4 for n blocks a stage.
    widen: Multiplies the channels 16, 32 and 64 of the stages.
    dropout: Rate between the convolutions of a block.
    dtype: Type to compute in.
    remat: Whether blocks are computed again in the backward pass.
  """

  num_classes: int
  depth: int = 28
  widen: int = 10
  dropout: float = 0.3
  dtype: Any = jnp.float32
  remat: bool = False

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the features, from input to output."""
    return numbered_stages(3)

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool, upto: str | None = None
  ) -> tuple[jax.Array | None, dict[str, jax.Array]]:
    x = Conv(16, dtype=self.dtype, name="stem_conv")(images)
    block_type = nn.remat(Block) if self.remat else Block
    features = {}
    for number in (1, 2, 3):
      for block in range((self.depth - 4) // 6):
        x = block_type(
          features=16 * self.widen * 2 ** (number - 1),
          stride=2 if number > 1 and block == 0 else 1,
          dropout=self.dropout,
          train=train,
          dtype=self.dtype,
          name=f"stage{number}_block{block}",
        )(x)
      if number == 3:
        x = nn.relu(BatchNorm(train, dtype=self.dtype, name="final_norm")(x))
      features[f"stage{number}"] = x
      if upto == f"stage{number}":
        return None, features
    return classify(features, pool(x), num_classes=self.num_classes, upto=upto)
