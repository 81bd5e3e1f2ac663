"""RandAugment on the device: pure functions of a key and a batch of images."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

OPERATIONS = (
  "identity",
  "autocontrast",
  "equalize",
  "rotate",
  "solarize",
  "color",
  "posterize",
  "contrast",
  "brightness",
  "sharpness",
  "shear_x",
  "shear_y",
  "translate_x",
  "translate_y",
)
MAX_MAGNITUDE = 30

# What shows where a warped image ends: mid-grey.
_FILL = 0.5
# Luma of ITU-R BT.601, which Pillow uses.
_LUMA = (0.299, 0.587, 0.114)


def rand_augment(
  key: jax.Array, images: jax.Array, *, layers: int, magnitude: int
) -> jax.Array:
  """Applies random operations to every image, in a row.

  Each of the ``layers`` operations is drawn from `OPERATIONS`, and the sign of
  its strength too, for every image by itself. With m = ``magnitude`` / 30 they
  rotate by 30 m degrees, shear by 0.3 m, translate by 0.45 m of the width or of
  the height, enhance (color, contrast, brightness, sharpness) by 1 +- 0.9 m,
  invert the levels, 0 to 255, from 256 (1 - m) on (solarize), and keep 8 - 4 m
  bits, rounded (posterize). Warps are bilinear and leave mid-grey behind.

  All operations are computed for the whole batch, and each image picks its own:
  an accelerator cannot branch image by image.

  Args:
    key: A PRNG key.
    images: Images in [0, 1], ``[B, H, W, C]`` of 1 or 3 channels.
    layers: Operations an image goes through; 0: none.
    magnitude: Their strength, 0 to 30.

  Returns:
    Images in [0, 1], ``[B, H, W, C]``.

  References:
    Cubuk et al., `RandAugment: Practical automated data augmentation with a
    reduced search space <https://arxiv.org/abs/1909.13719>`_, 2020
  """
  if not layers:
    return images
  choice_key, sign_key = jax.random.split(key)
  drawn = (layers, len(images))
  choices = jax.random.randint(choice_key, drawn, 0, len(OPERATIONS))
  signs = jax.random.rademacher(sign_key, drawn, images.dtype)

  def layer(images, of_images):
    return apply_operations(images, *of_images, magnitude=magnitude), None

  # A scan compiles the operations once, not once a layer.
  return jax.lax.scan(layer, images, (choices, signs))[0]


def apply_operations(
  images: jax.Array, choices: jax.Array, signs: jax.Array, *, magnitude: int
) -> jax.Array:
  """Applies one operation to every image.

  Args:
    images: Images in [0, 1], ``[B, H, W, C]`` of 1 or 3 channels.
    choices: Indices in `OPERATIONS`, integers ``[B]``.
    signs: Signs of the strengths, -1 or 1, ``[B]``; of no effect where an
      operation has no direction.
    magnitude: Strength of the operations, 0 to 30.

  Returns:
    Images in [0, 1], ``[B, H, W, C]``.
  """
  strength = magnitude / MAX_MAGNITUDE
  signed = signs * strength
  levels = jnp.rint(images * 255).astype(jnp.int32)
  grey = _grey(images)
  # Enhanced is what lies on the line from a degenerate image to the image.
  enhanced = {
    "color": grey,
    "contrast": grey.mean((1, 2, 3), keepdims=True),
    "brightness": 0.0,
    "sharpness": _smooth(images),
  }
  factor = (1 + 0.9 * signed)[:, None, None, None]
  results = {
    "autocontrast": _autocontrast(images),
    "equalize": _equalize(levels) / 255,
    "solarize": jnp.where(levels < 256 * (1 - strength), images, 1 - images),
    "posterize": _posterize(levels, 8 - round(4 * strength)) / 255,
  } | {
    name: degenerate + factor * (images - degenerate)
    for name, degenerate in enhanced.items()
  }
  # Leaves an image alone that another operation, or none, is to change.
  changed = _warp(images, choices, signed)
  for name, result in results.items():
    chosen = choices == OPERATIONS.index(name)
    changed = jnp.where(chosen[:, None, None, None], result, changed)
  return jnp.clip(changed, 0, 1)


def _warp(
  images: jax.Array, choices: jax.Array, signed: jax.Array
) -> jax.Array:
  """Rotates about the centre, shears along an edge, or translates."""
  _, height, width, _ = images.shape

  def amount(name: str, largest: float) -> jax.Array:
    chosen = choices == OPERATIONS.index(name)
    return jnp.where(chosen, largest * signed, 0)

  def warp(image, angle, shear_x, shear_y, translate_x, translate_y):
    # Of the pixels' centres; y and x say where in the image they are from.
    y, x = (jnp.arange(side) + 0.5 for side in (height, width))
    y, x = jnp.meshgrid(y, x, indexing="ij")
    dy, dx = y - height / 2, x - width / 2
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y, x = (
      cos * dy + sin * dx + height / 2 + shear_y * x + translate_y,
      cos * dx - sin * dy + width / 2 + shear_x * y + translate_x,
    )
    inside = (0 <= y) & (y < height) & (0 <= x) & (x < width)
    warped = jax.vmap(
      lambda channel: map_coordinates(
        channel, (y - 0.5, x - 0.5), order=1, mode="nearest"
      ),
      in_axes=-1,
      out_axes=-1,
    )(image)
    return jnp.where(inside[..., None], warped, _FILL)

  return jax.vmap(warp)(
    images,
    amount("rotate", math.radians(30)),
    amount("shear_x", 0.3),
    amount("shear_y", 0.3),
    amount("translate_x", 0.45 * width),
    amount("translate_y", 0.45 * height),
  )


def _grey(images: jax.Array) -> jax.Array:
  """Luma, ``[B, H, W, 1]``."""
  if images.shape[-1] == 1:
    return images
  return sum(
    share * images[..., channel : channel + 1]
    for channel, share in enumerate(_LUMA)
  )


def _smooth(images: jax.Array) -> jax.Array:
  """3x3 mean in which the centre counts five times; keeps the border."""
  inner = images[:, 1:-1, 1:-1]
  rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
  box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
  return images.at[:, 1:-1, 1:-1].set((box + 4 * inner) / 13)


def _autocontrast(images: jax.Array) -> jax.Array:
  """Stretches every channel over [0, 1]."""
  low = images.min((1, 2), keepdims=True)
  high = images.max((1, 2), keepdims=True)
  return jnp.where(high > low, (images - low) / (high - low), images)


def _posterize(levels: jax.Array, bits: int) -> jax.Array:
  """Keeps the highest bits."""
  return levels & (256 - (1 << (8 - bits)))


def _equalize(levels: jax.Array) -> jax.Array:
  """Flattens the histogram of every channel, in Pillow's integer arithmetic.

  Images of too few pixels for that, below about 16 x 16, stay as they are.
  """

  def of_channel(levels):
    counts = jnp.bincount(levels.ravel(), length=256)
    below = jnp.cumsum(counts) - counts
    step = (levels.size - counts[levels.max()]) // 255
    table = (step // 2 + below) // jnp.maximum(step, 1)
    equalized = jnp.minimum(table, 255)[levels]
    return jnp.where(step > 0, equalized, levels)

  over_channels = jax.vmap(of_channel, in_axes=-1, out_axes=-1)
  return jax.vmap(over_channels)(levels)
