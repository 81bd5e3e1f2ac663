"""Tests of tables, on results made up so that they can be checked by hand."""

import json
from pathlib import Path

import pytest

from synguide_jax import config as config_lib
from synguide_jax import workdir
from synguide_jax.analysis import table
from synguide_jax.errors import UserError

POINT = 0.01


def _write(name, accuracies, *, first_run=0, rates=None, **overrides):
  """Writes the results of a made-up experiment; returns its workdir."""
  config = config_lib.classifier_defaults()
  config = config_lib.override(
    config,
    {
      "data.real": "digits",
      "data.synthetic": "folder:synthetic",
      "data.shots": 10,
      "num_runs": len(accuracies),
      "first_run": first_run,
      **{field.replace("__", "."): value for field, value in overrides.items()},
    },
  )
  inside = [value for value in accuracies if value is not None]
  accuracy = {
    "mean": sum(inside) / len(inside) if inside else None,
    "std": 0.5 * POINT if len(inside) > 1 else None,
    "n": len(inside),
    "runs": accuracies,
  }
  train = {"loss": [1.0]} | ({"conflict_rate": rates} if rates else {})
  folder = Path("runs") / name
  folder.mkdir(parents=True)
  workdir.write_json(
    folder / "results.json",
    {
      "method": config.method,
      "config": workdir.as_json(config),
      "runs": list(range(first_run, first_run + len(accuracies))),
      # Half of it, so that the two cannot be taken for each other.
      "test": {"accuracy": accuracy, "balanced_accuracy": _halved(accuracy)},
      "synthetic": {"accuracy": {"mean": 0.9, "std": None, "n": 1}},
      "history": [{"step": 1, "train": train}],
      "seconds": {"train": 12.34},
    },
  )
  return folder


def _halved(summary):
  return {
    **summary,
    "mean": summary["mean"] and summary["mean"] / 2,
    "runs": [value and value / 2 for value in summary["runs"]],
  }


def _rows(*folders):
  (only,) = table.gather(folders)
  return {Path(row["workdir"]).name: row for row in only["rows"]}


def test_paired_differences_by_hand():
  rows = _rows(
    _write("aug", [0.90, 0.80, 0.70], method="aug"),
    _write("balanced", [0.91, 0.80, 0.70], method="balanced"),
    _write("guided", [0.93, 0.82, 0.71]),
  )
  # 3, 2 and 1 points: mean 2, standard deviation 1, over sqrt(3).
  assert rows["guided"]["difference"]["aug"] == {
    "mean": pytest.approx(2 * POINT),
    "standard_error": pytest.approx(POINT / 3**0.5),
    "n": 3,
  }
  # 2, 2, 1: mean 5/3, deviations 1/3, 1/3, -2/3, so variance 1/3.
  assert rows["guided"]["difference"]["balanced"] == {
    "mean": pytest.approx(5 / 3 * POINT),
    "standard_error": pytest.approx(POINT / 3),
    "n": 3,
  }
  assert set(rows["aug"]["difference"]) == {"balanced"}
  assert set(rows["balanced"]["difference"]) == {"aug"}
  assert rows["guided"]["accuracy"]["mean"] == pytest.approx(0.82)


def test_only_common_runs_are_paired():
  rows = _rows(
    _write("aug", [0.5, 0.6, None, 0.8], method="aug"),  # runs 0 to 3
    _write("guided", [0.64, 0.9, 0.84, 0.1], first_run=1),  # runs 1 to 4
  )
  # Runs 1 (+4 points) and 3 (+4); run 2 diverged with aug.
  assert rows["guided"]["difference"]["aug"] == {
    "mean": pytest.approx(4 * POINT),
    "standard_error": pytest.approx(0, abs=1e-12),
    "n": 2,
  }


def test_one_common_run_has_no_error_and_none_no_difference():
  rows = _rows(
    _write("aug", [0.5, 0.6], method="aug"),
    _write("one", [0.7, 0.9], first_run=1, num_steps=1),
    _write("none", [0.7, 0.9], first_run=2, num_steps=2),
    _write("excluded", [None, None], num_steps=3),
  )
  assert rows["one"]["difference"]["aug"] == {
    "mean": pytest.approx(0.1),
    "standard_error": None,
    "n": 1,
  }
  assert rows["none"]["difference"] == {}
  assert rows["excluded"]["difference"] == {}
  text = table.markdown(table.gather(sorted(Path("runs").iterdir())))
  (line,) = [line for line in text.splitlines() if "num_steps=1" in line]
  assert "| +10.00 |" in " ".join(line.split())


