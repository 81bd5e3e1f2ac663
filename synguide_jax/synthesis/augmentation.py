r"""Non-leaky augmentation: what a diffusion model of a small set trains on.

A generator that sees few images soon knows them by heart. Flipping, scaling,
rotating, stretching and shifting them makes more of them, but a generator that
learns from such images makes such images: the augmentation leaks. So the
network is told, in :data:`CONDITIONS` numbers, what was done to each image.
All of them are 0 for an image that was left alone, and those zeros are what it
is told when it samples::

  images, conditions = augment(key, images, probability=0.12)
  output = network(noisy(images), sigma, labels, conditions)

References:
  Karras et al., `Elucidating the Design Space of Diffusion-Based Generative
  Models <https://arxiv.org/abs/2206.00364>`_, 2022, Appendix F.2

  Karras et al., `Training Generative Adversarial Networks with Limited Data
  <https://arxiv.org/abs/2006.06676>`_, 2020
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from synguide_jax.errors import UserError

# Numbers about an image's augmentation, see `encode`.
CONDITIONS = 9

# Factor of a scaling, and of a stretching, by one standard deviation.
_FACTOR = 2**0.2
# A shift by one standard deviation, as a share of the side.
_SHIFT = 1 / 8


class Parameters(NamedTuple):
  """What is done to each image, in this order; 0 is nothing.

  Attributes:
    flip_x: 1 mirrors left to right, ``[N]``.
    flip_y: 1 mirrors top to bottom, ``[N]``.
    scale: Magnifies by 2 to the 0.2 times this, ``[N]``.
    rotation: Anticlockwise angle in radians, ``[N]``.
    axis: Direction of the stretching, an angle in radians clockwise from the
      horizontal, ``[N]``.
    stretch: Magnifies along the axis by 2 to the 0.2 times this, and shrinks
      across it by as much, ``[N]``.
    shift_x: Moves to the right, in eighths of the width, ``[N]``.
    shift_y: Moves down, in eighths of the height, ``[N]``.
  """

  flip_x: jax.Array
  flip_y: jax.Array
  scale: jax.Array
  rotation: jax.Array
  axis: jax.Array
  stretch: jax.Array
  shift_x: jax.Array
  shift_y: jax.Array


def draw(key: jax.Array, number: int, probability: float) -> Parameters:
  r"""Draws what is done to each image.

  Each of the six transformations (two flips, scaling, rotation, stretching
  and shifting) is done with the given probability, independently of the
  others. Angles are uniform in :math:`[-\pi, \pi)`; scale, stretch and both
  shifts are standard normal.

  Args:
    key: A PRNG key.
    number: Images :math:`N`.
    probability: Probability of each transformation, above 0 and at most 1. The
      paper has 0.12 for CIFAR-10, 0.15 for faces of 64 px.

  Returns:
    Parameters, float32 ``[N]`` each; those of what is not done are 0.

  Raises:
    ValueError: If ``probability`` is outside (0, 1].

  References:
    Karras et al., 2022, Table 6; there a flip is drawn and tossed once more, so
    that half as many are done.
  """
  if not 0 < probability <= 1:
    raise UserError(
      f"config.diffusion.augment={probability} must be a probability "
      "above 0 and at most 1, for images that are augmented; 0.12 is usual."
    )
  done_key, angle_key, normal_key = jax.random.split(key, 3)
  done = jax.random.bernoulli(done_key, probability, (6, number))
  flip_x, flip_y, scaled, rotated, stretched, shifted = done.astype(jnp.float32)
  rotation, axis = jax.random.uniform(
    angle_key, (2, number), minval=-math.pi, maxval=math.pi
  )
  scale, stretch, shift_x, shift_y = jax.random.normal(normal_key, (4, number))
  return Parameters(
    flip_x=flip_x,
    flip_y=flip_y,
    scale=scaled * scale,
    rotation=rotated * rotation,
    axis=stretched * axis,
    stretch=stretched * stretch,
    shift_x=shifted * shift_x,
    shift_y=shifted * shift_y,
  )


def encode(parameters: Parameters) -> jax.Array:
  r"""What the network is told about each image.

  In this order: ``flip_x``, ``flip_y``, ``scale``,
  :math:`\cos(\text{rotation}) - 1`, :math:`\sin(\text{rotation})`,
  :math:`\text{stretch} \cos(2\,\text{axis})`,
  :math:`\text{stretch} \sin(2\,\text{axis})`, ``shift_x``, ``shift_y``. An
  angle becomes a point on the circle, so that a full turn makes no difference
  (of an axis, half a turn), moved or scaled such that nothing done is 0.
  Changes that differ are told apart.

  Args:
    parameters: What is done to each image, ``[N]`` each.

  Returns:
    Conditions, ``[N, 9]``; a row is zero if and only if its image is left
    alone.

  References:
    Karras et al., 2022, Table 6.
  """
  p = parameters
  return jnp.stack(
    [
      p.flip_x,
      p.flip_y,
      p.scale,
      jnp.cos(p.rotation) - 1,
      jnp.sin(p.rotation),
      p.stretch * jnp.cos(2 * p.axis),
      p.stretch * jnp.sin(2 * p.axis),
      p.shift_x,
      p.shift_y,
    ],
    axis=-1,
  )


def transform(images: jax.Array, parameters: Parameters) -> jax.Array:
  """Flips, scales, rotates, stretches and shifts, about the image's centre.

  All at once, so that an image is interpolated only once: bilinearly, between
  mirror images of itself where it does not reach. That blurs a little, which
  does not leak either, since the network knows the images that are not.

  Args:
    images: Images of any range, ``[N, H, W, C]``, of two pixels or more a side.
    parameters: What is done to each, ``[N]`` each.

  Returns:
    Images of the same shape. Those that nothing is done to are the same bits.
  """
  changed = jnp.any(encode(parameters) != 0, axis=-1)
  warped = jax.vmap(_warp)(images, parameters)
  return jnp.where(changed[:, None, None, None], warped, images)


def augment(
  key: jax.Array, images: jax.Array, probability: float
) -> tuple[jax.Array, jax.Array]:
  """Transforms images at random and says how, for one step of training.

  Args:
    key: A PRNG key.
    images: Images of any range, float32 ``[N, H, W, C]``.
    probability: Probability of each transformation, see :func:`draw`.

  Returns:
    Images of the same shape, and the conditions, float32 ``[N, 9]``, that the
    network is to be told with them, see :func:`encode`.

  Raises:
    ValueError: If ``probability`` is outside (0, 1].
  """
  parameters = draw(key, len(images), probability)
  return transform(images, parameters), encode(parameters)


def _warp(image: jax.Array, parameters: Parameters) -> jax.Array:
  """Transforms one image ``[H, W, C]``; parameters are scalars."""
  p = parameters
  height, width, _ = image.shape
  centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
  y, x = jnp.meshgrid(
    jnp.arange(height) - centre_y, jnp.arange(width) - centre_x, indexing="ij"
  )
  # Where does a pixel come from? Undoes what is done, the last of it first.
  x, y = x - _SHIFT * width * p.shift_x, y - _SHIFT * height * p.shift_y
  x, y = _rotate(x, y, -p.axis)
  x, y = x * _FACTOR**-p.stretch, y * _FACTOR**p.stretch
  x, y = _rotate(x, y, p.axis)
  x, y = _rotate(x, y, p.rotation)
  x, y = x * _FACTOR**-p.scale, y * _FACTOR**-p.scale
  x, y = x * (1 - 2 * p.flip_x), y * (1 - 2 * p.flip_y)
  return jax.vmap(
    lambda channel: map_coordinates(
      channel, (y + centre_y, x + centre_x), order=1, mode="mirror"
    ),
    in_axes=-1,
    out_axes=-1,
  )(image)


def _rotate(
  x: jax.Array, y: jax.Array, angle: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Rotates points from the x axis towards the y axis, which points down."""
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return cos * x - sin * y, sin * x + cos * y
