"""Labels by a classifier, and which of a set's images are worth keeping.

The paper labels the samples of an unconditional generator with a classifier of
the real classes, the label being the most probable class, and keeps those whose
probability is above 0.8; samples that come with labels keep them and go through
the same filter.

`classifier.predict` asks the classifier, `selection` decides by its answers
alone, and `label` does all of it and writes what is left as a set of our own.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
import re
import shutil
from typing import Any

from absl import logging
import filelock
import numpy as np

from synguide_jax import cache, workdir
from synguide_jax.data import classes, decode, files, prepared
from synguide_jax.data.layouts import enumerate_names, NO_LABEL
from synguide_jax.data.records import Index, Records
from synguide_jax.data.sources import ImageSet
from synguide_jax.errors import UserError
from synguide_jax.synthesis.balance import real_counts
from synguide_jax.synthesis.classifier import Classifier, predict, Predictions
from synguide_jax.synthesis.selection import (
  balanced_counts,
  count,
  draw,
  FATES,
  KEPT,
  Rules,
  select,
)

_BLOCK = 256  # encoded images in memory while they are copied


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of a set.

  Attributes:
    output: Folder of the images that are left.
    classes: What became of each class's images, see `selection.count`.
    new: Whether the folder was written now; otherwise it was there.
  """

  output: Path
  classes: Sequence[Mapping[str, Any]]
  new: bool

  def total(self, column: str) -> int:
    """Sum of a column over the classes."""
    return sum(of_class[column] for of_class in self.classes)


def label(
  source: ImageSet,
  classifier: Classifier,
  output: Path | str,
  rules: Rules,
  *,
  skip_damaged: bool = False,
) -> Report:
  """Labels and filters a set, and writes what is left as ``prepared:<output>``.

  The images' files and names stay as they are, and what is known of the files
  they once came in; the confidence is added. The folder is there as a whole or
  not at all.

  Args:
    source: The set, with labels or without.
    classifier: Whom to ask.
    output: A folder to be made. If it holds what would be written, nothing is
      done again.
    rules: See :class:`Rules`.
    skip_damaged: As for the source, should ``rules.balance_with`` be a spec.

  Returns:
    A :class:`Report`.

  Raises:
    UserError: a rule is out of range or needs labels that the set does not
      have, classes do not match, nothing is left, or the folder is remote or
      holds anything else.
  """
  if files.is_remote(str(output)):
    raise UserError(f"output={str(output)!r} must be a local folder.")
  output = Path(output).expanduser()
  rules.check()
  rules = rules.resolved()
  records = _choose_split(source, rules.split)
  own = _own_labels(source, records, classifier, rules)
  real = None
  if rules.balance_with:
    real = real_counts(
      rules.balance_with, classifier.class_names, skip_damaged=skip_damaged
    )
  settings = _settings(source, records, classifier, rules, real)
  if (found := _finished(output, settings)) is not None:
    return Report(output, found, new=False)
  with _alone(output) as partial:
    # Somebody may have made it since.
    if (found := _finished(output, settings)) is not None:
      return Report(output, found, new=False)
    given = np.full_like(own, NO_LABEL) if rules.relabel else own
    predictions = predict(classifier, records, given)
    fates = select(predictions, own, rules)
    limits = _limits(fates, predictions.labels, classifier, rules, real)
    if limits is not None:
      fates = draw(fates, predictions.labels, limits, seed=rules.seed)
    counts = count(fates, predictions, classifier.class_names)
    report = Report(output, counts, new=True)
    _check_left(source, report)
    examples = _examples(records, predictions, np.flatnonzero(fates == KEPT))
    provenance = {
      "spec": f"prepared:{output}",
      "labeling": settings,
      "classes": counts,
      "source": source.provenance,
    }
    _write(output, partial, examples, classifier.class_names, provenance)
  return report