def test_other_shots_are_in_the_table_and_not_paired():
  rows = _rows(
    _write("aug", [0.5, 0.6], method="aug"),
    _write("guided", [0.7, 0.8]),
    _write("all", [0.9, 0.9], method="real", data__shots=-1),
  )
  assert rows["all"]["label"] == "real, data.shots=-1"
  assert rows["all"]["difference"] == {}
  assert rows["guided"]["difference"]["aug"]["n"] == 2


def test_another_synthetic_set_is_another_table():
  tables = table.gather(
    [
      _write("aug", [0.5], method="aug"),
      _write("weak", [0.5], data__synthetic="folder:weak"),
      _write("none", [0.5], method="real", data__synthetic=""),
      _write("guided", [0.5]),
    ]
  )
  assert {t["title"]: [row["label"] for row in t["rows"]] for t in tables} == {
    "digits with folder:synthetic": ["aug", "RG + PG-R + PG-F"],
    "digits with folder:weak": ["RG + PG-R + PG-F"],
    "digits with no synthetic images": ["real"],
  }


def test_another_seed_is_another_table():
  # Its runs of one number have other shots.
  tables = table.gather(
    [_write("aug", [0.5], method="aug"), _write("guided", [0.6], seed=1)]
  )
  assert [len(t["rows"]) for t in tables] == [1, 1]
  assert tables[1]["rows"][0]["difference"] == {}


def test_the_reference_is_the_method_and_nothing_else():
  rows = _rows(
    # Sorted before the plain one.
    _write("a", [0.1, 0.1], method="aug", model__init="letters"),
    _write("aug", [0.5, 0.5], method="aug"),
    _write("guided", [0.6, 0.6]),
  )
  assert "reference" not in rows["a"]
  assert rows["guided"]["difference"]["aug"]["mean"] == pytest.approx(0.1)
  assert rows["a"]["difference"]["aug"]["mean"] == pytest.approx(-0.4)


def test_labels_name_switches_and_unusual_fields():
  switches = {"guidance__pg_real": False, "guidance__pg_synthetic": False}
  rows = _rows(
    _write("aug", [0.5], method="aug"),
    _write("all", [0.5]),
    _write("rg", [0.5], **switches),
    _write("pg", [0.5], guidance__rg=False),
    _write("off", [0.5], guidance__rg=False, **switches),
    _write("random", [0.5], pretrained__weights="random", num_steps=7),
    _write("quiet", [0.5, 0.5], eval_batch_size=1, checkpoint_every=3),
  )
  assert {name: row["label"] for name, row in rows.items()} == {
    "aug": "aug",
    "all": "RG + PG-R + PG-F",
    "rg": "RG",
    "pg": "PG-R + PG-F",
    "off": "guided, all switches off",
    "random": "RG + PG-R + PG-F, num_steps=7, pretrained.weights=random",
    "quiet": "RG + PG-R + PG-F",
  }


def test_conflict_rate_is_the_mean_over_steps_and_runs():
  rows = _rows(
    _write("aug", [0.5], method="aug"),
    _write("guided", [0.5, 0.5], rates=[0.25, None]),
  )
  assert rows["aug"]["conflict_rate"] is None
  assert rows["guided"]["conflict_rate"] == 0.25


def test_unfinished_and_damaged_workdirs():
  Path("runs/unfinished").mkdir(parents=True)
  assert table.gather([Path("runs/unfinished"), Path("runs/missing")]) == []
  Path("runs/unfinished/results.json").write_text('{"method"')
  with pytest.raises(UserError, match="runs/unfinished/results.json"):
    table.gather([Path("runs/unfinished")])


