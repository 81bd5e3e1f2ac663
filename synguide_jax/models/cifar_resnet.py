"""ResNets for 32x32 images, with the stem and widths of kuangliu/pytorch-cifar.

The first convolution is 3x3 with stride 1 and there is no max pooling;
otherwise they follow He et al., `Deep Residual Learning for Image Recognition
<https://arxiv.org/abs/1512.03385>`_, 2015.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from synguide_jax.models.layers import Conv


class BasicBlock(nn.Module):
  """Two 3x3 convolutions around a shortcut."""

  features: int
  stride: int
  norm: Any
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shortcut = x
    y = Conv(self.features, stride=self.stride, dtype=self.dtype)(x)
    y = nn.relu(self.norm()(y))
    y = self.norm()(Conv(self.features, dtype=self.dtype)(y))
    if shortcut.shape != y.shape:
      shortcut = Conv(
        self.features,
        kernel_size=1,
        stride=self.stride,
        dtype=self.dtype,
        name="shortcut",
      )(shortcut)
      shortcut = self.norm(name="shortcut_norm")(shortcut)
    return nn.relu(y + shortcut)


class CifarResNet(nn.Module):
  """ResNet-18 (by default) for 32x32 images: maps of 32, 16, 8 and 4 px.

  Batch normalisation has PyTorch's constants: epsilon 1e-5, and the running
  statistics keep 0.9 of themselves a step (their variance is the biased one,
  PyTorch's the unbiased). In a sharded batch the statistics are those of the
  global batch.
  """

  num_classes: int
  blocks: tuple[int, ...] = (2, 2, 2, 2)
  width: int = 64
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool, upto: str | None = None
  ) -> tuple[jax.Array | None, dict[str, jax.Array]]:
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=0.9,
      epsilon=1e-5,
      dtype=self.dtype,
    )
    x = nn.relu(
      norm(name="stem_norm")(Conv(self.width, dtype=self.dtype)(images))
    )
    features = {}
    for number, blocks in enumerate(self.blocks, start=1):
      for block in range(blocks):
        stride = 2 if number > 1 and block == 0 else 1
        x = BasicBlock(
          self.width * 2 ** (number - 1), stride, norm, self.dtype
        )(x)
      features[f"stage{number}"] = x
      if upto == f"stage{number}":
        return None, features
    pooled = x.mean((1, 2), dtype=jnp.float32)
    return nn.Dense(self.num_classes, name="head")(pooled), features
