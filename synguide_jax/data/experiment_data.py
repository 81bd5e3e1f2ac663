"""The images of an experiment and who may see which, from its config."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import io
from typing import Any
import zipfile

from etils import epath
import numpy as np

from synguide_jax.cache import write_whole
from synguide_jax.data import (
  checks,
  classes,
  decode,
  layouts,
  roles,
  sources,
  splits,
)
from synguide_jax.data.collection import Collection
from synguide_jax.data.pixels import Pixels
from synguide_jax.data.sources import ImageSet
from synguide_jax.errors import check_known, UserError

DUPLICATES = ("warn", "drop", "error")


@dataclasses.dataclass(frozen=True)
class ExperimentData:
  """All images of an experiment under one numbering, and indices into it.

  Attributes:
    pixels: The images, real ones first.
    labels: int32 ``[N]``.
    real: True where the image is real, ``[N]``.
    class_names: In label order.
    indices: int32 indices by name: ``"pool"`` (real images that shots are
      drawn from), ``"validation"``, ``"test"`` and ``"synthetic"``.
    members: Indices each run trains on, ``members[set][r]``, for the sets
      ``"real"`` and ``"synthetic"``.
    tested_by: With cross-validation, which of ``indices["test"]`` each run is
      tested on, bool ``[runs, N_test]``; else None: all.
    weights: How often each image is drawn, relative to the others of its
      stream, float64 ``[N]``; None: all alike.
    provenance: Where each set comes from, and what was converted.
    hashes: Of the pixels of each image, uint64 ``[N]``.
    warnings: What is worth knowing before the results are trusted.
  """

  pixels: Pixels
  labels: np.ndarray
  real: np.ndarray
  class_names: tuple[str, ...]
  indices: Mapping[str, np.ndarray]
  members: Mapping[str, list[np.ndarray]]
  tested_by: np.ndarray | None
  weights: np.ndarray | None
  provenance: Mapping[str, Any]
  hashes: np.ndarray
  warnings: tuple[str, ...]

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

  def checksum(self) -> str:
    """Identifies the images and their roles, in 12 hexadecimal digits."""
    digest = hashlib.sha256(self.hashes.tobytes() + self.labels.tobytes())
    for name, index in sorted(self.indices.items()):
      digest.update(name.encode() + index.tobytes())
    return digest.hexdigest()[:12]

  def keep(self, file: epath.Path) -> None:
    """Writes who sees which image, or checks that it is as it was.

    Args:
      file: An .npz file: the indices by role, those each run trains on
        (``real_0``, ``synthetic_0``, ...), and labels and hashes of all images.

    Raises:
      UserError: the file is of other images.
    """
    arrays = {
      **self.indices,
      **{
        f"{name}_{r}": index
        for name, of_runs in self.members.items()
        for r, index in enumerate(of_runs)
      },
      "labels": self.labels,
      "hashes": self.hashes,
      "class_names": np.asarray(self.class_names),
    }
    if self.tested_by is not None:
      arrays["tested_by"] = self.tested_by
    if not file.exists():
      written = io.BytesIO()
      np.savez_compressed(written, **arrays)
      write_whole(file, written.getvalue())
      return
    try:
      with np.load(io.BytesIO(file.read_bytes())) as kept:
        same = set(kept.files) == set(arrays) and all(
          np.array_equal(kept[name], array) for name, array in arrays.items()
        )
    except (OSError, ValueError, zipfile.BadZipFile) as error:
      raise UserError(
        f"Cannot read {file} ({error}). Choose another --workdir, or delete it."
      ) from error
    if not same:
      raise UserError(
        f"The images are not those that {file.parent} was begun with. Choose "
        "another --workdir, or delete it."
      )


def load(data: Any, *, seed: int, runs: tuple[int, ...]) -> ExperimentData:
  """Opens the sets of a config's ``data`` section and splits them.

  Args:
    data: The config's section ``data``.
    seed: Seed of the experiment, which with the run's number draws the shots.
    runs: Numbers of the runs.

  Returns:
    The :class:`ExperimentData`.

  Raises:
    UserError: for sets that cannot be read, do not match, or are too small.
  """
  if not data.real:
    raise UserError("data.real is empty; name a set, such as folder:<path>.")
  real = sources.open_set(data.real, skip_damaged=data.skip_damaged)
  if "train" not in real.splits:
    raise UserError(f"data.real={data.real!r} has no split named 'train'.")
  if not real.splits["train"].has_labels():
    raise UserError(f"data.real={data.real!r} has no labels.")
  images = Collection(real, data.classes)
  indices, folds, warnings = roles.split_real(data, real, images)
  num_real = len(images.labels)
  synthetic = _open_synthetic(data, real, images)
  of_source = [
    images.add(found, split, names) for found, split, names, _ in synthetic
  ]
  indices["synthetic"] = np.concatenate([np.zeros(0, np.int32), *of_source])
  labels = images.labels
  _check_kinds(data, images)
  for (found, *_), index in zip(synthetic, of_source, strict=True):
    if note := _empty_classes(labels[index], images.class_names):
      warnings.append(f"{found.spec} has {note}.")
    if note := _shortcut(images, indices["pool"], index):
      warnings.append(f"{found.spec}: {note}")
  hashes = images.column("hashes")
  leaks, notes = _find_duplicates(data, hashes, indices)
  if data.synthetic_per_class:
    indices["synthetic"] = splits.at_most(
      labels,
      indices["synthetic"],
      data.synthetic_per_class,
      seed=data.split_seed,
    )
  of_source = [np.intersect1d(i, indices["synthetic"]) for i in of_source]
  for (found, *_), index in zip(synthetic, of_source, strict=True):
    if not len(index):
      raise UserError(f"{found.spec} has no image left to train on.")
  if note := _empty_classes(labels[indices["pool"]], images.class_names):
    raise UserError(f"data.real={data.real!r} has {note} to train on.")
  members, tested_by = _members(data, seed, runs, images, indices, folds)
  return ExperimentData(
    pixels=Pixels(
      images.parts, data.store_size or data.image_size, data.channels
    ),
    labels=labels,
    real=np.arange(len(labels)) < num_real,
    class_names=images.class_names,
    indices=indices,
    members=members,
    tested_by=tested_by,
    weights=_weights(
      len(labels), of_source, [weight for *_, weight in synthetic]
    ),
    provenance={
      "real": real.provenance,
      "synthetic": [found.provenance for found, *_ in synthetic],
      "duplicates": leaks,
    },
    hashes=hashes,
    warnings=(*warnings, *notes),
  )


def _open_synthetic(
  data: Any, real: ImageSet, images: Collection
) -> list[tuple[ImageSet, str, tuple[str, ...], float | None]]:
  """Opens the synthetic sources: set, split, names of its classes, weight."""
  opened = []
  for spec, weight in sources.parse_weights(data.synthetic):
    found = sources.open_set(spec, skip_damaged=data.skip_damaged)
    split = "train" if "train" in found.splits else next(iter(found.splits))
    if not found.splits[split].has_labels():
      raise UserError(
        f"{spec} has no labels. Let a classifier give it some: python -m "
        f"synguide_jax.label --source={spec} --classifier=<workdir> "
        "--output=<folder>."
      )
    names = classes.match(
      real.class_names,
      found.class_names,
      by=data.match_classes,
      mapping=data.class_mapping,
      wanted=images.class_names,
      real_spec=data.real,
      synthetic_spec=spec,
    )
    opened.append((found, split, names, weight))
  return opened


def _check_kinds(data: Any, images: Collection) -> None:
  """Raises UserError for a mixture of grey and colour, unless it is wanted."""
  grey = images.column("grey")
  if data.convert_channels or grey.all():
    return
  if grey.any() or data.channels == 1:
    counts = ", ".join(
      f"{name}: {int(index.grey[rows].sum())} grey of {len(rows)}"
      for name, index, rows in images.members()
    )
    raise UserError(
      f"Grey and colour images do not mix ({counts}; data.channels="
      f"{data.channels}). Set data.convert_channels=True to convert them all."
    )


def _empty_classes(
  labels: np.ndarray, class_names: Sequence[str]
) -> str | None:
  counts = np.bincount(labels, minlength=len(class_names))
  empty = {class_names[c] for c in np.flatnonzero(counts == 0)}
  if not empty:
    return None
  return f"no image of class {layouts.enumerate_names(empty)}"


def _shortcut(
  images: Collection, real: np.ndarray, synthetic: np.ndarray
) -> str | None:
  """How the files of a source differ from the real ones, if they do."""

  def alike(side):
    # Without loss it does not matter in which format, or if in a file at all.
    lossless = np.isin(side.formats, decode.LOSSLESS)
    formats = np.where(lossless, "lossless", side.formats)
    return dataclasses.replace(side, formats=formats)

  found = checks.file_shortcut(
    alike(images.facts(real)), alike(images.facts(synthetic))
  )
  return found.message if found else None


def _find_duplicates(
  data: Any, hashes: np.ndarray, indices: dict[str, np.ndarray]
) -> tuple[dict[str, int], list[str]]:
  """Finds held-out images among the others; drops them where that is wanted.

  Returns:
    How many of the others they are, by role, and warnings.
  """
  check_known("data.duplicates", data.duplicates, DUPLICATES)
  found, notes = {}, []
  for role, held_out in _compared(data, indices):
    others = indices[role]
    leaks = checks.find_leaks(hashes, held_out, others)
    kind = {"pool": "real training"}.get(role, role)
    whose = "test" if role == "validation" else "validation or test"
    shared = len(np.unique(hashes[leaks]))
    note = f"{shared} {whose} images are also among the {kind} images"
    if role == "pool" and data.folds:
      leaks = np.union1d(leaks, checks.find_copies(hashes, others))
      note = f"{len(leaks)} real images are copies of others"
    found[role] = len(leaks)
    if not len(leaks):
      continue
    if data.duplicates == "error":
      raise UserError(
        f"{note}. data.duplicates='drop' leaves {len(leaks)} of the {kind} "
        "images out."
      )
    if data.duplicates == "drop":
      indices[role] = np.setdiff1d(others, leaks)
      note = f"Left out {len(leaks)} {kind} images: {note}"
    notes.append(f"{note}.")
  return found, notes


def _compared(
  data: Any, indices: Mapping[str, np.ndarray]
) -> list[tuple[str, np.ndarray]]:
  """Which images, by role, must not be among which held-out ones."""
  held_out = np.concatenate([indices["validation"], indices["test"]])
  # With folds every real image is tested on, and trained on by other runs.
  against = indices["validation"] if data.folds else held_out
  return [
    ("validation", indices["test"]),
    ("pool", against),
    ("synthetic", held_out),
  ]


def _members(
  data: Any,
  seed: int,
  runs: Sequence[int],
  images: Collection,
  indices: Mapping[str, np.ndarray],
  folds: Sequence[np.ndarray],
) -> tuple[dict[str, list[np.ndarray]], np.ndarray | None]:
  """What each run trains on, and is tested on if that differs."""
  pools, tested_by = [indices["pool"]] * len(runs), None
  if folds:
    left_out = [folds[run % len(folds)] for run in runs]
    pools = [np.setdiff1d(p, o) for p, o in zip(pools, left_out, strict=True)]
    tested_by = np.stack([np.isin(indices["test"], o) for o in left_out])
  members = {
    "real": [
      splits.draw_shots(
        images.labels,
        pool,
        data.shots,
        images.class_names,
        seed=seed,
        run=run,
      )
      for pool, run in zip(pools, runs, strict=True)
    ]
  }
  if data.synthetic:
    members["synthetic"] = [indices["synthetic"]] * len(runs)
  return members, tested_by


def _weights(
  count: int,
  of_source: Sequence[np.ndarray],
  weights: Sequence[float | None],
) -> np.ndarray | None:
  """Weight of every image: 1 on average, for real and synthetic ones."""
  if len(of_source) < 2 or weights[0] is None:
    return None
  share = np.asarray(weights) / np.sum(weights)
  total = sum(map(len, of_source))
  of_image = np.ones(count)
  for part, index in zip(share, of_source, strict=True):
    of_image[index] = part * total / len(index)
  return of_image
