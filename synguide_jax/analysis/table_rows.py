"""A row of a table of results: its name, its figures, what it compares with.

Runs of one number share their real images, initial weights and validation
images over all methods, so methods are compared run by run: the standard error
of the mean difference is far smaller than the spread of either.
"""

import collections
from collections.abc import Mapping, Sequence
import json
import math
from typing import Any

import numpy as np

from synguide_jax import config as config_lib
from synguide_jax import paper, workdir
from synguide_jax.analysis import paper_values

REFERENCES = ("aug", "balanced")
# What tells the columns of a table of the paper apart, within a set of images.
SETTING = ("data.shots", "model.init")

# The order of the paper's tables, and what is beside them.
_ORDER = (
  *("real", "fake", "adp", "aug", "balanced", "weighted", "linear_probe"),
  *("finetune", "adda", "dada", "dann", "ltda", "asg", "csg", "a_gem"),
)
_GUIDED = (
  *("PG-F", "PG-R", "PG-R + PG-F"),
  *("RG", "RG + PG-R", "RG + PG-F", "RG + PG-R + PG-F"),
)
# Fields by which rows of one table may differ and still not be told apart.
_SILENT = (
  *("num_runs", "first_run", "eval_batch_size", "checkpoint_every"),
  *("runs_mode", "steps_per_dispatch", "mesh.runs", "mesh.split"),
)
# Of the section data; images are the same in memory and streamed.
FEED = ("feed", "resident_share", "num_workers")
_SWITCHES = {
  "guidance.rg": "RG",
  "guidance.pg_real": "PG-R",
  "guidance.pg_synthetic": "PG-F",
}


def usual(configs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """The most common value, as JSON, of each field that differs.

  Of values that are equally common it is the default one.
  """
  defaults = workdir.flatten(workdir.as_json(config_lib.classifier_defaults()))
  common = {}
  for field in sorted(set().union(*configs)):
    if field != "method" and field.removeprefix("data.") not in (
      *_SILENT,
      *FEED,
    ):
      counts = collections.Counter(
        json.dumps(config.get(field)) for config in configs
      )
      if len(counts) > 1:
        default = json.dumps(defaults.get(field))
        common[field] = max(counts, key=lambda v: (counts[v], v == default))
  return common


def unusual(
  config: Mapping[str, Any], common: Mapping[str, str]
) -> dict[str, Any]:
  """Those fields of a flattened config that are not as in `usual`."""
  return {
    field: value
    for field, value in config.items()
    if field in common and common[field] != json.dumps(value)
  }


def label(config: Mapping[str, Any], others: Mapping[str, Any]) -> str:
  """Names a row: method, or switches of ``guided``, and what is unusual.

  Args:
    config: The flattened config.
    others: Those of its fields that are not as in other rows.
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
  fields = [
    f"{field}={value}"
    for field, value in others.items()
    if field not in (*_SWITCHES, *published, "method")
  ]
  return ", ".join([name, *fields])


def initialisation(config: Mapping[str, Any]) -> str:
  """What a network begins from: "scratch", or the spec of its weights."""
  if config["method"] in ("linear_probe", "finetune"):
    return config["pretrained.weights"]
  return config["model.init"]


def order(row: Mapping[str, Any]) -> tuple[bool, int, str, bool]:
  """Where a row stands in its table; upper bounds are below the others."""
  names = (*_ORDER, *_GUIDED)
  first = row["name"].partition(",")[0]
  place = names.index(first) if first in names else len(names)
  pretrained = row["initialisation"] != "scratch"
  return row["upper_bound"], place, row["name"], pretrained


def row_of(
  config: Mapping[str, Any], others: Mapping[str, Any], folder: str
) -> dict[str, Any]:
  """What is known of a row before it has results.

  Args:
    config: The flattened config.
    others: Those of its fields that are not as in other rows.
    folder: Its workdir.
  """
  outside = {f: v for f, v in others.items() if f not in SETTING}
  return {
    "label": label(config, others),
    # What it is called where columns say the rest.
    "name": label(config, outside),
    "method": config["method"],
    "shots": config["data.shots"],
    "initialisation": initialisation(config),
    "workdir": folder,
    "upper_bound": False,
  }


def figures(
  config: Mapping[str, Any], results: Mapping[str, Any]
) -> dict[str, Any]:
  """The figures of a row that has results; the config is flattened."""
  return {
    "accuracy": metric(results, "accuracy"),
    "balanced_accuracy": metric(results, "balanced_accuracy"),
    "synthetic": results.get("synthetic", {}).get("accuracy"),
    "conflict_rate": _conflict_rate(results),
    "seconds": results["seconds"]["train"],
    "difference": {},
    "paper": paper_values.find(config, results),
    "best": False,
  }


def metric(results: Mapping[str, Any], name: str) -> dict[str, Any]:
  """A metric's summary on the test images, or else on validation images."""
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


def difference(
  results: Mapping[str, Any], reference: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Paired difference over the runs that both have.

  Args:
    results: A row's results.
    reference: Those it is compared with.

  Returns:
    See `paired`; None if no run counts in both. The metric is the one by which
    the row's weights were selected.
  """

  def by_run(of):
    name = results["config"].get("select_metric", "accuracy")
    runs = metric(of, name).get("runs", ())
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
