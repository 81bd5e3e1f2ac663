"""What may make a result too good: leaks, and files that give classes away."""

from typing import NamedTuple, Protocol

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# Half way between guessing and certainty. Of sides drawn alike, 3 in 100 reach
# it by chance with 10 files each, and hardly any with 30.
SHORTCUT_ACCURACY = 0.75
# More files a side would not make the estimate more useful.
_MAX_FILES = 2_000
# Fewer a side are too few for five folds to say anything.
_MIN_FILES = 10


def find_leaks(
  hashes: np.ndarray, held_out: np.ndarray, others: np.ndarray
) -> np.ndarray:
  """Finds images that are exact duplicates of held-out ones.

  Args:
    hashes: Hash of every image's pixels, uint64 ``[N]``.
    held_out: Indices of validation or test images.
    others: Indices of the images they are compared with.

  Returns:
    Those of ``others``, in their order.
  """
  return others[np.isin(hashes[others], hashes[held_out])]


def find_copies(hashes: np.ndarray, indices: np.ndarray) -> np.ndarray:
  """Finds images that are exact duplicates of an earlier one among them.

  Args:
    hashes: Hash of every image's pixels, uint64 ``[N]``.
    indices: Indices of the images that are compared with each other.

  Returns:
    Those of ``indices`` that are not the first of their content, in order.
  """
  first = np.unique(hashes[indices], return_index=True)[1]
  return np.delete(indices, first)


class FileStatistics(Protocol):
  """What is known of a set's files without their pixels.

  Attributes:
    formats: Such as ``"JPEG"`` or ``"PNG"``, str ``[N]``.
    widths: int ``[N]``, pixels.
    heights: int ``[N]``, pixels.
    quantization: Mean of a JPEG's luminance quantisation table, 0 for other
      formats, float32 ``[N]``.
  """

  formats: np.ndarray
  widths: np.ndarray
  heights: np.ndarray
  quantization: np.ndarray


class Shortcut(NamedTuple):
  """How well files tell real from synthetic, and by which statistics."""

  accuracy: float
  message: str


def file_shortcut(
  real: FileStatistics, synthetic: FileStatistics, *, seed: int = 0
) -> Shortcut | None:
  """Tells whether real and synthetic files differ beside their content.

  A logistic regression on format, log size and JPEG quantisation is
  cross-validated. It is linear: files of one size between those of the other
  set are not noticed.

  Args:
    real: Statistics of the real files.
    synthetic: Those of the synthetic ones.
    seed: Seed of the subset (at most 2,000 files a side) and of the folds.

  Returns:
    The :class:`Shortcut`, or None where the balanced accuracy is below
    ``SHORTCUT_ACCURACY`` or a side has fewer than 10 files.
  """
  sides = (real, synthetic)
  if min(len(side.formats) for side in sides) < _MIN_FILES:
    return None
  rng = np.random.default_rng(seed)
  rows, target, offset = [], [], 0
  for is_synthetic, side in enumerate(sides):
    total = len(side.formats)
    chosen = rng.choice(total, min(total, _MAX_FILES), replace=False)
    rows.append(offset + chosen)
    target += [is_synthetic] * len(chosen)
    offset += total
  features = {
    name: columns[np.concatenate(rows)]
    for name, columns in _features(sides).items()
  }
  accuracy = _probe(np.hstack(list(features.values())), target, seed)
  if accuracy < SHORTCUT_ACCURACY:
    return None
  alone = {name: _probe(x, target, seed) for name, x in features.items()}
  least = min(SHORTCUT_ACCURACY, max(alone.values()))
  telling = [name for name in alone if alone[name] >= least]
  if "format" in telling and "quantization" in telling:
    telling.remove("quantization")  # it is 0 by the format
  real_is, synthetic_is = (
    ", ".join(_DESCRIBE[name](side) for name in telling) for side in sides
  )
  return Shortcut(
    accuracy,
    "files can be told apart without looking at their content (balanced "
    f"accuracy {accuracy:.2f}): real are {real_is}; synthetic are "
    f"{synthetic_is}. A classifier may learn this instead of the content; "
    "store both alike.",
  )


def _features(sides: tuple[FileStatistics, ...]) -> dict[str, np.ndarray]:
  """Features of all files by statistic, ``[N, D]`` each."""

  def column(name):
    return np.concatenate([getattr(side, name) for side in sides])[:, None]

  formats = column("formats")
  return {
    "format": (formats == np.unique(formats)).astype(np.float64),
    "size": np.log(np.hstack([column("widths"), column("heights")])),
    "quantization": column("quantization").astype(np.float64),
  }


def _probe(features: np.ndarray, target: list[int], seed: int) -> float:
  """Cross-validated balanced accuracy of a linear classifier."""
  scores = cross_val_score(
    make_pipeline(
      StandardScaler(),
      LogisticRegression(class_weight="balanced", max_iter=1_000),
    ),
    features,
    target,
    scoring="balanced_accuracy",
    cv=StratifiedKFold(5, shuffle=True, random_state=seed),
  )
  return float(scores.mean())


def _describe_format(side: FileStatistics) -> str:
  formats, counts = np.unique(side.formats, return_counts=True)
  share = counts.max() / counts.sum()
  return f"{formats[counts.argmax()]} ({share:.0%})".replace("%", " %")


def _describe_size(side: FileStatistics) -> str:
  sizes = np.stack([side.widths, side.heights])
  width, height = np.median(sizes, axis=1)
  vary = (sizes != sizes[:, :1]).any()
  return f"{'about ' if vary else ''}{width:.0f}x{height:.0f} px"


def _describe_quantization(side: FileStatistics) -> str:
  mean = float(np.median(side.quantization))
  return f"quantised by {mean:.1f} (JPEG, mean of the table)"


_DESCRIBE = {
  "format": _describe_format,
  "size": _describe_size,
  "quantization": _describe_quantization,
}
