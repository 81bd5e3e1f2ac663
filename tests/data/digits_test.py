"""Tests of synguide_jax.data.digits."""

import numpy as np
from sklearn.datasets import load_digits

from synguide_jax.data import digits


def test_pixels_are_those_of_scikit_learn():
  images, labels = zip(*digits.examples(), strict=True)
  images = np.stack(images)
  original = load_digits()
  assert images.dtype == np.uint8 and images.shape == (1797, 8, 8, 1)
  # 16 is full ink, and half a step is the most that rounding may add.
  error = images[..., 0] / 255 - original.images / 16
  assert np.abs(error).max() <= 0.5 / 255 + 1e-12
  assert images.min() == 0 and images.max() == 255
  assert labels == tuple(original.target)
  assert digits.CLASS_NAMES == tuple(map(str, original.target_names))
