"""The images of an experiment and who may see which, loaded from its config."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import logging
import numpy as np

from synguide_jax.data import sources, splits
from synguide_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ExperimentData:
  """All images of an experiment in one array, and indices into it.

  Attributes:
    images: uint8 ``[N, H, W, C]``, real ones first.
    labels: int32 ``[N]``.
    real: True where the image is real, ``[N]``.
    class_names: In label order.
    indices: int32 indices by name: ``"pool"`` (real images that shots are
      drawn from), ``"validation"``, ``"test"`` and ``"synthetic"``.
    members: Indices each run trains on, ``members[set][r]``, for the sets
      ``"real"`` and ``"synthetic"``.
    provenance: Where each set comes from, and what was converted.
  """

  images: np.ndarray
  labels: np.ndarray
  real: np.ndarray
  class_names: tuple[str, ...]
  indices: Mapping[str, np.ndarray]
  members: Mapping[str, list[np.ndarray]]
  provenance: Mapping[str, Mapping[str, Any]]

  def describe(self) -> dict[str, int]:
    """Number of images by role, for progress lines and results."""
    roles = {name: len(index) for name, index in self.indices.items()}
    return {**roles, "real_a_run": len(self.members["real"][0])}

  def class_counts(self) -> dict[str, tuple[int, ...]]:
    """Images per class and run, by set."""
    return {
      name: tuple(
        np.bincount(
          self.labels[of_runs[0]], minlength=len(self.class_names)
        ).tolist()
      )
      for name, of_runs in self.members.items()
    }


def _official(
  sets: Mapping[str, sources.ImageSet], *names: str
) -> sources.ImageSet | None:
  return next((sets[name] for name in names if name in sets), None)


def load(data: Any, *, seed: int, runs: tuple[int, ...]) -> ExperimentData:
  """Loads the sets of a config's ``data`` section and splits them.

  Args:
    data: The config's section ``data``.
    seed: Seed of the experiment, which with the run's number draws the shots.
    runs: Numbers of the runs.

  Returns:
    The :class:`ExperimentData`.

  Raises:
    UserError: for sets that cannot be read, do not match, or are too small.
  """
  size = data.store_size or data.image_size
  shape = dict(
    image_size=size, channels=data.channels, skip_damaged=data.skip_damaged
  )
  real_sets = sources.load(data.real, **shape)
  train = _official(real_sets, "train")
  if train is None:
    raise UserError(f"data.real={data.real!r} has no split named 'train'.")
  parts = [train]
  offset = len(train.labels)
  indices = {"pool": np.arange(offset, dtype=np.int32)}

  for role, count, names in (
    ("test", data.test, ("test",)),
    ("validation", data.validation, ("validation", "val")),
  ):
    official = None if count else _official(real_sets, *names)
    if official is not None:
      parts.append(sources.match_classes(train, official))
      indices[role] = np.arange(
        offset, offset + len(official.labels), dtype=np.int32
      )
      offset += len(official.labels)
    else:
      indices["pool"], indices[role] = splits.split_off(
        train.labels,
        indices["pool"],
        count,
        seed=data.split_seed,
        field=f"data.{role}",
      )

  num_real, members = offset, {}
  members["real"] = [
    splits.draw_shots(
      train.labels,
      indices["pool"],
      data.shots,
      train.class_names,
      seed=seed,
      run=run,
    )
    for run in runs
  ]
  provenance = {"real": train.provenance}
  indices["synthetic"] = np.zeros(0, np.int32)
  if data.synthetic:
    sets = sources.load(data.synthetic, **shape)
    synthetic = _official(sets, "train") or next(iter(sets.values()))
    synthetic = sources.match_classes(train, synthetic)
    parts.append(synthetic)
    indices["synthetic"] = np.arange(
      offset, offset + len(synthetic.labels), dtype=np.int32
    )
    members["synthetic"] = [indices["synthetic"]] * len(runs)
    provenance["synthetic"] = synthetic.provenance
  images = np.concatenate([part.images for part in parts])
  return ExperimentData(
    images=images,
    labels=np.concatenate([part.labels for part in parts]),
    real=np.arange(len(images)) < num_real,
    class_names=train.class_names,
    indices=indices,
    members=members,
    provenance=provenance,
  )


def warn_of_leaks(data: ExperimentData) -> None:
  """Warns if held-out images are also, pixel for pixel, among the others."""

  def contents(name):
    return {data.images[i].tobytes() for i in data.indices[name]}

  held_out = contents("test") | contents("validation")
  for name in ("pool", "synthetic"):
    if shared := len(held_out & contents(name)):
      logging.warning(
        "%d validation or test images are also among the %s images.",
        shared,
        {"pool": "real training", "synthetic": "synthetic"}[name],
      )
