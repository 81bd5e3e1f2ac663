"""Modes of the training images, of which a set can be made to lack some.

Synthetic sets lack rare content first (the content gap). Leaving the smallest
clusters of every class out of a good generator's images makes that gap on
purpose, as wide as one likes, without another training.
"""

from collections.abc import Sequence
import io
from pathlib import Path

import numpy as np

from synguide_jax.cache import write_whole
from synguide_jax.errors import UserError


class Modes:
  """Clusters of the images of each class, some of them dropped.

  Args:
    centres: Centres of the clusters, largest first, ``[K, M, H, W, C]``.
    dropped: How many of a class are dropped, from the end.
  """

  def __init__(self, centres: np.ndarray, dropped: int):
    self._centres, self._dropped = centres, dropped

  def kept(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each image is nearest to a centre that is not dropped.

    Args:
      images: uint8 ``[N, H, W, C]``.
      labels: Their classes, ``[N]``.

    Returns:
      bool ``[N]``.
    """
    number = self._centres.shape[1]
    flat = images.reshape(len(images), 1, -1).astype(np.float32)
    centres = self._centres.reshape(*self._centres.shape[:2], -1)
    distances = np.square(flat - centres[labels]).sum(-1)
    return distances.argmin(-1) < number - self._dropped


def check(
  images: np.ndarray,
  labels: np.ndarray,
  number: int,
  dropped: int,
  class_names: Sequence[str],
) -> None:
  """Raises UserError for what `fit` cannot do.

  Args:
    images: uint8 ``[N, H, W, C]``.
    labels: Class indices, ``[N]``.
    number: Clusters a class.
    dropped: How many of them are dropped.
    class_names: Names of the classes.
  """
  if not 0 < dropped < number:
    raise UserError(
      f"config.sample.dropped_modes={dropped} must be at least 1 and less than "
      f"config.sample.modes={number}; 0 of both drops none."
    )
  for c, name in enumerate(class_names):
    if (count := len(np.unique(images[labels == c], axis=0))) < number:
      raise UserError(
        f"config.sample.modes={number}: class {name!r} has {count} different "
        "training images; take no more modes than that."
      )


def fit(
  images: np.ndarray,
  labels: np.ndarray,
  number: int,
  dropped: int,
  *,
  file: Path,
) -> Modes:
  """Clusters the images of each class by k-means of their pixels.

  Args:
    images: uint8 ``[N, H, W, C]``.
    labels: Class indices, ``[N]``.
    number: Clusters a class.
    dropped: How many of them, the smallest, are dropped.
    file: Keeps the centres, so that a command that continues has the same bits.

  """
  try:
    return Modes(np.load(file), dropped)
  except (OSError, ValueError):
    pass  # Not there, or damaged.
  # Slow to import, and rarely needed.
  from sklearn.cluster import KMeans

  centres = []
  for c in range(labels.max() + 1):
    of_class = images[labels == c].reshape((labels == c).sum(), -1)
    found = KMeans(number, n_init=4, random_state=0).fit(of_class)
    largest_first = np.argsort(-np.bincount(found.labels_), kind="stable")
    centres.append(found.cluster_centers_[largest_first])
  stacked = np.stack(centres).astype(np.float32)
  stacked = stacked.reshape(*stacked.shape[:2], *images.shape[1:])
  written = io.BytesIO()
  np.save(written, stacked)
  file.parent.mkdir(parents=True, exist_ok=True)
  write_whole(file, written.getvalue())
  return Modes(stacked, dropped)
