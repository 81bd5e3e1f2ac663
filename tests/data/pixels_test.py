"""Images of several sets under one numbering."""

import pickle

import numpy as np
import pytest

from synguide_jax.data import digits, prepared, records
from synguide_jax.data.pixels import Pixels

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def parts():
  """Rows of three splits: of the digits, and of two of 5 images of 6 px."""
  colour = RNG.integers(0, 256, (10, 6, 6, 3), np.uint8)
  folder = prepared.prepare(
    "synguide_pixels",
    "0123456789ab",
    lambda: {
      "train": [prepared.Example(image, 0) for image in colour[:5]],
      "test": [prepared.Example(image, 0) for image in colour[5:]],
    },
    ["a"],
    provenance={},
  )
  ours = records.of_prepared(folder)
  theirs = records.of_prepared(digits.prepare())
  grey = np.stack([image for image, _ in digits.examples()])
  rows = np.array([1700, 3, 900])
  return (
    colour,
    grey[rows],
    [
      (ours["train"], np.array([4, 0])),
      (theirs["train"], rows),
      (ours["test"], np.arange(5)),
    ],
  )


def test_every_number_is_its_image(parts):
  colour, grey, parts = parts
  pixels = Pixels(parts, 6, 3)
  assert pixels.shape == (10, 6, 6, 3)
  assert pixels.nbytes == 10 * 6 * 6 * 3 and len(pixels) == 10
  everything = pixels.read()
  expected = [colour[4], colour[0], *colour[5:]]
  np.testing.assert_array_equal(everything[[0, 1, *range(5, 10)]], expected)
  # Those that do not fit are resized, and the digits made colour.
  at_8 = Pixels(parts, 8, 3).read([2, 3, 4])
  np.testing.assert_array_equal(at_8, np.repeat(grey, 3, axis=-1))
  np.testing.assert_array_equal(Pixels(parts, 8, 1).read([2, 3, 4]), grey)


@pytest.mark.parametrize("threads", [1, 3])
def test_any_order_and_shape(parts, threads):
  *_, parts = parts
  pixels = Pixels(parts, 7, 3)
  everything = pixels.read()
  index = RNG.integers(0, 10, (3, 4, 5))
  np.testing.assert_array_equal(pixels.read(index, threads), everything[index])
  assert pixels.read(np.zeros((2, 0), int), threads).shape == (2, 0, 7, 7, 3)
  many = RNG.integers(0, 10, 1500)  # several blocks
  np.testing.assert_array_equal(pixels.read(many, threads), everything[many])


def test_pickling_opens_the_files_anew(parts):
  *_, parts = parts
  pixels = Pixels(parts, 6, 3)
  expected = pixels.read()
  pickled = pickle.dumps(pixels)
  assert len(pickled) < 5_000
  np.testing.assert_array_equal(pickle.loads(pickled).read(), expected)
