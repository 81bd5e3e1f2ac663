"""Which real images are trained on, validated on and tested on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from synguide_jax.data import checks, layouts, splits
from synguide_jax.data.collection import Collection
from synguide_jax.data.sources import ImageSet
from synguide_jax.errors import UserError


def split_real(
  data: Any, real: ImageSet, images: Collection
) -> tuple[dict[str, np.ndarray], list[np.ndarray], list[str]]:
  """Says which real images are for what.

  Args:
    data: The config's section ``data``.
    real: The real set.
    images: Gets its images, those to train on first.

  Returns:
    Indices by role (``"pool"``, ``"test"``, ``"validation"``), the folds, and
    warnings.

  Raises:
    UserError: there are too few, or the config asks for what is not there.
  """
  indices = {"pool": images.add(real, "train", real.class_names)}
  labels, groups = images.labels, None
  if data.groups:
    groups = splits.read_groups(data.groups, images.column("names"))
  official, warnings = _official_splits(data, real)
  how = dict(
    seed=data.split_seed, groups=groups, class_names=images.class_names
  )
  for role in ("test", "validation"):
    if role in official:
      indices[role] = images.add(real, official[role], real.class_names)
      continue
    count = data[role]
    if count < 0:
      nothing = role == "test" and data.folds
      count = 0 if nothing else round(len(indices["pool"]) / 5)
    indices["pool"], indices[role] = splits.split_off(
      labels, indices["pool"], count, field=f"data.{role}", **how
    )
  if groups is not None and official:
    warnings += _shared_groups(data, images, indices, official)
  if not data.folds:
    return indices, [], warnings
  if data.duplicates == "drop":
    # Copies may not be on both sides of a fold either.
    copies = checks.find_copies(images.column("hashes"), indices["pool"])
    if len(copies):
      indices["pool"] = np.setdiff1d(indices["pool"], copies)
      warnings.append(f"Left out {len(copies)} real images: copies of others.")
  indices["test"] = indices["pool"]
  folds = splits.folds(labels, indices["pool"], data.folds, **how)
  return indices, folds, warnings


def _official_splits(
  data: Any, real: ImageSet
) -> tuple[dict[str, str], list[str]]:
  """The set's own splits to test and validate on, and warnings."""
  found, warnings = {}, []
  test = data.test_split
  if test == "train":
    raise UserError("data.test_split='train': those images are trained on.")
  if data.test <= 0 and test != "test" and test not in real.splits:
    raise UserError(
      f"data.test_split={test!r}: {real.spec} has only the splits "
      f"{layouts.enumerate_names(set(real.splits))}."
    )
  for role, split in (("test", test), ("validation", "validation")):
    if data[role] > 0 or split not in real.splits or split in found.values():
      continue
    if real.splits[split].has_labels():
      found[role] = split
    else:
      warnings.append(f"{real.spec}: its split {split} has no labels; unused.")
  if data.folds and (data.test > 0 or "test" in found):
    raise UserError(
      f"data.folds={data.folds} tests on the training images, but there are "
      "test images: take data.folds=0, or a set without them and data.test=0."
    )
  return found, warnings


def _shared_groups(
  data: Any,
  images: Collection,
  indices: Mapping[str, np.ndarray],
  official: Mapping[str, str],
) -> list[str]:
  """Warns of groups that the set's own splits tear apart."""
  groups = splits.read_groups(data.groups, images.column("names"))
  warnings = []
  for role, split in official.items():
    shared = np.intersect1d(groups[indices[role]], groups[indices["pool"]])
    if len(shared):
      warnings.append(
        f"data.groups: {len(shared)} groups are in the training images and in "
        f"the set's own split {split!r} as well."
      )
  return warnings
