"""Results of many workdirs as one table, with paired differences.

Runs of one number share their real images, initial weights and validation
images over all methods, so methods are compared run by run: the standard error
of the mean difference is far smaller than the spread of either.
"""

import collections
from collections.abc import Mapping, Sequence
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from synguide_jax import config as config_lib
from synguide_jax import paper, workdir
from synguide_jax.data import sources

REFERENCES = ("aug", "balanced")

# Fields by which rows of one table may differ and still not be told apart.
_SILENT = (
  *("num_runs", "first_run", "eval_batch_size", "checkpoint_every"),
  *("runs_mode", "mesh.runs", "mesh.split"),
)
# Of the section data; images are the same in memory and streamed.
_FEED = ("feed", "resident_share", "num_workers")
# What rows of one table may do differently with the same images.
_AUGMENTATION = (
  "padding",
  "crop",
  "min_crop_area",
  "flip",
  "randaugment_layers",
  "randaugment_magnitude",
)
_SWITCHES = {
  "guidance.rg": "RG",
  "guidance.pg_real": "PG-R",
  "guidance.pg_synthetic": "PG-F",
}


def gather(folders: Sequence[Path]) -> list[dict[str, Any]]:
  """Gathers finished workdirs into tables, one for each pair of sets.

  Args:
    folders: Workdirs; those without results.json are left out.

  Returns:
    Tables as plain data: ``title``, ``rows``, and whether differences are of
    ``balanced`` accuracy throughout. A row has ``label``,
    ``workdir``, ``accuracy`` and ``balanced_accuracy`` (of the test images, or
    of the validation images where there are none), ``synthetic`` and
    ``conflict_rate`` if there are any, ``seconds`` of training, and for each of
    ``REFERENCES`` the paired ``difference`` to it, in the metric of
    ``config.select_metric``: ``mean``, ``standard_error`` and ``n``.
  """
  tables = collections.defaultdict(list)
  for folder in folders:
    if (results := workdir.results(Path(folder))) is not None:
      data = dict(results["config"]["data"])
      for field in ("shots", *_FEED, *_AUGMENTATION):
        data.pop(field, None)
      key = json.dumps([data, results["config"]["seed"]], sort_keys=True)
      tables[key].append((str(folder), results))
  return [_table(entries) for entries in tables.values()]