def test_markdown():
  tables = table.gather(
    [
      _write("aug", [0.5, 0.6], method="aug"),
      _write("guided", [0.53, 0.61], rates=[0.125]),
      _write("diverged", [None], method="fake"),
      _write("weak", [0.5], data__synthetic="folder:weak"),
    ]
  )
  assert json.loads(json.dumps(tables)) == tables
  text = table.markdown(tables)
  blocks = [
    [line for line in block.splitlines() if line.startswith("|")]
    for block in text.split("###")[1:]
  ]
  assert [len(block) for block in blocks] == [5, 3]
  for block in blocks:
    # Columns of equal width: the bars are below each other.
    assert len({tuple(_bars(line)) for line in block}) == 1
  header, _, aug, guided, diverged = (_cells(line) for line in blocks[0])
  assert header == [
    "method",
    "accuracy",
    "balanced",
    "n",
    "vs aug (paired)",
    "vs balanced (paired)",
    "on synthetic",
    "conflicts",
    "train s",
  ]
  assert aug == [
    *("aug", "55.00 +- 0.50", "27.50 +- 0.50", "2"),
    *("", "", "90.00", "", "12.3"),
  ]
  # 3 and 1 points: mean 2, standard error sqrt(2) / sqrt(2).
  assert guided == [
    "RG + PG-R + PG-F",
    "57.00 +- 0.50",
    "28.50 +- 0.50",
    "2",
    "+2.00 +- 1.00",
    "",
    "90.00",
    "12.5",
    "12.3",
  ]
  assert diverged[:5] == ["fake", "", "", "0", ""]


def test_differences_are_in_the_metric_that_selects():
  rows = _rows(
    _write("aug", [0.9, 0.8], method="aug", select_metric="balanced_accuracy"),
    _write("guided", [0.93, 0.82], select_metric="balanced_accuracy"),
  )
  difference = rows["guided"]["difference"]["aug"]["mean"]
  assert difference == pytest.approx(2.5 * POINT / 2)
  tables = table.gather([Path(row["workdir"]) for row in rows.values()])
  assert "| vs aug (paired, balanced) |" in table.markdown(tables)


def test_images_in_memory_and_streamed_are_one_table():
  rows = _rows(
    _write("aug", [0.5], method="aug", data__feed="stream"),
    _write("guided", [0.6]),
  )
  assert rows["aug"]["label"] == "aug"


def test_several_sources_in_a_title():
  both = "('npz:a@2', 'npz:b@0.5')"
  (only,) = table.gather([_write("aug", [0.5], data__synthetic=both)])
  assert only["title"] == "digits with 2 npz:a + 0.5 npz:b"


def _bars(line):
  return [position for position, letter in enumerate(line) if letter == "|"]


def _cells(line):
  return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_of_other_shots_are_paired_among_themselves():
  rows = _rows(
    _write("aug", [0.5, 0.5], method="aug"),
    _write("guided", [0.6, 0.8], method="guided"),
    _write("guided5", [0.4, 0.6], method="guided", data__shots=5),
    _write("aug5", [0.3, 0.3], method="aug", data__shots=5),
  )
  assert rows["guided5"]["difference"]["aug"]["mean"] == pytest.approx(0.2)
  assert rows["guided"]["difference"]["aug"]["mean"] == pytest.approx(0.2)
  assert "data.shots=5" in rows["aug5"]["label"]


def test_of_equally_common_values_the_default_is_usual():
  letters = {"model__init": "train:configs/letters.py"}
  rows = _rows(
    _write("guided", [0.6, 0.8], method="guided", **letters),
    _write("aug", [0.5, 0.5], method="aug"),
  )
  assert rows["aug"]["label"] == "aug"
  assert rows["guided"]["difference"]["aug"]["mean"] == pytest.approx(0.2)


def test_the_conflict_rate_is_of_steps_and_of_runs_that_count():
  folder = _write("guided", [0.6, None], method="guided")
  results = workdir.results(folder)
  results["diverged"] = {"1": 2}
  results["history"] = [
    {"step": 3, "train": {"conflict_rate": [0.0, 1.0]}},
    {"step": 4, "train": {"conflict_rate": [1.0, None]}},
  ]
  workdir.write_json(folder / "results.json", results)
  assert _rows(folder)["guided"]["conflict_rate"] == pytest.approx(0.25)
