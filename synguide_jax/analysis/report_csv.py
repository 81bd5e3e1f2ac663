"""Every number of an analysis, one a line."""

from collections.abc import Iterator, Mapping, Sequence
import csv
import io
import itertools
from typing import Any

FIELDS = ("part", "source", "set", "name", "mean", "std", "n")
_Row = tuple[Any, ...]


def as_csv(analysis: Mapping[str, Any]) -> str:
  """Lists the numbers of all parts that were run.

  Args:
    analysis: As analysis.json holds it.

  Returns:
    A header and a line each: the part; the source, that of the training where
    there is one; what it was measured on; what it is; mean, standard deviation
    and number of runs. Shares, not percent; what is unknown is empty.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(FIELDS)
  parts = (_accuracy, _curves, _losses, _fidelity, _copies, _span, _exchange)
  writer.writerows(itertools.chain.from_iterable(p(analysis) for p in parts))
  return text.getvalue()


def _line(part: str, source: str, of: str, name: str, value: Any) -> _Row:
  """A line of a summary, or of a number that is of no runs."""
  if not isinstance(value, Mapping):
    return part, source, of, name, value, None, None
  return part, source, of, name, value["mean"], value["std"], value["n"]


def _accuracy(analysis: Mapping[str, Any]) -> Iterator[_Row]:
  if not (matrix := analysis.get("accuracy")):
    return
  for source, cells in zip(matrix["trained_on"], matrix["cells"], strict=True):
    for of, cell in zip(matrix["sets"], cells, strict=True):
      name = f"{of['source']}, {of['part']}"
      yield _line("accuracy", source, name, "accuracy", cell)


def _curves(analysis: Mapping[str, Any]) -> Iterator[_Row]:
  for source, entry in analysis.get("curves", {}).items():
    yield _line(
      "curves", source, "training", "saturation step", entry["saturation"]
    )


def _losses(analysis: Mapping[str, Any]) -> Iterator[_Row]:
  for entry in analysis.get("losses", ()):
    for name in ("near_zero", "above_one", "median"):
      yield _line(
        "losses",
        entry["trained_on"],
        entry["evaluated_on"],
        name,
        entry[name],
      )


def _fidelity(analysis: Mapping[str, Any]) -> Iterator[_Row]:
  for source, entry in analysis.get("fidelity", {}).items():
    sets = {"all": entry["overall"], **entry["classes"]}
    for of, numbers in sets.items():
      for name, value in (numbers or {}).items():
        yield _line("fidelity", source, of, name, value)


def _copies(analysis: Mapping[str, Any]) -> Iterator[_Row]:
  for source, entry in analysis.get("copies", {}).items():
    for of in ("samples", "references"):
      for name, value in entry[of].items():
        if not isinstance(value, Mapping):
          yield _line("copies", source, of, name, value)
          continue
        for percent, distance in value.items():
          name = f"distance, {percent}th percentile"
          yield _line("copies", source, of, name, distance)


def _span(analysis: Mapping[str, Any]) -> Iterator[_Row]:
  if not (span := analysis.get("span")):
    return
  networks = {"frozen": span["frozen"], **span["networks"]}
  for name, counts in networks.items():
    mean = mean_distance(span["edges"], counts)
    yield _line("span", name, "pairs", "mean cosine distance", mean)


def mean_distance(
  edges: Sequence[float], counts: Sequence[float]
) -> float | None:
  """Mean of what was counted in bins, up to their width; None of nothing."""
  total = sum(counts)
  centres = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
  weighted = sum(c * n for c, n in zip(centres, counts, strict=True))
  return weighted / total if total else None


def _exchange(analysis: Mapping[str, Any]) -> Iterator[_Row]:
  for source, entry in analysis.get("exchange", {}).items():
    for method, summaries in {"real": entry["real"], **entry["with"]}.items():
      for shots, found in zip(entry["shots"], summaries, strict=True):
        yield _line("exchange", source, f"{shots} shots", method, found)
    if amount := entry.get("amount"):
      pairs = zip(amount["images"], amount["accuracy"], strict=True)
      for images, found in pairs:
        of = f"{amount['shots']} shots, {images} synthetic images"
        yield _line("amount", source, of, amount["method"], found)
    if worth := entry.get("worth"):
      of = f"{worth['shots']} shots"
      for name in ("equivalent", "low", "high"):
        yield _line("worth", source, of, name, worth[name])
