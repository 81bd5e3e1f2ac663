"""Augmentation: crops are crops, flips are flips, evaluation is exact."""

import jax
import numpy as np
import pytest

from synguide_jax.data.augment import Augmentation
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
