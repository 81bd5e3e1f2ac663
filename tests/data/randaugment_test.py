"""RandAugment: operations are Pillow's, draws are independent and repeat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance, ImageOps
import pytest

from synguide_jax.data.randaugment import (
  apply_operations,
  OPERATIONS,
  rand_augment,
)

HEIGHT, WIDTH = 24, 29
KEY = jax.random.key(0)
GREY = 128
apply = jax.jit(apply_operations, static_argnames="magnitude")
augment = jax.jit(rand_augment, static_argnames=("layers", "magnitude"))


def make_images(channels, count=3):
  """Noise over a ramp that leaves out the darkest and the brightest values."""
  rng = np.random.default_rng(channels)
  shape = (count, HEIGHT, WIDTH, channels)
  ramp = np.linspace(20, 140, WIDTH)[:, None]
  return (ramp + rng.integers(0, 90, shape)).astype(np.uint8)


def affine(*coefficients):
  def transform(im):
    fill = GREY if im.mode == "L" else (GREY,) * 3
    return im.transform(
      im.size,
      Image.Transform.AFFINE,
      coefficients,
      Image.Resampling.BILINEAR,
      fillcolor=fill,
    )

  return transform


def rotate(degrees):
  def transform(im):
    fill = GREY if im.mode == "L" else (GREY,) * 3
    return im.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=fill)

  return transform


def enhance(kind, factor):
  return lambda im: kind(im).enhance(factor)


# What Pillow does for the sign and the magnitude, and how far it may be off, in
# units of 1/255: it cuts off results where we do not round at all, and the
# degenerate image of an enhancement is rounded too.
CASES = [
  ("identity", 1, 15, lambda im: im, 0),
  ("autocontrast", 1, 15, ImageOps.autocontrast, 1),
  ("equalize", 1, 15, ImageOps.equalize, 0),
  ("rotate", 1, 30, rotate(30), 1),
  ("rotate", -1, 10, rotate(-10), 1),
  ("solarize", 1, 0, lambda im: im, 0),
  ("solarize", 1, 6, lambda im: ImageOps.solarize(im, 204.8), 0),
  ("solarize", 1, 15, lambda im: ImageOps.solarize(im, 128), 0),
  ("solarize", 1, 30, ImageOps.invert, 0),
  ("posterize", 1, 0, lambda im: im, 0),
  ("posterize", 1, 6, lambda im: ImageOps.posterize(im, 7), 0),
  ("posterize", 1, 30, lambda im: ImageOps.posterize(im, 4), 0),
  ("color", 1, 30, enhance(ImageEnhance.Color, 1.9), 1.5),
  ("color", -1, 10, enhance(ImageEnhance.Color, 0.7), 1.5),
  ("contrast", 1, 30, enhance(ImageEnhance.Contrast, 1.9), 1.5),
  ("contrast", -1, 10, enhance(ImageEnhance.Contrast, 0.7), 1.5),
  ("brightness", 1, 30, enhance(ImageEnhance.Brightness, 1.9), 1),
  ("brightness", -1, 10, enhance(ImageEnhance.Brightness, 0.7), 1),
  ("sharpness", 1, 30, enhance(ImageEnhance.Sharpness, 1.9), 1.5),
  ("sharpness", -1, 10, enhance(ImageEnhance.Sharpness, 0.7), 1.5),
  ("shear_x", 1, 30, affine(1, 0.3, 0, 0, 1, 0), 1),
  ("shear_x", -1, 10, affine(1, -0.1, 0, 0, 1, 0), 1),
  ("shear_y", 1, 30, affine(1, 0, 0, 0.3, 1, 0), 1),
  ("translate_x", 1, 30, affine(1, 0, 0.45 * WIDTH, 0, 1, 0), 1),
  ("translate_x", -1, 10, affine(1, 0, -0.15 * WIDTH, 0, 1, 0), 1),
  ("translate_y", 1, 30, affine(1, 0, 0, 0, 1, 0.45 * HEIGHT), 1),
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0, 6, 10, 15, 30])
def test_operations_are_those_of_pillow(magnitude, channels):
  images = make_images(channels)
  cases = [case for case in CASES if case[2] == magnitude]
  for name, sign, _, pillow, tolerance in cases:
    count = len(images)
    actual = apply(
      images / np.float32(255),
      np.full(count, OPERATIONS.index(name)),
      np.full(count, sign, np.float32),
      magnitude=magnitude,
    )
    expected = [
      pillow(Image.fromarray(im.squeeze(-1) if channels == 1 else im))
      for im in images
    ]
    expected = np.reshape([np.asarray(im) for im in expected], images.shape)
    np.testing.assert_allclose(
      np.asarray(actual) * 255,
      expected,
      rtol=0,
      atol=tolerance + 1e-3,
      err_msg=f"{name} {sign} {magnitude}",
    )


def test_every_operation_is_compared():
  assert {case[0] for case in CASES} == set(OPERATIONS)


def test_images_of_a_batch_take_operations_of_their_own():
  images = make_images(3, 2 * len(OPERATIONS)) / np.float32(255)
  choices = np.tile(np.arange(len(OPERATIONS)), 2)
  signs = np.repeat(np.float32([1, -1]), len(OPERATIONS))
  together = apply(images, choices, signs, magnitude=15)
  for i, choice in enumerate(choices):
    alone = apply(
      images[i : i + 1], choice[None], signs[i : i + 1], magnitude=15
    )
    np.testing.assert_allclose(together[i], alone[0], rtol=0, atol=1e-6)


def test_a_channel_of_one_value_stays_as_it_is():
  images = np.full((2, HEIGHT, WIDTH, 3), [0.2, 0.4, 0.8], np.float32)
  choices = [OPERATIONS.index(name) for name in ("autocontrast", "equalize")]
  actual = apply(images, np.array(choices), np.ones(2, "f"), magnitude=15)
  np.testing.assert_allclose(actual, images, atol=1e-6)


def test_levels_are_the_nearest_ones():
  levels = make_images(1, 1)
  choices = np.array([OPERATIONS.index("posterize")])
  for distance in (-0.4, 0.4):
    images = ((levels + distance) / 255).astype(np.float32)
    actual = apply(images, choices, np.ones(1, "f"), magnitude=0)
    np.testing.assert_allclose(actual * 255, levels, atol=1e-3)


def test_no_layer_is_the_identity():
  images = make_images(3) / np.float32(255)
  actual = augment(KEY, images, layers=0, magnitude=30)
  np.testing.assert_array_equal(actual, images)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_images(channels):
  images = make_images(channels, 64) / np.float32(255)
  actual = augment(KEY, images, layers=3, magnitude=30)
  assert actual.shape == images.shape and actual.dtype == np.float32
  assert 0 <= actual.min() and actual.max() <= 1


def test_the_key_decides():
  images = make_images(3, 16) / np.float32(255)
  first, again = (augment(KEY, images, layers=2, magnitude=9) for _ in "ab")
  np.testing.assert_array_equal(first, again)
  other = augment(jax.random.key(1), images, layers=2, magnitude=9)
  assert np.any(first != other)


def test_operations_and_signs_are_drawn_for_every_image():
  # One image many times: what comes out says what was drawn.
  count = 1400
  image = make_images(3, 1) / np.float32(255)
  signs = np.repeat(np.float32([1, -1]), len(OPERATIONS))
  choices = np.tile(np.arange(len(OPERATIONS)), 2)
  known = apply(np.repeat(image, len(choices), 0), choices, signs, magnitude=15)
  drawn = augment(KEY, np.repeat(image, count, 0), layers=1, magnitude=15)
  nearest = jax.lax.map(
    lambda im: jnp.argmin(jnp.abs(known - im).max((1, 2, 3))), drawn
  )
  distance = jnp.abs(known[nearest] - drawn).max()
  np.testing.assert_allclose(distance, 0, atol=1e-5)
  counts = np.bincount(choices[nearest], minlength=len(OPERATIONS))
  # Binomial(1400, 1/14): 100, standard deviation 9.6.
  assert np.all(np.abs(counts - 100) < 48)
  signed = [OPERATIONS.index(n) for n in ("rotate", "shear_x", "brightness")]
  for choice in signed:
    share = np.mean(signs[nearest][choices[nearest] == choice] > 0)
    assert 0.25 < share < 0.75


def test_layers_draw_by_themselves():
  # One layer makes at most 28 different images of one. Were the second to draw
  # the same again, two would too.
  images = make_images(3, 1) / np.float32(255)
  images = np.repeat(images, 300, 0)
  once = augment(KEY, images, layers=1, magnitude=15)
  distinct = len(np.unique(np.round(np.asarray(once), 4), axis=0))
  twice = augment(KEY, images, layers=2, magnitude=15)
  assert len(np.unique(np.round(np.asarray(twice), 4), axis=0)) > 3 * distinct


def test_compiles_once_and_over_runs():
  compiled = jax.jit(
    jax.vmap(functools.partial(rand_augment, layers=2, magnitude=6))
  )
  images = np.stack([make_images(3)] * 2) / np.float32(255)
  for seed in range(3):
    keys = jax.random.split(jax.random.key(seed), 2)
    both = compiled(keys, images)
  assert compiled._cache_size() == 1
  for run in range(2):
    alone = augment(keys[run], images[run], layers=2, magnitude=6)
    np.testing.assert_allclose(both[run], alone, atol=1e-5)