def _table(entries: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
  flat = [workdir.flatten(results["config"]) for _, results in entries]
  usual = _usual(flat)
  rows, references = [], {}
  for (folder, results), config in zip(entries, flat, strict=True):
    unusual = {
      field: value
      for field, value in config.items()
      if field in usual and usual[field] != json.dumps(value)
    }
    rows.append(
      {
        "label": label(config, unusual),
        "workdir": folder,
        "accuracy": _metric(results, "accuracy"),
        "balanced_accuracy": _metric(results, "balanced_accuracy"),
        "synthetic": results.get("synthetic", {}).get("accuracy"),
        "conflict_rate": _conflict_rate(results),
        "seconds": results["seconds"]["train"],
        "difference": {},
      }
    )
    # What others are compared with is the method, and nothing else.
    if config["method"] in REFERENCES and not unusual.keys() - {"data.shots"}:
      references[config["method"], config["data.shots"]] = results
  for row, (_, results) in zip(rows, entries, strict=True):
    for name in REFERENCES:
      shots = results["config"]["data"]["shots"]
      reference = references.get((name, shots))
      if reference is not None and reference is not results:
        if difference := _difference_of(results, reference):
          row["difference"][name] = difference
  data = entries[0][1]["config"]["data"]
  specs = [
    spec if weight is None else f"{weight:g} {spec}"
    for spec, weight in sources.parse_weights(data["synthetic"])
  ]
  synthetic = " + ".join(specs) or "no synthetic images"
  title = f"{data['real']} with {synthetic}"
  metrics = {config.get("select_metric") for config in flat}
  return {
    "title": title,
    "balanced": metrics == {"balanced_accuracy"},
    "rows": rows,
  }


def _usual(configs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """The most common value, as JSON, of each field that differs.

  Of values that are equally common it is the default one.
  """
  defaults = workdir.flatten(workdir.as_json(config_lib.classifier_defaults()))
  usual = {}
  for field in sorted(set().union(*configs)):
    if field != "method" and field.removeprefix("data.") not in (
      *_SILENT,
      *_FEED,
    ):
      counts = collections.Counter(
        json.dumps(config.get(field)) for config in configs
      )
      if len(counts) > 1:
        default = json.dumps(defaults.get(field))
        usual[field] = max(counts, key=lambda v: (counts[v], v == default))
  return usual


def label(config: Mapping[str, Any], unusual: Mapping[str, Any]) -> str:
  """Names a row: method, or switches of ``guided``, and what is unusual.

  Args:
    config: The flattened config.
    unusual: Those of its fields that are not as in other rows.
  """
  name = config["method"]
  if name == "guided":
    on = [switch for field, switch in _SWITCHES.items() if config[field]]
    name = " + ".join(on) or "guided, all switches off"
  published = paper.PUBLISHED.get(name, {})
  if published and all(
    json.dumps(config[field]) == json.dumps(value)
    for field, value in published.items()
  ):
    name += ", as published"
  else:
    published = {}
  others = [
    f"{field}={value}"
    for field, value in unusual.items()
    if field not in (*_SWITCHES, *published, "method")
  ]
  return ", ".join([name, *others])


def _metric(results: Mapping[str, Any], name: str) -> dict[str, Any]:
  evaluation = results.get("test") or results.get("validation") or {}
  return evaluation.get(name, {"mean": None, "std": None, "n": 0})


def _conflict_rate(results: Mapping[str, Any]) -> float | None:
  """Share of steps that were projected, over the runs that count."""
  shares, weights, before = [], [], 0
  for record in results["history"]:
    rates = record["train"].get("conflict_rate", ())
    for run, rate in zip(results["runs"], rates, strict=False):
      if rate is not None and str(run) not in results.get("diverged", {}):
        shares.append(rate)
        weights.append(record["step"] - before)
    before = record["step"]
  return float(np.average(shares, weights=weights)) if shares else None


def _difference_of(
  results: Mapping[str, Any], reference: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Paired difference over the runs that both have."""

  def by_run(of):
    metric = results["config"].get("select_metric", "accuracy")
    runs = _metric(of, metric).get("runs", ())
    return dict(zip(of["runs"], runs, strict=False))

  ours, theirs = by_run(results), by_run(reference)
  differences = [
    ours[run] - theirs[run]
    for run in ours
    if ours[run] is not None and theirs.get(run) is not None
  ]
  return paired(differences) if differences else None


def paired(differences: Sequence[float]) -> dict[str, Any]:
  """Mean of paired differences and its standard error, std / sqrt(n)."""
  values = np.asarray(differences, np.float64)
  error = None
  if len(values) > 1:
    error = float(values.std(ddof=1) / math.sqrt(len(values)))
  return {
    "mean": float(values.mean()),
    "standard_error": error,
    "n": len(values),
  }


def markdown(tables: Sequence[Mapping[str, Any]]) -> str:
  """Formats what `gather` returned, all shares in percent."""
  blocks = []
  for table in tables:
    header = ["method", "accuracy", "balanced", "n"]
    how = "paired, balanced" if table["balanced"] else "paired"
    header += [f"vs {name} ({how})" for name in REFERENCES]
    header += ["on synthetic", "conflicts", "train s"]
    lines = [[*header], ["---", *["---:"] * (len(header) - 1)]]
    for row in table["rows"]:
      lines.append(
        [
          row["label"],
          _mean_std(row["accuracy"]),
          _mean_std(row["balanced_accuracy"]),
          str(row["accuracy"]["n"]),
          *(_difference(row["difference"].get(n)) for n in REFERENCES),
          _mean_std(row["synthetic"]),
          _percent(row["conflict_rate"]),
          f"{row['seconds']:.1f}",
        ]
      )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table_lines = [
      f"| {' | '.join(map(_pad, line, widths, range(len(line))))} |"
      for line in lines
    ]
    blocks.append("\n".join([f"### {table['title']}", "", *table_lines]))
  note = (
    "Accuracy, and its mean over classes (balanced), in percent, mean +- "
    "standard deviation over n runs; paired "
    "differences in points, mean +- standard error."
  )
  return "\n\n".join([*blocks, note])


def _pad(cell: str, width: int, column: int) -> str:
  """Left-aligns the first column; stretches the rule under the header."""
  if cell in ("---", "---:"):
    return cell.rjust(width, "-")
  return cell.rjust(width) if column else cell.ljust(width)


def _percent(value: float | None) -> str:
  return "" if value is None else f"{100 * value:.1f}"


def _mean_std(summary: Mapping[str, Any] | None) -> str:
  if summary is None or summary["mean"] is None:
    return ""
  spread = "" if summary["std"] is None else f" +- {100 * summary['std']:.2f}"
  return f"{100 * summary['mean']:.2f}{spread}"


def _difference(difference: Mapping[str, Any] | None) -> str:
  if difference is None:
    return ""
  error = difference["standard_error"]
  spread = "" if error is None else f" +- {100 * error:.2f}"
  return f"{100 * difference['mean']:+.2f}{spread}"
