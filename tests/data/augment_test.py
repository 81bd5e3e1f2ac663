"""Augmentation: crops are crops, flips are flips, evaluation is exact."""

import dataclasses

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from synguide_jax.data.augment import Augmentation
from synguide_jax.data.randaugment import rand_augment
from synguide_jax.errors import UserError

IMAGES = (
  np.random.default_rng(0).integers(1, 256, (64, 6, 6, 3)).astype(np.uint8)
)
KEY = jax.random.key(0)


def test_nothing_to_do_only_scales():
  images = Augmentation(6).train(KEY, IMAGES)
  np.testing.assert_allclose(images, IMAGES / 255.0, rtol=1e-6)


def test_every_crop_is_a_window_of_the_padded_image():
  padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
  crops = np.rint(
    np.asarray(Augmentation(6, padding=1).train(KEY, IMAGES)) * 255
  )
  offsets = set()
  for image, crop in zip(padded, crops, strict=True):
    found = [
      (i, j)
      for i in range(3)
      for j in range(3)
      if np.array_equal(image[i : i + 6, j : j + 6], crop)
    ]
    assert len(found) == 1
    offsets |= set(found)
  assert len(offsets) == 9


def test_half_of_the_images_are_mirrored():
  images = np.rint(
    np.asarray(Augmentation(6, flip=True).train(KEY, IMAGES)) * 255
  )
  same = (images == IMAGES).all((1, 2, 3))
  mirrored = (images == IMAGES[:, :, ::-1]).all((1, 2, 3))
  assert (same ^ mirrored).all()
  # Binomial(64, 0.5): four standard deviations are 16.
  assert 16 <= mirrored.sum() <= 48


def test_evaluation_crops_the_centre():
  images = Augmentation(4).evaluate(IMAGES)
  np.testing.assert_allclose(images, IMAGES[:, 1:5, 1:5] / 255.0, rtol=1e-6)


def test_too_large_a_crop_names_the_fields():
  Augmentation(6).check(6)
  with pytest.raises(UserError, match="data.image_size"):
    Augmentation(7).check(6)


def windows(augmentation, height, width, count):
  """Reads the windows of random resized crops off the coordinates of pixels.

  Returns:
    First rows and columns, and heights and widths: ``[count, 2]`` each, pixels.
  """
  coordinates = np.stack(np.mgrid[:height, :width], -1)[None].repeat(count, 0)
  assert coordinates.max() < 256
  crops = jax.jit(augmentation.train)(KEY, coordinates.astype(np.uint8))
  crops = np.asarray(crops) * 255
  rows, columns = crops[:, :, 0, 0], crops[:, 0, :, 1]
  # Enlarged, all but the pixels at the edges are between two of the image.
  first, last = 2, augmentation.size - 3
  starts = np.stack([rows[:, first], columns[:, first]], -1)
  ends = np.stack([rows[:, last], columns[:, last]], -1)
  step = (ends - starts) / (last - first)
  return starts + 0.5 - (first + 0.5) * step, augmentation.size * step


@pytest.mark.parametrize("width", [32, 48])
def test_random_resized_windows_have_the_areas_and_aspects_asked_for(width):
  height, count = 32, 500
  augmentation = Augmentation(48, crop="random_resized", min_crop_area=0.2)
  corners, sides = windows(augmentation, height, width, count)
  tolerance = 1e-3
  assert corners.min() > -tolerance
  assert np.all(corners + sides < np.array([height, width]) + tolerance)
  area = sides.prod(1) / (height * width)
  assert 0.2 - tolerance < area.min() and area.max() < 1 + tolerance
  # Uniform, of 500: the mean's standard deviation is 0.013.
  assert abs(((area - 0.2) / 0.8).mean() - 0.5) < 0.065
  aspect = sides[:, 1] / sides[:, 0]
  # All of 3/4 to 4/3 fits below an area of 3/4 (of 1/2, in the wide image), and
  # its logarithm is uniform.
  free = area < 3 / 4 * height / width
  assert 3 / 4 - tolerance < aspect.min()
  assert aspect[free].max() < 4 / 3 + tolerance
  share = np.log(aspect[free] / 0.75) / np.log(16 / 9)
  assert share.min() < 0.05 and share.max() > 0.95
  assert abs(share.mean() - 0.5) < 5 * 0.29 / free.sum() ** 0.5
  place = corners / (np.array([height, width]) - sides).clip(1e-3)
  assert np.all(np.abs(place[free].mean(0) - 0.5) < 0.1)
  if width == height:
    assert aspect.max() < 4 / 3 + tolerance


