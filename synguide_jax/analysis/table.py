"""Results of many workdirs as tables: what is in them, and their formats."""

import collections
from collections.abc import Iterable, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from synguide_jax import config as config_lib
from synguide_jax import workdir
from synguide_jax.analysis import table_rows
from synguide_jax.analysis.table_formats import latex, long_csv, markdown
from synguide_jax.analysis.table_rows import label, paired, REFERENCES
from synguide_jax.data import sources

__all__ = [
  "gather",
  "label",
  "latex",
  "long_csv",
  "markdown",
  "paired",
  "REFERENCES",
]

# What rows of one table may do differently with the same images.
_AUGMENTATION = (
  "padding",
  "crop",
  "min_crop_area",
  "flip",
  "randaugment_layers",
  "randaugment_magnitude",
)


def gather(
  folders: Sequence[Path], planned: Iterable[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
  """Gathers finished workdirs into tables.

  A table has the experiments on the same images, with networks of one name.

  Args:
    folders: Workdirs; those without results.json are left out.
    planned: Experiments that are not finished, of which the tables say so:
      ``config``, ``workdir`` and ``command``, the shell's line that runs it.

  Returns:
    Tables as plain data: ``title``, ``fields`` (the config's, flattened, that
    all rows share and tables differ by), whether differences are of
    ``balanced`` accuracy throughout, ``rows``, and ``missing`` rows, which have
    a ``command`` in place of figures. All rows have ``label`` and ``name`` (the
    label without shots and initialisation), ``method``, ``shots``,
    ``initialisation``, ``workdir``, and whether it is an ``upper_bound``, of
    all real images where others have fewer. Finished ones have

    ``accuracy`` and ``balanced_accuracy``
      of the test images, or of the validation images where there are none;
    ``best``
      whether it is the best of those with the same shots and initialisation,
      upper bounds left out, to a hundredth of a percent;
    ``synthetic``, ``conflict_rate``
      if there are any;
    ``seconds``
      of training;
    ``difference``
      for each of ``REFERENCES`` the paired difference to it, in the metric of
      ``config.select_metric``: ``mean``, ``standard_error`` and ``n``. The
      reference has the same shots, and the same initialisation if there is
      such a one, or else the most common one;
    ``paper``
      the paper's ``value`` for the same setting and what was ``matched``, or
      None; see `paper_values.find`.
  """
  defaults = workdir.flatten(workdir.as_json(config_lib.classifier_defaults()))
  tables = collections.defaultdict(list)

  def add(config, entry):
    # What files of older versions lack is as it is by default.
    entry["config"] = defaults | workdir.flatten(config)
    tables[json.dumps(_fields(entry["config"]))].append(entry)

  for folder in folders:
    if (results := workdir.results(Path(folder))) is not None:
      add(results["config"], {"workdir": str(folder), "results": results})
  for cell in planned:
    add(workdir.as_json(cell["config"]), {**cell, "results": None})
  made = [_table(json.loads(k), entries) for k, entries in tables.items()]
  _tell_titles_apart(made)
  return made


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """What all rows of a table have in common."""
  apart = ("shots", *table_rows.FEED, *_AUGMENTATION)
  return {
    field: value
    for field, value in sorted(config.items())
    if field in ("seed", "model.name")
    or (field.startswith("data.") and field[len("data.") :] not in apart)
  }


def _table(
  fields: dict[str, Any], entries: Sequence[dict[str, Any]]
) -> dict[str, Any]:
  common = table_rows.usual([entry["config"] for entry in entries])
  for entry in entries:
    entry["unusual"] = table_rows.unusual(entry["config"], common)
    entry["row"] = table_rows.row_of(
      entry["config"], entry["unusual"], str(entry["workdir"])
    )
  few = any(entry["row"]["shots"] != -1 for entry in entries)
  for entry in entries:
    row = entry["row"]
    if few and row["method"] == "real" and row["shots"] == -1:
      row |= {"upper_bound": True, "name": f"{row['name']}, data.shots=-1"}
  finished = [entry for entry in entries if entry["results"] is not None]
  for entry in finished:
    entry["row"] |= table_rows.figures(entry["config"], entry["results"])
  metrics = {entry["config"]["select_metric"] for entry in entries}
  _compare(finished, common)
  balanced = metrics == {"balanced_accuracy"}
  rows = [entry["row"] for entry in finished]
  _mark_best(rows, "balanced_accuracy" if balanced else "accuracy")
  missing = [
    entry["row"] | {"command": entry["command"]}
    for entry in entries
    if entry["results"] is None
  ]
  return {
    "title": _title(fields),
    "fields": fields,
    "balanced": balanced,
    "rows": sorted(rows, key=table_rows.order),
    "missing": sorted(missing, key=table_rows.order),
  }


def _compare(
  finished: Sequence[dict[str, Any]], common: Mapping[str, str]
) -> None:
  """Adds the paired differences to the rows."""
  references = {}
  for entry in finished:
    row = entry["row"]
    # What others are compared with is the method, and nothing else.
    if not entry["unusual"].keys() - set(table_rows.SETTING):
      key = row["method"], row["shots"]
      references[*key, row["initialisation"]] = entry["results"]
      if "model.init" not in entry["unusual"]:
        references[*key, None] = entry["results"]
  for entry in finished:
    row, results = entry["row"], entry["results"]
    for name in REFERENCES:
      for init in (row["initialisation"], None):
        reference = references.get((name, row["shots"], init))
        if reference is not None and reference is not results:
          if difference := table_rows.difference(results, reference):
            row["difference"][name] = difference
          break


def _mark_best(rows: Sequence[dict[str, Any]], metric: str) -> None:
  columns = collections.defaultdict(list)
  for row in rows:
    if not row["upper_bound"] and row[metric]["mean"] is not None:
      columns[row["shots"], row["initialisation"]].append(row)
  for column in columns.values():
    shown = [round(100 * row[metric]["mean"], 2) for row in column]
    for row, value in zip(column, shown, strict=True):
      # One alone is the best of nothing.
      row["best"] = len(column) > 1 and value == max(shown)


def _title(fields: Mapping[str, Any]) -> str:
  specs = [
    spec if weight is None else f"{weight:g} {spec}"
    for spec, weight in sources.parse_weights(fields["data.synthetic"])
  ]
  synthetic = " + ".join(specs) or "no synthetic images"
  return f"{fields['data.real']} with {synthetic}"


def _tell_titles_apart(tables: Sequence[dict[str, Any]]) -> None:
  """Adds to equal titles the fields that differ."""
  same = collections.defaultdict(list)
  for table in tables:
    same[table["title"]].append(table)
  for group in same.values():
    for field in group[0]["fields"]:
      values = [table["fields"][field] for table in group]
      if any(value != values[0] for value in values):
        for table, value in zip(group, values, strict=True):
          table["title"] += f", {field}={value}"
