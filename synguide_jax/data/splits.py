"""Who trains, who validates, who tests: index arithmetic on integer arrays."""

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import train_test_split

from synguide_jax.errors import UserError

# Keeps these draws apart from those of the feed.
_SHOTS = 1


def split_off(
  labels: np.ndarray,
  members: np.ndarray,
  count: int,
  *,
  seed: int,
  field: str,
) -> tuple[np.ndarray, np.ndarray]:
  """Splits ``count`` images off, stratified by class.

  Args:
    labels: Label of every image.
    members: Indices to split, int32 ``[N]``.
    count: Images to split off, in total; 0 splits nothing off.
    seed: Seed of the split; not that of a run.
    field: Name of the config field that asks for it, for errors.

  Returns:
    Indices that stay and indices split off, both sorted.

  Raises:
    UserError: if there are too few images, in total or of a class.
  """
  if count == 0:
    return members, members[:0]
  try:
    stay, off = train_test_split(
      members, test_size=count, random_state=seed, stratify=labels[members]
    )
  except ValueError as error:
    raise UserError(
      f"{field}={count}: cannot split that many off {len(members)} images, "
      f"stratified by class: {error}"
    ) from error
  return np.sort(stay), np.sort(off)


def draw_shots(
  labels: np.ndarray,
  pool: np.ndarray,
  shots: int,
  class_names: Sequence[str],
  *,
  seed: int,
  run: int,
) -> np.ndarray:
  """Draws a run's real training images, the same number of every class.

  Args:
    labels: Label of every image.
    pool: Indices to draw from.
    shots: Images a class; 0 takes none (zero-shot), -1 the whole pool.
    class_names: Names of the classes, in label order.
    seed: Seed of the experiment.
    run: Number of the run; methods share the shots of equal seed and run.

  Returns:
    Sorted indices.

  Raises:
    UserError: if ``shots`` is below -1, or a class has fewer images.
  """
  if shots == -1:
    return pool
  if shots < 0:
    raise UserError(
      f"data.shots={shots}: give a number of images a class, or -1 for all."
    )
  counts = np.bincount(labels[pool], minlength=len(class_names))
  if counts.min() < shots:
    name = class_names[int(counts.argmin())]
    raise UserError(
      f"data.shots={shots}, but class {name!r} has only {counts.min()} "
      "training images."
    )
  rng = np.random.Generator(
    np.random.Philox(np.random.SeedSequence((_SHOTS, seed, run)))
  )
  drawn = [
    rng.choice(pool[labels[pool] == c], shots, replace=False)
    for c in range(len(class_names))
  ]
  return np.sort(np.concatenate(drawn))
