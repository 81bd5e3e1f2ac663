"""Vision transformers: ViT, and the towers of DINOv2 and CLIP.

Dosovitskiy et al., `An Image is Worth 16x16 Words
<https://arxiv.org/abs/2010.11929>`_, 2020; Oquab et al., `DINOv2: Learning
Robust Visual Features without Supervision <https://arxiv.org/abs/2304.07193>`_,
2023; Radford et al., `Learning Transferable Visual Models From Natural Language
Supervision <https://arxiv.org/abs/2103.00020>`_, 2021.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from synguide_jax.errors import UserError
from synguide_jax.models.layers import classify, Conv, numbered_stages


def _quick_gelu(x: jax.Array) -> jax.Array:
  return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {
  "gelu": functools.partial(nn.gelu, approximate=False),
  "quick_gelu": _quick_gelu,
}


def _bicubic_weights(size: int, new_size: int) -> np.ndarray:
  """Weights ``[new_size, size]`` of PyTorch's bicubic interpolation.

  Cubic convolution with a = -0.75 (``jax.image.resize`` has -0.5), half pixel
  centres, no antialiasing; samples beyond an edge are those at the edge.
  """
  a = -0.75
  centres = (np.arange(new_size) + 0.5) * size / new_size - 0.5
  first = np.floor(centres).astype(int) - 1
  weights = np.zeros((new_size, size))
  for offset in range(4):
    x = np.abs(centres - (first + offset))
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    source = np.clip(first + offset, 0, size - 1)
    weights[np.arange(new_size), source] += np.where(x <= 1, near, far)
  return weights


def resample_positions(
  positions: jax.Array, grid: tuple[int, int]
) -> jax.Array:
  """Resamples the position embeddings of square images to another grid.

  As transformers does it; the published models were evaluated with it.

  Args:
    positions: ``[1 + S * S, D]``, the class token's first.
    grid: Rows and columns of patches.

  Returns:
    ``[1 + rows * columns, D]``.
  """
  side = round((positions.shape[0] - 1) ** 0.5)
  if grid == (side, side):
    return positions
  patches = positions[1:].reshape(side, side, -1)
  rows, columns = (
    jnp.asarray(_bicubic_weights(side, new), positions.dtype) for new in grid
  )
  patches = jnp.einsum(
    "rh,cw,hwd->rcd", rows, columns, patches, precision="highest"
  )
  return jnp.concatenate(
    [positions[:1], patches.reshape(-1, positions.shape[1])]
  )


class Block(nn.Module):
  """Attention and a perceptron, each behind a LayerNorm and in a residual."""

  heads: int
  mlp_width: int
  activation: str
  epsilon: float
  layer_scale: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    norm = functools.partial(
      nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype
    )
    dense = functools.partial(nn.Dense, dtype=self.dtype)
    width = x.shape[-1]

    def scaled(y, name):
      if not self.layer_scale:
        return y
      scale = self.param(name, nn.initializers.ones_init(), (width,))
      return y * scale.astype(self.dtype)

    y = dense(3 * width, name="qkv")(norm(name="norm1")(x))
    y = y.reshape(*y.shape[:-1], 3, self.heads, width // self.heads)
    y = jax.nn.dot_product_attention(*(y[:, :, i] for i in range(3)))
    y = dense(width, name="out")(y.reshape(x.shape))
    x = x + scaled(y, "layer_scale1")
    y = dense(self.mlp_width, name="mlp_in")(norm(name="norm2")(x))
    y = dense(width, name="mlp_out")(ACTIVATIONS[self.activation](y))
    return x + scaled(y, "layer_scale2")


class VisionTransformer(nn.Module):
  """A ViT; its stages are the tokens after each quarter of its blocks.

  Tokens are ``[N, 1 + patches, width]``, the class token first, before the
  final LayerNorm. An image is cut into as many whole patches as it has;
  position embeddings are resampled to them.

  Attributes:
    num_classes: Number of logits; 0: no head.
    patch_size: Side of a patch, pixels.
    image_size: Side of the images that the position embeddings are for, pixels.
    width: Channels of a token.
    depth: Number of blocks.
    heads: Attention heads.
    mlp_width: Hidden channels of a block's perceptron.
    activation: One of ``ACTIVATIONS``.
    epsilon: Of the layer normalisation.
    layer_scale: Whether a block's branches are scaled, as in DINOv2.
    pre_norm: Whether tokens are normalised before the first block and patches
      are embedded without bias, as in CLIP.
    embedding: What the head sees, of the normalised tokens: "class" (the class
      token), or "class_mean" (it beside the mean of the others, as DINOv2's).
    projection: Channels the embedding is projected to, as CLIP's; 0: it is not.
    dtype: Type to compute in.
    remat: Whether blocks are computed again in the backward pass.
  """

  num_classes: int
  patch_size: int = 16
  image_size: int = 224
  width: int = 768
  depth: int = 12
  heads: int = 12
  mlp_width: int = 3072
  activation: str = "gelu"
  epsilon: float = 1e-6
  layer_scale: bool = False
  pre_norm: bool = False
  embedding: str = "class"
  projection: int = 0
  dtype: Any = jnp.float32
  remat: bool = False

  @property
  def _ends(self) -> tuple[int, ...]:
    """Numbers of blocks after which stages end; few blocks have fewer."""
    ends = {math.ceil(self.depth * quarter / 4) for quarter in (1, 2, 3, 4)}
    return tuple(sorted(ends))

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of the features, from input to output."""
    return numbered_stages(len(self._ends))

  @nn.compact
  def __call__(
    self, images: jax.Array, *, train: bool, upto: str | None = None
  ) -> tuple[jax.Array | None, dict[str, jax.Array]]:
    del train  # There is no dropout and no running statistic.
    norm = functools.partial(
      nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype
    )
    x = self._tokens(images)
    if self.pre_norm:
      x = norm(name="pre_norm")(x)
    block_type = nn.remat(Block) if self.remat else Block
    features = {}
    for number in range(self.depth):
      x = block_type(
        heads=self.heads,
        mlp_width=self.mlp_width,
        activation=self.activation,
        epsilon=self.epsilon,
        layer_scale=self.layer_scale,
        dtype=self.dtype,
        name=f"block{number}",
      )(x)
      if number + 1 in self._ends:
        stage = f"stage{len(features) + 1}"
        features[stage] = x
        if upto == stage:
          return None, features
    x = norm(name="final_norm")(x).astype(jnp.float32)
    embedding = x[:, 0]
    if self.embedding == "class_mean":
      embedding = jnp.concatenate([embedding, x[:, 1:].mean(1)], -1)
    if self.projection:
      project = nn.Dense(self.projection, use_bias=False, name="projection")
      embedding = project(embedding)
    return classify(
      features, embedding, num_classes=self.num_classes, upto=upto
    )

  def _tokens(self, images):
    side = self.patch_size
    grid = (images.shape[1] // side, images.shape[2] // side)
    if not all(grid):
      raise UserError(
        f"Images of {images.shape[1]}x{images.shape[2]} px are smaller than "
        f"the network's patches of {side}x{side}."
      )
    images = images[:, : grid[0] * side, : grid[1] * side]
    x = Conv(
      self.width,
      side,
      side,
      padding=((0, 0), (0, 0)),
      use_bias=not self.pre_norm,
      dtype=self.dtype,
      name="patches",
    )(images)
    x = x.reshape(x.shape[0], -1, self.width)
    small = nn.initializers.normal(0.02)
    first = self.param("class_token", small, (self.width,))
    positions = self.param(
      "positions", small, (1 + (self.image_size // side) ** 2, self.width)
    )
    first = jnp.broadcast_to(
      first.astype(self.dtype), (x.shape[0], 1, self.width)
    )
    positions = resample_positions(positions, grid).astype(self.dtype)
    return jnp.concatenate([first, x], 1) + positions