def table(report: Report) -> list[str]:
  """Returns what became of each class as the lines of a table, with totals.

  An image counts as dropped by the first filter that it did not pass; the mean
  confidence is of those kept.
  """
  columns = ("images", *FATES)
  totals = {
    "class": "all",
    **{column: report.total(column) for column in columns},
    "mean_confidence": np.average(
      [row["mean_confidence"] or 0 for row in report.classes],
      weights=[row["kept"] for row in report.classes],
    ),
  }
  dropped = (f"dropped: {FATES[1]}", *FATES[2:])
  rows = [("class", "images", FATES[0], *dropped, "mean confidence")]
  for row in (*report.classes, totals):
    sure = row["mean_confidence"]
    shown = "-" if sure is None else f"{sure:.3f}"
    rows.append((row["class"], *(f"{row[c]:,}" for c in columns), shown))
  widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
  return [
    f"{cells[0]:<{widths[0]}}  "
    + "  ".join(f"{c:>{w}}" for c, w in zip(cells[1:], widths[1:], strict=True))
    for cells in rows
  ]


def _choose_split(source: ImageSet, split: str | None) -> Records:
  if split is None:
    split = "train" if "train" in source.splits else next(iter(source.splits))
  if split not in source.splits:
    raise UserError(
      f"split={split!r}: {source.spec} has no such split, but "
      f"{enumerate_names(set(source.splits))}."
    )
  return source.splits[split]


def _own_labels(
  source: ImageSet, records: Records, classifier: Classifier, rules: Rules
) -> np.ndarray:
  """The images' labels among the classifier's classes; -1: none."""
  labels = records.index.labels
  if rules.agree and (labels < 0).any():
    raise UserError(
      f"agree=True needs labels to agree with, and {(labels < 0).sum()} of "
      f"{len(labels)} images of {source.spec} have none."
    )
  if (labels < 0).all() or (rules.relabel and not rules.agree):
    return np.full_like(labels, NO_LABEL)
  try:
    names = classes.match(
      classifier.class_names,
      records.class_names,
      by=rules.match_classes,
      mapping=rules.class_mapping,
      real_spec="classifier",
      synthetic_spec=source.spec,
    )
  except UserError as error:
    raise UserError(
      f"{error} Here these are called class_mapping and match_classes."
    ) from error
  new = np.array([classifier.class_names.index(name) for name in names])
  return np.where(labels < 0, NO_LABEL, new[labels]).astype(np.int32)


def _limits(
  fates: np.ndarray,
  labels: np.ndarray,
  classifier: Classifier,
  rules: Rules,
  real: np.ndarray | None,
) -> np.ndarray | None:
  """How many images of each class to keep; None: all."""
  names = np.asarray(classifier.class_names, object)
  available = np.bincount(labels[fates == KEPT], minlength=len(names))
  if rules.per_class:
    if (few := available < rules.per_class).any():
      logging.warning(
        "fewer than per_class=%d images are left of class %s",
        rules.per_class,
        enumerate_names(names[few]),
      )
    return np.full(len(names), rules.per_class)
  if real is None:
    return None
  limits, total = balanced_counts(real, available)
  if (above := real > total).any():
    logging.warning(
      "balanced at %d images a class, since class %s has no more; class %s has "
      "more real images than that and gets no synthetic one",
      total,
      enumerate_names(names[[np.argmin(real + available)]]),
      enumerate_names(names[above]),
    )
  return limits


def _check_left(source: ImageSet, report: Report) -> None:
  """Raises where no image is left, and warns of classes without any."""
  if not report.total("kept"):
    dropped = ", ".join(f"{report.total(fate)} by {fate}" for fate in FATES[1:])
    raise UserError(
      f"No image of {source.spec} is left; dropped: {dropped}. Relax "
      "threshold, agree, min_loss or max_loss."
    )
  if empty := [row["class"] for row in report.classes if not row["kept"]]:
    logging.warning(
      "no image is left of class %s; who trains on the set needs some of every "
      "class it uses",
      enumerate_names(empty),
    )