@pytest.mark.parametrize("shape", [(24, 24), (24, 40), (40, 24)])
def test_the_largest_random_resized_window_is_the_whole_image(shape):
  images = np.random.default_rng(0).integers(0, 256, (4, *shape, 3), np.uint8)
  augmentation = Augmentation(16, crop="random_resized", min_crop_area=1.0)
  expected = jax.image.resize(images / 255.0, (4, 16, 16, 3), "linear")
  actual = jax.jit(augmentation.train)(KEY, images)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_a_constant_image_has_constant_random_resized_crops():
  images = np.full((32, 12, 12, 1), 204, np.uint8)
  train = jax.jit(Augmentation(8, crop="random_resized").train)
  crops = train(KEY, images)
  np.testing.assert_allclose(crops, 0.8, atol=1e-6)


def test_random_resized_crops_stay_images_and_depend_on_the_key():
  train = jax.jit(Augmentation(5, flip=True, crop="random_resized").train)
  images = np.where(IMAGES > 128, 255, 0).astype(np.uint8)
  crops = train(KEY, images)
  assert crops.shape == (64, 5, 5, 3) and crops.dtype == np.float32
  assert 0 <= crops.min() and crops.max() <= 1
  np.testing.assert_array_equal(crops, train(KEY, images))
  others = train(jax.random.key(1), images)
  assert np.all(np.any(crops != others, (1, 2, 3)))


def test_randaugment_comes_after_crop_and_flip():
  plain = Augmentation(6, padding=1, flip=True)
  augmentation = dataclasses.replace(
    plain, randaugment_layers=2, randaugment_magnitude=9
  )
  images = plain.train(KEY, jax.numpy.asarray(IMAGES))
  expected = rand_augment(
    jax.random.fold_in(KEY, 2), images, layers=2, magnitude=9
  )
  actual = jax.jit(augmentation.train)(KEY, IMAGES)
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  assert np.mean(np.any(actual != images, (1, 2, 3))) > 0.5


def test_evaluation_ignores_what_is_random():
  augmentation = Augmentation(
    4, flip=True, crop="random_resized", randaugment_layers=2
  )
  np.testing.assert_array_equal(
    augmentation.evaluate(IMAGES), Augmentation(4).evaluate(IMAGES)
  )


def test_the_fields_of_a_config_are_those_of_the_augmentation():
  fields = {
    "padding": 2,
    "flip": True,
    "crop": "random_resized",
    "min_crop_area": 0.3,
    "randaugment_layers": 1,
    "randaugment_magnitude": 7,
  }
  data = ConfigDict({"image_size": 5, **fields})
  assert Augmentation.from_config(data) == Augmentation(size=5, **fields)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"crop": "centre"}, "data.crop='centre' is unknown.*random_resized"),
    ({"crop": "random_resized", "padding": 1}, "data.padding=1 is for"),
    ({"padding": -1}, "data.padding"),
    ({"min_crop_area": 0.0}, "data.min_crop_area=0.0"),
    ({"min_crop_area": 1.1}, "data.min_crop_area=1.1"),
    ({"min_crop_area": float("nan")}, "data.min_crop_area=nan"),
    ({"randaugment_layers": -1}, "data.randaugment_layers=-1"),
    ({"randaugment_magnitude": 31}, "data.randaugment_magnitude=31"),
    ({"randaugment_magnitude": -1}, "data.randaugment_magnitude=-1"),
  ],
)
def test_wrong_fields_are_named(fields, message):
  with pytest.raises(UserError, match=message):
    Augmentation(6, **fields).check(6)
