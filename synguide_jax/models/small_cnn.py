"""The small convolutional network of the digits experiment."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from synguide_jax.models.base import pool
from synguide_jax.models.layers import (
  classify,
  Conv,
  numbered_stages,
)


class SmallCNN(nn.Module):
  """Three stages of a convolution with GroupNorm, for images of 8 to 32 px.

  The maps of an 8x8 image are 8x8x16, 4x4x32 and 2x2x64.
  """

  num_classes: int
  widths: tuple[int, ...] = (16, 32, 64)
  groups: int = 8
  dtype: Any = jnp.float32

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the features, from input to output."""
    return numbered_stages(len(self.widths))

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool, upto: str | None = None
  ) -> tuple[jax.Array | None, dict[str, jax.Array]]:
    del train  # GroupNorm has no running statistics.
    x, features = images, {}
    for number, width in enumerate(self.widths, start=1):
      x = Conv(width, stride=1 if number == 1 else 2, dtype=self.dtype)(x)
      x = nn.GroupNorm(num_groups=self.groups, dtype=self.dtype)(x)
      x = nn.relu(x)
      features[f"stage{number}"] = x
      if upto == f"stage{number}":
        return None, features
    return classify(features, pool(x), num_classes=self.num_classes, upto=upto)
