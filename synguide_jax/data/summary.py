"""What there is to know about a set before it is used, in a few lines."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synguide_jax.data.records import Index
from synguide_jax.data.sources import ImageSet

_FIRST = ("train", "validation", "test")
_MAX_CLASSES = 20  # of more, the extremes are shown besides
_NAMED = 5


def describe(found: ImageSet) -> list[str]:
  """Describes a set by its index and provenance; decodes no image.

  Args:
    found: The set.

  Returns:
    Lines: where it is stored, images by split, formats and sizes, what was
    converted and left out, exact duplicates, and images by class and split.
  """
  names = [n for n in _FIRST if n in found.splits]
  names += [n for n in found.splits if n not in _FIRST]
  indices = {name: found.splits[name].index for name in names}
  facts = {
    "stored in": str(next(iter(found.splits.values())).folder),
    "images": _counts({name: len(index) for name, index in indices.items()}),
    "formats": _counts(Counter(_column(indices, "formats").tolist())),
    "sizes": _sizes(indices),
    "channels": _channels(_column(indices, "grey")),
    **_treatment(found.provenance),
    "exact duplicates": _duplicates(indices),
  }
  lines = [f"  {name}: {text}" for name, text in facts.items()]
  return [found.spec, *lines, *_classes(found.class_names, indices)]


def _column(indices: Mapping[str, Index], name: str) -> np.ndarray:
  return np.concatenate([getattr(index, name) for index in indices.values()])


def _counts(counts: Mapping[str, int]) -> str:
  return ", ".join(f"{n:,} {name}" for name, n in counts.items()) or "none"


def _sizes(indices: Mapping[str, Index]) -> str:
  sizes = np.stack(
    [_column(indices, "widths"), _column(indices, "heights")], axis=1
  )
  different = np.unique(sizes, axis=0)
  if len(different) == 1:
    width, height = different[0]
    return f"all {width}x{height} px"
  return (
    f"{len(different):,} different; shorter side {_extremes(sizes.min(1))} px "
    "(smallest / median / largest)"
  )


def _extremes(values: np.ndarray) -> str:
  return f"{values.min():,} / {np.median(values):,.0f} / {values.max():,}"


def _channels(grey: np.ndarray) -> str:
  kinds = {"grey": int(grey.sum()), "RGB": int((~grey).sum())}
  return _counts({kind: n for kind, n in kinds.items() if n})


def _treatment(provenance: Mapping[str, Any]) -> dict[str, str]:
  """What was done when the set was prepared; nothing is known of others'."""
  lines = {}
  if "converted" in provenance:
    left_out = {
      "of a single colour": provenance["constant"],
      "damaged": provenance["skipped"],
      "not in the table of labels": provenance.get("unlisted", 0),
    }
    lines["converted"] = _counts(provenance["converted"])
    lines["left out"] = _counts({k: n for k, n in left_out.items() if n})
  if "other_files" in provenance:
    lines["other files"] = f"{provenance['other_files']:,}"
  return lines


def _duplicates(indices: Mapping[str, Index]) -> str:
  """How many images are copies of others, and of which."""
  _, content, counts = np.unique(
    _column(indices, "hashes"), return_inverse=True, return_counts=True
  )
  repeated = np.flatnonzero(counts > 1)
  if not len(repeated):
    return "none"
  split = np.repeat(np.arange(len(indices)), [*map(len, indices.values())])
  in_several = {
    "splits": _num_with_several(content, split),
    "classes": _num_with_several(content, _column(indices, "labels")),
  }
  copies = counts[repeated].sum() - len(repeated)
  notes = [f"{n:,} in several {kind}" for kind, n in in_several.items() if n]
  where = f" ({', '.join(notes)})" if notes else ""
  names, pairs = _column(indices, "names"), []
  for number in repeated[:_NAMED]:
    first, second = np.flatnonzero(content == number)[:2]
    pairs.append(f"{names[first]} = {names[second]}")
  more = ", ..." if len(repeated) > _NAMED else ""
  return (
    f"{copies:,} copies of {len(repeated):,} images{where}: "
    f"{', '.join(pairs)}{more}"
  )


def _num_with_several(content: np.ndarray, values: np.ndarray) -> int:
  """Number of contents that occur with more than one value."""
  pairs = np.unique(np.stack([content, values], axis=1), axis=0)
  return int((np.bincount(pairs[:, 0]) > 1).sum())


def _classes(
  class_names: Sequence[str], indices: Mapping[str, Index]
) -> list[str]:
  """Images by class and split; of many classes, first the extremes."""
  labels = {name: index.labels for name, index in indices.items()}
  if all((of_split < 0).all() for of_split in labels.values()):
    return ["  classes: the images have no labels"]
  counts = {
    name: np.bincount(of_split[of_split >= 0], minlength=len(class_names))
    for name, of_split in labels.items()
  }
  table = _table(class_names, counts)
  if len(class_names) <= _MAX_CLASSES:
    return [f"  classes: {len(class_names)}", *table]
  lines = [
    f"  classes: {len(class_names):,}; images of a class (smallest / median / "
    "largest)"
  ]
  for name, of_split in counts.items():
    fewest = np.argsort(of_split, kind="stable")[:_NAMED]
    listed = ", ".join(f"{class_names[c]} {of_split[c]:,}" for c in fewest)
    lines.append(f"    {name} {_extremes(of_split)}; fewest: {listed}")
  return [*lines, *table]


def _table(
  class_names: Sequence[str], counts: Mapping[str, np.ndarray]
) -> list[str]:
  rows = [
    ["", *counts],
    *(
      [name, *(f"{of_split[label]:,}" for of_split in counts.values())]
      for label, name in enumerate(class_names)
    ),
  ]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    f"    {row[0]:<{widths[0]}}"
    + "".join(f"  {x:>{w}}" for x, w in zip(row[1:], widths[1:], strict=True))
    for row in rows
  ]
