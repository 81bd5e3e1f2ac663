"""Tests of synguide_jax.data.letters."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from synguide_jax.data import digits, letters


def _stack(examples):
  images, labels = zip(*examples, strict=True)
  return np.stack(images), np.array(labels)


@pytest.fixture(scope="module")
def drawn():
  return _stack(letters.examples())


def test_every_class_is_there_equally_often(drawn):
  images, labels = drawn
  assert images.shape == (12_000, 8, 8, 1) and images.dtype == np.uint8
  assert len(letters.CLASS_NAMES) == 52
  counts = np.bincount(labels, minlength=52)
  assert counts.min() >= 230 and counts.max() <= 231
  # The first and last of each alphabet.
  assert [letters.CLASS_NAMES[i] for i in (0, 25, 26, 51)] == list("AZaz")


def test_images_depend_on_seed_and_number_only(drawn):
  images, labels = drawn
  again, labels_again = _stack(letters.examples(300))
  np.testing.assert_array_equal(again, images[:300])
  np.testing.assert_array_equal(labels_again, labels[:300])
  other, _ = _stack(letters.examples(300, seed=1))
  assert (other != images[:300]).any(axis=(1, 2, 3)).all()


def test_images_differ(drawn):
  images, _ = drawn
  assert len(np.unique(images.reshape(len(images), -1), axis=0)) > 11_990


def test_pixels_are_like_those_of_the_digits(drawn):
  images, _ = drawn
  real, _ = _stack(digits.examples())
  assert (images.max(axis=(1, 2, 3)) == 255).all()
  assert abs(images.mean() - real.mean()) < 10
  # Bright on black: the corners are background.
  assert np.median(images[:, [0, 0, -1, -1], [0, -1, 0, -1]]) == 0
  assert abs((images > 127).mean() - (real > 127).mean()) < 0.05


def test_letters_are_legible(drawn):
  images, labels = drawn
  # As far as case shows: some letters differ in nothing but size.
  letter = np.char.upper(np.array(letters.CLASS_NAMES))[labels]
  pixels = images.reshape(len(images), -1) / 255
  model = RidgeClassifier().fit(pixels[:9000], letter[:9000])
  accuracy = model.score(pixels[9000:], letter[9000:])
  assert accuracy > 0.6  # a linear classifier; chance is 0.04


def test_fonts_hold_letters():
  names = [path.name for path in letters._fonts()]
  assert names == sorted(names) and len(names) == 12
  assert "DejaVuSans.ttf" in names