def _settings(
  source: ImageSet,
  records: Records,
  classifier: Classifier,
  rules: Rules,
  real: np.ndarray | None,
) -> dict[str, Any]:
  """All that the output depends on, as JSON gives it back."""
  index = records.index
  content = hashlib.sha256(index.hashes.tobytes() + index.labels.tobytes())
  settings = {
    "source": source.spec,
    "source_split": records.split,
    "source_checksum": content.hexdigest(),
    "classifier": {
      **classifier.origin,
      "checksum": classifier.checksum(),
      "class_names": classifier.class_names,
      "read_size": classifier.read_size,
    },
    "rules": dataclasses.asdict(rules),
    "real_images": None if real is None else real.tolist(),
  }
  return json.loads(json.dumps(settings))


def _finished(
  output: Path, settings: Mapping[str, Any]
) -> Sequence[Mapping[str, Any]] | None:
  """The counts of a folder that is there already; None: it is to be made."""
  if not output.exists() or (output.is_dir() and not any(output.iterdir())):
    return None
  found = {}
  if prepared.is_complete(output):
    found = prepared.read_provenance(output)
  if "labeling" not in found:
    raise UserError(
      f"output={output} exists and is no labelled set. Choose another."
    )
  if changed := workdir.differences(found["labeling"], settings):
    listed = ", ".join(
      f"{field} ({old!r} there, {new!r} now)"
      for field, (old, new) in changed.items()
    )
    raise UserError(
      f"output={output} was made with other settings: {listed}. Choose "
      "another, or delete it."
    )
  return found["classes"]


def _examples(
  records: Records, predictions: Predictions, rows: np.ndarray
) -> Iterator[prepared.Example]:
  """Yields the chosen images as they are stored, with their new labels."""
  index = records.index
  for start in range(0, len(rows), _BLOCK):
    block = rows[start : start + _BLOCK]
    for row, image in zip(block, records.encoded(block), strict=True):
      yield prepared.Example(
        image,
        int(predictions.labels[row]),
        str(index.names[row]),
        float(predictions.confidences[row]),
        _facts(index, row),
      )


def _facts(index: Index, row: int) -> decode.Facts:
  return decode.Facts(
    hash=int(index.hashes[row]),
    format=str(index.formats[row]),
    width=int(index.widths[row]),
    height=int(index.heights[row]),
    grey=bool(index.grey[row]),
    quantization=float(index.quantization[row]),
  )


def _write(
  output: Path,
  partial: Path,
  examples: Iterator[prepared.Example],
  class_names: Sequence[str],
  provenance: Mapping[str, Any],
) -> None:
  """Writes a set in ``partial`` and moves it to ``output``."""
  # tfds wants folders of these names while it writes, but not to read.
  name = "labeled_" + re.sub(r"\W+", "_", output.name, flags=re.ASCII).lower()
  mark = cache.fingerprint(provenance["labeling"])
  folder = partial.joinpath(*prepared.folder_of(name, mark).parts[-3:])
  prepared.write(folder, examples, class_names, provenance=provenance)
  folder.rename(output)


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[Path]:
  """Gives an empty folder beside ``output`` that is gone afterwards.

  What a killed process left there is removed; one that runs is an error. The
  lock stays beside it, since one that is deleted could be held twice.
  """
  # Absolute, since "." has no name.
  output = output.absolute()
  partial = output.with_name(f".{output.name}.partial")
  lock = filelock.FileLock(output.with_name(f".{output.name}.lock"), timeout=0)
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    if partial.exists():
      shutil.rmtree(partial)
    partial.mkdir()
  except filelock.Timeout as error:
    raise UserError(
      f"Another process is writing output={output}; wait for it."
    ) from error
  except OSError as error:
    lock.release()
    raise UserError(
      f"Cannot write output={output}: {error}. Choose another."
    ) from error
  try:
    yield partial
  finally:
    shutil.rmtree(partial)
    lock.release()
