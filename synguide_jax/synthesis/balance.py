"""The real images that a labelled set is to balance with."""

from collections.abc import Sequence
from pathlib import Path
import zipfile

import numpy as np

from synguide_jax.data import sources
from synguide_jax.data.layouts import enumerate_names
from synguide_jax.errors import UserError


def real_counts(
  balance_with: str, class_names: Sequence[str], *, skip_damaged: bool = False
) -> np.ndarray:
  """Counts real images by class.

  Args:
    balance_with: A workdir, finished or not, for the images that its run 0
      trains on; or a spec, for all of the set's split "train".
    class_names: The classes to count, in order.
    skip_damaged: As :func:`synguide_jax.data.sources.open_set`, for a spec.

  Returns:
    Their numbers of images, ``[K]``.

  Raises:
    UserError: it is neither, or has other classes.
  """
  splits = Path(balance_with).expanduser() / "splits.npz"
  if splits.is_file():
    names, labels = _trained_on(splits)
  else:
    names, labels = _labels_of_train(balance_with, skip_damaged)
  if set(names) != set(class_names):
    raise UserError(
      f"balance_with={balance_with!r} must have the classifier's classes: "
      f"{enumerate_names(class_names)}; it has {enumerate_names(names)}. Give "
      "the workdir of an experiment of those."
    )
  counts = np.bincount(labels, minlength=len(names))
  return counts[[names.index(name) for name in class_names]]


def _trained_on(splits: Path) -> tuple[list[str], np.ndarray]:
  """Names of the classes, and labels of what run 0 of a workdir trains on."""
  try:
    # As ExperimentData.keep wrote it.
    with np.load(splits) as kept:
      names = kept["class_names"].tolist()
      return names, kept["labels"][kept["real_0"]]
  except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
    raise UserError(
      f"balance_with: {splits} cannot be read ({error}); give another workdir."
    ) from error


def _labels_of_train(
  spec: str, skip_damaged: bool
) -> tuple[list[str], np.ndarray]:
  """Names of a set's classes, and labels of its split "train"."""
  try:
    real = sources.open_set(spec, skip_damaged=skip_damaged)
  except UserError as error:
    raise UserError(
      f"balance_with={spec!r} is no workdir in which training has begun, and "
      f"as a spec: {error}"
    ) from error
  train = real.splits.get("train")
  if train is None or (train.index.labels < 0).any():
    raise UserError(
      f"balance_with={spec!r} has no split 'train' whose images all have "
      "labels."
    )
  return list(real.class_names), train.index.labels
