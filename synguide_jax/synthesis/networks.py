r"""The networks behind the denoiser of :mod:`synguide_jax.synthesis.diffusion`.

Every one in :data:`NETWORKS` is a Flax module called as

.. code-block:: python

  network.apply({"params": params}, images, c_noise, labels, augmentation)

with images that ``c_in`` has scaled ``[N, H, W, C]``, ``c_noise`` ``[N]``,
labels ``[N]`` (``num_classes`` is the null label), and what the augmentation
has done to each image ``[N, conditions]``, or None for zeros: nothing. It draws
dropout from the ``"dropout"`` stream under ``train=True`` and returns float32
``[N, H, W, C]``: zeros before training, so that the untrained denoiser is
``c_skip * x``.

Common attributes: ``num_classes``, the null class not counted; ``conditions``,
how many numbers about the augmentation the network is told; ``dropout``, the
share of activations dropped inside a block in training; ``dtype``, the type to
compute in, "float32" or "bfloat16". Parameters, the embedding of the conditions
and the statistics of norms are float32 in either.

References:
  Ho et al., `Denoising Diffusion Probabilistic Models
  <https://arxiv.org/abs/2006.11239>`_, 2020

  Song et al., `Score-Based Generative Modeling through Stochastic Differential
  Equations <https://arxiv.org/abs/2011.13456>`_, 2021

  Dhariwal & Nichol, `Diffusion Models Beat GANs on Image Synthesis
  <https://arxiv.org/abs/2105.05233>`_, 2021

  Karras et al., `Elucidating the Design Space of Diffusion-Based Generative
  Models <https://arxiv.org/abs/2206.00364>`_, 2022
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from synguide_jax.errors import check_known, UserError
from synguide_jax.models import layers

# Variance-preserving, for branches whose other end starts at zero.
Conv = functools.partial(
  layers.Conv, use_bias=True, kernel_init=nn.initializers.lecun_normal()
)
ZeroConv = functools.partial(Conv, kernel_init=nn.initializers.zeros)


def _compute_type(dtype: str) -> Any:
  check_known("config.model.dtype", dtype, ("float32", "bfloat16"))
  return jnp.dtype(dtype)


def _embed(
  network: nn.Module,
  c_noise: jax.Array,
  labels: jax.Array,
  augmentation: jax.Array | None,
  width: int,
) -> jax.Array:
  """Embeds noise level, class and augmentation, in float32.

  Args:
    network: The module in whose compact method this is called; it owns the
      layers.
    c_noise: ``[N]``.
    labels: ``[N]``.
    augmentation: ``[N, conditions]`` or None.
    width: Features of the embedding.

  Returns:
    What blocks derive their scales and shifts from, ``[N, width]``.
  """
  # c_noise lies in about [-1.6, 1.1]: waves from a tenth of that range up.
  frequencies = 2.0 ** jnp.linspace(-3, 2, 16)
  angles = 2 * jnp.pi * c_noise.astype(jnp.float32)[:, None] * frequencies
  waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
  emb = nn.Dense(width, name="noise_embedding")(waves)
  emb += nn.Embed(network.num_classes + 1, width, name="class_embedding")(
    labels
  )
  if augmentation is None:
    augmentation = jnp.zeros((labels.shape[0], network.conditions))
  if augmentation.shape[1:] != (network.conditions,):
    raise UserError(
      f"The network is told {network.conditions} numbers about the "
      f"augmentation of an image, got them as {augmentation.shape}; pass "
      f"[N, {network.conditions}]."
    )
  if network.conditions:
    # No bias: an image that is not augmented is the same with and without it.
    emb += nn.Dense(
      width,
      use_bias=False,
      kernel_init=nn.initializers.zeros,
      name="augmentation_embedding",
    )(augmentation)
  return nn.silu(nn.Dense(width, name="embedding")(nn.silu(emb)))


class ResidualMLP(nn.Module):
  """A residual network of dense layers, for images of a few hundred pixels.

  Noise level, class and augmentation are embedded, and scale and shift the
  normalised activations of every block.

  Attributes:
    num_classes: Number of classes, the null class not counted.
    width: Features of every hidden layer.
    blocks: Residual blocks, of two dense layers each.
    dropout: Share of the activations dropped inside a block, in training.
    conditions: Numbers about the augmentation; 0: none.
    dtype: Type to compute in, "float32" or "bfloat16".
  """

  num_classes: int
  width: int = 256
  blocks: int = 4
  dropout: float = 0.0
  conditions: int = 0
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    c_noise: jax.Array,
    labels: jax.Array,
    augmentation: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    dtype = _compute_type(self.dtype)
    dense = functools.partial(nn.Dense, dtype=dtype)
    zero_dense = functools.partial(dense, kernel_init=nn.initializers.zeros)
    emb = _embed(self, c_noise, labels, augmentation, self.width)
    x = dense(self.width, name="input")(images.reshape(images.shape[0], -1))
    for i in range(self.blocks):
      scale, shift = jnp.split(
        dense(2 * self.width, name=f"modulation_{i}")(emb), 2, axis=-1
      )
      h = nn.LayerNorm(use_bias=False, use_scale=False, dtype=dtype)(x)
      h = nn.silu(h * (1 + scale) + shift)
      h = nn.silu(dense(self.width, name=f"hidden_{i}")(h))
      h = nn.Dropout(self.dropout, deterministic=not train)(h)
      x += zero_dense(self.width, name=f"residual_{i}")(h)
    x = nn.silu(nn.LayerNorm(dtype=dtype, name="output_norm")(x))
    pixels = int(np.prod(images.shape[1:]))
    x = zero_dense(pixels, name="output")(x)
    return x.reshape(images.shape).astype(jnp.float32)


def _num_parts(channels: int, at_least: int, at_most: int) -> int:
  """Into how many equal parts, of so many channels each, channels divide."""
  return max(
    (
      parts
      for parts in range(1, at_most + 1)
      if channels % parts == 0 and channels // parts >= at_least
    ),
    default=1,
  )


def _group_norm(channels: int, **kwargs: Any) -> nn.GroupNorm:
  return nn.GroupNorm(_num_parts(channels, 4, 32), **kwargs)


def _halve(x: jax.Array) -> jax.Array:
  """Means over 2x2 pixels."""
  n, height, width, channels = x.shape
  return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def _double(x: jax.Array) -> jax.Array:
  """Repeats every pixel 2x2 times."""
  return x.repeat(2, axis=1).repeat(2, axis=2)


class SelfAttention(nn.Module):
  """Every pixel attends to all, in heads of 64 channels; a residual branch.

  Attributes:
    dtype: Type to compute in; the softmax is float32.
  """

  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    n, height, width, channels = x.shape
    heads = _num_parts(channels, 64, channels)
    h = _group_norm(channels, dtype=self.dtype, name="norm")(x)
    h = Conv(3 * channels, 1, dtype=self.dtype, name="query_key_value")(h)
    h = h.reshape(n, height * width, 3, heads, channels // heads)
    h = jax.nn.dot_product_attention(*(h[:, :, i] for i in range(3)))
    h = h.reshape(x.shape)
    return ZeroConv(channels, 1, dtype=self.dtype, name="output")(h)


class ResidualBlock(nn.Module):
  """Two convolutions around a shortcut, the embedding between them.

  Attributes:
    features: Channels of the output.
    attention: Whether self-attention follows.
    dropout: Share of the activations dropped before the second convolution.
    train: Whether dropout is on.
    dtype: Type to compute in.
  """

  features: int
  attention: bool
  dropout: float
  train: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
    conv = functools.partial(Conv, self.features, dtype=self.dtype)
    h = nn.silu(_group_norm(x.shape[-1], dtype=self.dtype, name="norm1")(x))
    h = conv(name="conv1")(h)
    modulation = nn.Dense(
      2 * self.features, dtype=self.dtype, name="modulation"
    )(emb)
    scale, shift = jnp.split(modulation[:, None, None], 2, axis=-1)
    h = _group_norm(
      self.features,
      use_bias=False,
      use_scale=False,
      dtype=self.dtype,
    )(h)
    h = nn.silu(h * (1 + scale) + shift)
    h = nn.Dropout(self.dropout, deterministic=not self.train)(h)
    h = ZeroConv(self.features, dtype=self.dtype, name="conv2")(h)
    if x.shape != h.shape:
      x = conv(1, name="shortcut")(x)
    # Keeps the variance of a sum of two.
    x = (x + h) * math.sqrt(0.5)
    if self.attention:
      h = SelfAttention(dtype=self.dtype, name="attention")(x)
      x = (x + h) * math.sqrt(0.5)
    return x


class UNet(nn.Module):
  """A convolutional network over several resolutions, for 8x8 to 64x64 pixels.

  Residual blocks lead from the full resolution down, halving the sides from
  level to level, and up again, where every block also sees a map of the way
  down. Between levels maps are merely averaged or repeated: the next block has
  a convolution, and one in between would cost a sixth more.

  The defaults are the 35 million parameters that Ho et al. use for 32x32x3.

  Attributes:
    num_classes: Number of classes, the null class not counted.
    width: Channels at full resolution; the embedding has four times as many.
    multipliers: Channels of each level, in multiples of ``width``; each level
      has half the side of the one before.
    blocks: Residual blocks of a level on the way down; one more on the way up.
    attention: Sides in pixels, the longer one counts, at which blocks have
      self-attention; the middle has it anyway.
    dropout: Share of the activations dropped inside a block, in training.
    conditions: Numbers about the augmentation; 0: none.
    dtype: Type to compute in, "float32" or "bfloat16".
  """

  num_classes: int
  width: int = 128
  multipliers: Sequence[int] = (1, 2, 2, 2)
  blocks: int = 2
  attention: Sequence[int] = (16,)
  dropout: float = 0.1
  conditions: int = 0
  dtype: str = "float32"

  def __post_init__(self) -> None:
    # JSON gives lists back, and modules must be hashable.
    self.multipliers = tuple(self.multipliers)
    self.attention = tuple(self.attention)
    super().__post_init__()

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    c_noise: jax.Array,
    labels: jax.Array,
    augmentation: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    _check_levels(self.multipliers, images.shape[1:3])
    dtype = _compute_type(self.dtype)
    emb = _embed(self, c_noise, labels, augmentation, 4 * self.width)

    def block(x, multiplier, name, attention):
      return ResidualBlock(
        features=multiplier * self.width,
        attention=attention,
        dropout=self.dropout,
        train=train,
        dtype=dtype,
        name=name,
      )(x, emb)

    x = Conv(self.width, dtype=dtype, name="input")(images)
    skips = [x]
    levels = list(enumerate(self.multipliers))
    side = max(images.shape[1:3])
    attends = [side // 2**level in self.attention for level, _ in levels]
    for level, multiplier in levels:
      if level:
        x = _halve(x)
        skips.append(x)
      for i in range(self.blocks):
        x = block(x, multiplier, f"down{level}_block{i}", attends[level])
        skips.append(x)

    for i in range(2):
      x = block(x, multiplier, f"middle_block{i}", attention=i == 0)

    for level, multiplier in reversed(levels):
      for i in range(self.blocks + 1):
        x = jnp.concatenate([x, skips.pop()], axis=-1)
        x = block(x, multiplier, f"up{level}_block{i}", attends[level])
      if level:
        x = _double(x)

    x = nn.silu(_group_norm(x.shape[-1], dtype=dtype, name="output_norm")(x))
    x = ZeroConv(images.shape[-1], dtype=dtype, name="output")(x)
    return x.astype(jnp.float32)


def _check_levels(multipliers: tuple[int, ...], sides: Sequence[int]) -> None:
  """Raises UserError if the sides cannot be halved from level to level."""
  if any(not isinstance(m, int) or m < 1 for m in multipliers):
    raise UserError(
      f"config.model.multipliers={multipliers} must be positive whole numbers."
    )
  if not multipliers:
    raise UserError(
      "config.model.multipliers=() gives the network no level; give at least "
      "one, such as (1,)."
    )
  common = math.gcd(*sides)
  # Its largest divisor that is a power of two says how often it can be halved.
  most = (common & -common).bit_length()
  if len(multipliers) > most:
    raise UserError(
      f"config.model.multipliers={multipliers} halves the sides "
      f"{len(multipliers) - 1} times, which images of {sides[0]}x{sides[1]} "
      f"pixels do not allow; give at most {most}."
    )


# config.model.name -> network(num_classes=..., **other fields of config.model).
NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
  "residual_mlp": ResidualMLP,
  "unet": UNet,
}
