"""Augmentation on the device, inside the jitted step."""

import dataclasses

import jax
import jax.numpy as jnp

from synguide_jax.errors import UserError


def to_float(images: jax.Array) -> jax.Array:
  """Maps uint8 images to float32 in [0, 1]."""
  return images.astype(jnp.float32) / 255.0


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Random crop and random flip, the paper's only augmentations.

  Attributes:
    size: Side of the crop in pixels.
    padding: Zeros added on every side before a random crop, in pixels.
    flip: Whether an image is mirrored left to right, with probability 1/2.
  """

  size: int
  padding: int = 0
  flip: bool = False

  def check(self, stored: int) -> None:
    """Raises UserError unless images of ``stored`` x ``stored`` px suffice."""
    if self.padding < 0 or not 0 < self.size <= stored:
      raise UserError(
        f"Cannot crop {self.size} px out of {stored} px images with padding "
        f"{self.padding}; check data.image_size, data.store_size and "
        "data.padding."
      )

  def train(self, key: jax.Array, images: jax.Array) -> jax.Array:
    """Crops and flips at random, every image by itself.

    Args:
      key: A PRNG key.
      images: uint8 ``[B, H, W, C]``.

    Returns:
      Images in [0, 1], float32 ``[B, size, size, C]``.
    """
    crop_key, flip_key = jax.random.split(key)
    count, height, width, channels = images.shape
    rows, columns = (
      side + 2 * self.padding - self.size for side in (height, width)
    )
    if rows or columns:
      pad = (self.padding, self.padding)
      images = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
      corners = jax.random.randint(
        crop_key, (count, 2), 0, jnp.array([rows + 1, columns + 1])
      )
      images = jax.vmap(
        lambda image, corner: jax.lax.dynamic_slice(
          image, (*corner, 0), (self.size, self.size, channels)
        )
      )(images, corners)
    if self.flip:
      mirrored = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
      images = jnp.where(mirrored, images[:, :, ::-1], images)
    return to_float(images)

  def evaluate(self, images: jax.Array) -> jax.Array:
    """Crops the centre: uint8 ``[B, H, W, C]`` to float32 in [0, 1]."""
    top, left = ((side - self.size) // 2 for side in images.shape[1:3])
    return to_float(images[:, top : top + self.size, left : left + self.size])
