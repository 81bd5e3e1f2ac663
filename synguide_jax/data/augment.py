"""Augmentation on the device, inside the jitted step."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from synguide_jax.data import randaugment
from synguide_jax.errors import check_known, UserError

CROPS = ("random", "random_resized")

# Width over height of a random resized crop, from and to.
_ASPECTS = (3 / 4, 4 / 3)


def to_float(images: jax.Array) -> jax.Array:
  """Maps uint8 images to float32 in [0, 1]."""
  return images.astype(jnp.float32) / 255.0


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Random crop and random flip, the paper's only ones, and RandAugment.

  Attributes:
    size: Side of the crop in pixels.
    padding: Zeros added on every side before a random crop, in pixels.
    flip: Whether an image is mirrored left to right, with probability 1/2.
    crop: ``"random"``, a window of ``size`` px anywhere in the image, or
      ``"random_resized"``, one of random area and aspect ratio, resized.
    min_crop_area: Smallest area of the latter, as a share of the image.
    randaugment_layers: Operations of RandAugment an image goes through.
    randaugment_magnitude: Their strength, 0 to 30.
  """

  size: int
  padding: int = 0
  flip: bool = False
  crop: str = "random"
  min_crop_area: float = 0.08
  randaugment_layers: int = 0
  randaugment_magnitude: int = 6

  @classmethod
  def from_config(cls, data: Any) -> "Augmentation":
    """Builds it from the section ``data`` of a config."""
    return cls(
      size=data.image_size,
      padding=data.padding,
      flip=data.flip,
      crop=data.crop,
      min_crop_area=data.min_crop_area,
      randaugment_layers=data.randaugment_layers,
      randaugment_magnitude=data.randaugment_magnitude,
    )

  def check(self, stored: int) -> None:
    """Raises UserError where a field is wrong.

    Args:
      stored: Side of the images that are cropped, pixels.
    """
    check_known("data.crop", self.crop, CROPS)
    if self.padding < 0 or not 0 < self.size <= stored:
      raise UserError(
        f"Cannot crop {self.size} px out of {stored} px images with padding "
        f"{self.padding}; check data.image_size, data.store_size and "
        "data.padding."
      )
    if self.crop == "random_resized" and self.padding:
      raise UserError(
        f"data.padding={self.padding} is for data.crop='random' only; set it "
        "to 0 for 'random_resized'."
      )
    if not 0 < self.min_crop_area <= 1:
      raise UserError(
        f"data.min_crop_area={self.min_crop_area} must be a share of the "
        "image's area, above 0 and at most 1."
      )
    if self.randaugment_layers < 0:
      raise UserError(
        f"data.randaugment_layers={self.randaugment_layers} must be a number "
        "of operations, 0 for none."
      )
    if not 0 <= self.randaugment_magnitude <= randaugment.MAX_MAGNITUDE:
      raise UserError(
        f"data.randaugment_magnitude={self.randaugment_magnitude} must be "
        f"from 0 to {randaugment.MAX_MAGNITUDE}."
      )

  def train(self, key: jax.Array, images: jax.Array) -> jax.Array:
    """Crops, flips and changes at random, every image by itself.

    Args:
      key: A PRNG key.
      images: uint8 ``[B, H, W, C]``.

    Returns:
      Images in [0, 1], float32 ``[B, size, size, C]``.
    """
    crop_key, flip_key = jax.random.split(key)
    if self.crop == "random_resized":
      images = self._random_resized_crop(crop_key, images)
    else:
      images = to_float(self._random_crop(crop_key, images))
    if self.flip:
      mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
      images = jnp.where(mirrored, images[:, :, ::-1], images)
    if not self.randaugment_layers:
      return images
    return randaugment.rand_augment(
      # A third key that leaves crops and flips as they are without it.
      jax.random.fold_in(key, 2),
      images,
      layers=self.randaugment_layers,
      magnitude=self.randaugment_magnitude,
    )

  def evaluate(self, images: jax.Array) -> jax.Array:
    """Crops the centre: uint8 ``[B, H, W, C]`` to float32 in [0, 1]."""
    top, left = ((side - self.size) // 2 for side in images.shape[1:3])
    return to_float(images[:, top : top + self.size, left : left + self.size])

  def _random_crop(self, key: jax.Array, images: jax.Array) -> jax.Array:
    """Cuts windows out of the padded images."""
    count, height, width, channels = images.shape
    rows, columns = (
      side + 2 * self.padding - self.size for side in (height, width)
    )
    if not rows and not columns:
      return images
    pad = (self.padding, self.padding)
    images = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
    corners = jax.random.randint(
      key, (count, 2), 0, jnp.array([rows + 1, columns + 1])
    )
    return jax.vmap(
      lambda image, corner: jax.lax.dynamic_slice(
        image, (*corner, 0), (self.size, self.size, channels)
      )
    )(images, corners)

  def _random_resized_crop(
    self, key: jax.Array, images: jax.Array
  ) -> jax.Array:
    """Cuts windows of random area and aspect ratio and resizes them.

    The area is uniform, and the aspect ratio log-uniform in what of 3/4 to 4/3
    fits into the image with that area (Szegedy et al., 2015). Windows do not
    snap to pixels.
    """
    count, height, width, channels = images.shape
    area_key, aspect_key, corner_key = jax.random.split(key, 3)
    area = jax.random.uniform(
      area_key, count, minval=self.min_crop_area, maxval=1
    )
    # A window is no wider than the image, and no higher.
    square = math.log(width / height)
    fits = square + jnp.log(area), square - jnp.log(area)
    low, high = (jnp.clip(math.log(aspect), *fits) for aspect in _ASPECTS)
    aspect = jnp.exp(
      jax.random.uniform(aspect_key, count, minval=low, maxval=high)
    )
    pixels = area * height * width
    sides = jnp.sqrt(jnp.stack([pixels / aspect, pixels * aspect], -1))
    room = jnp.array([height, width]) - sides
    corners = room * jax.random.uniform(corner_key, (count, 2))

    def resize(image, corner, sides):
      scale = self.size / sides
      return jax.image.scale_and_translate(
        image,
        (self.size, self.size, channels),
        (0, 1),
        scale,
        -corner * scale,
        "linear",
      )

    return jnp.clip(jax.vmap(resize)(to_float(images), corners, sides), 0, 1)
