"""The smallest clusters of a class are those that are dropped."""

import numpy as np
import pytest

from synguide_jax.errors import UserError
from synguide_jax.synthesis import modes


def _images():
  """Two classes; of each 30 dark, 20 grey and 10 bright images, noisy."""
  rng = np.random.default_rng(0)
  levels = np.repeat([40, 120, 200], [30, 20, 10])
  levels = np.tile(levels, 2)
  noise = rng.integers(-20, 21, (120, 4, 4, 1))
  images = (levels[:, None, None, None] + noise).astype(np.uint8)
  return images, np.repeat([0, 1], 60), levels


def _fit(images, labels, number, dropped, file):
  return modes.fit(images, labels, number, dropped, file=file)


def test_the_smallest_modes_are_dropped(tmp_path):
  images, labels, levels = _images()
  file = tmp_path / "modes.npy"
  for dropped, kept in ((1, levels < 160), (2, levels < 80)):
    found = _fit(images, labels, 3, dropped, file)
    np.testing.assert_array_equal(found.kept(images, labels), kept)


def test_the_centres_are_kept(tmp_path):
  images, labels, levels = _images()
  file = tmp_path / "modes.npy"
  _fit(images, labels, 3, 1, file)
  # Others now, of which the same are dropped.
  found = _fit(images[:, ::-1] // 2 + 3, labels, 3, 1, file)
  np.testing.assert_array_equal(found.kept(images, labels), levels < 160)


@pytest.mark.parametrize(
  ("number", "dropped", "message"),
  [
    (3, 3, "dropped_modes=3 must be at least 1 and less than .*modes=3"),
    (3, 0, "dropped_modes=0 must be at least 1"),
    (61, 1, "modes=61: class 'a' has 60 different training images"),
  ],
)
def test_wrong_numbers_are_reported(number, dropped, message):
  images, labels, _ = _images()
  modes.check(images, labels, 60, 59, ("a", "b"))
  with pytest.raises(UserError, match=message):
    modes.check(images, labels, number, dropped, ("a", "b"))
