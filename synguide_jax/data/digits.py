"""scikit-learn's bundled handwritten digits: real images that need no network.

1,797 grey images of 8x8 pixels from the UCI set "Optical Recognition of
Handwritten Digits" (Alpaydin and Kaynak, 1998).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from synguide_jax.cache import fingerprint
from synguide_jax.data import prepared

NAME = "synguide_digits"
VERSION = 1
CLASS_NAMES = tuple("0123456789")


def examples() -> Iterator[tuple[np.ndarray, int]]:
  """Yields images, uint8 ``[8, 8, 1]``, bright on black, and their labels."""
  from sklearn.datasets import load_digits

  digits = load_digits()
  # The original values are counts of ink in 4x4 blocks: 0 to 16.
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)
  yield from zip(images[..., None], digits.target.tolist(), strict=True)


def prepare() -> Path:
  """Stores the set, unless it is there already; returns its folder."""
  return prepared.prepare(
    NAME,
    fingerprint({"version": VERSION}),
    examples,
    CLASS_NAMES,
    provenance={"origin": "sklearn.datasets.load_digits", "version": VERSION},
  )
