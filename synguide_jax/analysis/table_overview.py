"""Several settings side by side, as in the paper's Tables 2 to 4.

Rows are methods; columns are sets of images, shots and initialisations.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from synguide_jax.analysis import table_rows

# What columns are told apart by, as they are called above them.
_HEADINGS = {
  "data.real": "real images",
  "data.synthetic": "synthetic images",
  "model.name": "network",
  "data.shots": "shots a class",
  "initialisation": "initialisation",
  "figure": "figure",
}


def overview(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
  """Lays out what `table.gather` returned with a column for each setting.

  Args:
    tables: The tables.

  Returns:
    ``headings``, the lines above the columns as (name, text of each column);
    ``common``, what all columns share; ``rows`` as (name, cells), a cell being
    a row of a table, or None if there is none; and ``balanced``, for each
    column. None where there is nothing to lay side by side: one setting, or an
    experiment in which few methods were trained in several.
  """
  columns = _columns(tables)
  if len(columns) < 2:
    return None
  places = {}
  for number, column in enumerate(columns):
    for row in column["rows"]:
      cells = places.setdefault(row["name"], [None] * len(columns))
      # The same twice, say with more runs: all are in the table itself.
      if cells[number] is None or _runs(row) > _runs(cells[number]):
        cells[number] = row
  shared = sum(len([c for c in cells if c]) > 1 for cells in places.values())
  if len(tables) == 1 and 2 * shared <= len(places):
    return None
  headings, common = _headings([column["fields"] for column in columns])
  return {
    "headings": headings,
    "common": common,
    "rows": sorted(places.items(), key=_order),
    "balanced": [column["balanced"] for column in columns],
  }


def _columns(tables: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The settings with more than one method, or all if there is none."""
  columns = []
  for table in tables:
    rows = [*table["rows"], *table["missing"]]
    settings = {
      (row["initialisation"], row["shots"])
      for row in rows
      if not row["upper_bound"]
    }
    # From scratch first, and all real images last.
    for init, shots in sorted(
      settings, key=lambda s: (s[0] != "scratch", s[0], s[1] < 0, s[1])
    ):
      here = [row for row in rows if row["initialisation"] == init]
      kind = "A" if init == "scratch" else "B"
      columns.append(
        {
          "methods": {row["name"] for row in here if row["shots"] == shots},
          # An upper bound is one whatever the shots.
          "rows": [r for r in here if r["shots"] == shots or r["upper_bound"]],
          "balanced": table["balanced"],
          "fields": table["fields"]
          | {
            "data.shots": "all" if shots < 0 else shots,
            "initialisation": f"({kind}) {init}",
            "figure": "balanced accuracy" if table["balanced"] else "accuracy",
          },
        }
      )
  return [c for c in columns if len(c["methods"]) > 1] or columns


def _runs(row: Mapping[str, Any]) -> int:
  """How many runs a row is of; fewer than none if it is not finished."""
  return row["accuracy"]["n"] if "accuracy" in row else -1


def _order(place: tuple[str, Sequence[Mapping[str, Any] | None]]) -> Any:
  return table_rows.order(next(cell for cell in place[1] if cell))


def _headings(
  columns: Sequence[Mapping[str, Any]],
) -> tuple[list[tuple[str, list[str]]], dict[str, str]]:
  """The fields by which columns differ, and what they have in common."""
  headings, common = [], {}
  for field, name in _HEADINGS.items():
    texts = [str(column[field]) or "none" for column in columns]
    if len(set(texts)) > 1:
      headings.append((name, texts))
    else:
      common[name] = texts[0]
  # Such as the seed, where nothing else tells two columns apart.
  for field in columns[0]:
    seen = list(zip(*(texts for _, texts in headings), strict=True))
    texts = [str(column[field]) for column in columns]
    if field not in _HEADINGS and any(
      (seen[i] if seen else ()) == (seen[j] if seen else ())
      and texts[i] != texts[j]
      for i in range(len(columns))
      for j in range(i)
    ):
      headings.append((field, texts))
  return headings, common
