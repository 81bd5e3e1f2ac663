"""Tests of tables, on results made up so that they can be checked by hand."""

import json
from pathlib import Path

import pytest

from synguide_jax import workdir
from synguide_jax.analysis import table
from synguide_jax.errors import UserError
from tests.analysis import made_up


def _rows(*folders):
  (only,) = table.gather(folders)
  return {Path(row["workdir"]).name: row for row in only["rows"]}


def test_paired_differences_by_hand():
  rows = _rows(
    made_up.write("aug", [0.90, 0.80, 0.70], method="aug"),
    made_up.write("balanced", [0.91, 0.80, 0.70], method="balanced"),
    made_up.write("guided", [0.93, 0.82, 0.71]),
  )
  # 3, 2 and 1 points: mean 2, standard deviation 1, over sqrt(3).
  assert rows["guided"]["difference"]["aug"] == {
    "mean": pytest.approx(2 * made_up.POINT),
    "standard_error": pytest.approx(made_up.POINT / 3**0.5),
    "n": 3,
  }
  # 2, 2, 1: mean 5/3, deviations 1/3, 1/3, -2/3, so variance 1/3.
  assert rows["guided"]["difference"]["balanced"] == {
    "mean": pytest.approx(5 / 3 * made_up.POINT),
    "standard_error": pytest.approx(made_up.POINT / 3),
    "n": 3,
  }
  assert set(rows["aug"]["difference"]) == {"balanced"}
  assert set(rows["balanced"]["difference"]) == {"aug"}
  assert rows["guided"]["accuracy"]["mean"] == pytest.approx(0.82)


def test_only_common_runs_are_paired():
  rows = _rows(
    made_up.write("aug", [0.5, 0.6, None, 0.8], method="aug"),  # runs 0 to 3
    made_up.write("guided", [0.64, 0.9, 0.84, 0.1], first_run=1),  # runs 1 to 4
  )
  # Runs 1 (+4 points) and 3 (+4); run 2 diverged with aug.
  assert rows["guided"]["difference"]["aug"] == {
    "mean": pytest.approx(4 * made_up.POINT),
    "standard_error": pytest.approx(0, abs=1e-12),
    "n": 2,
  }


def test_one_common_run_has_no_error_and_none_no_difference():
  rows = _rows(
    made_up.write("aug", [0.5, 0.6], method="aug"),
    made_up.write("one", [0.7, 0.9], first_run=1, num_steps=1),
    made_up.write("none", [0.7, 0.9], first_run=2, num_steps=2),
    made_up.write("excluded", [None, None], num_steps=3),
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
    made_up.write("aug", [0.5, 0.6], method="aug"),
    made_up.write("guided", [0.7, 0.8]),
    made_up.write("all", [0.9, 0.9], method="real", data__shots=-1),
  )
  assert rows["all"]["label"] == "real, data.shots=-1"
  assert rows["all"]["difference"] == {}
  assert rows["guided"]["difference"]["aug"]["n"] == 2


def test_another_synthetic_set_is_another_table():
  tables = table.gather(
    [
      made_up.write("aug", [0.5], method="aug"),
      made_up.write("weak", [0.5], data__synthetic="folder:weak"),
      made_up.write("none", [0.5], method="real", data__synthetic=""),
      made_up.write("guided", [0.5]),
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
    [
      made_up.write("aug", [0.5], method="aug"),
      made_up.write("guided", [0.6], seed=1),
    ]
  )
  assert [len(t["rows"]) for t in tables] == [1, 1]
  assert tables[1]["rows"][0]["difference"] == {}


def test_the_reference_is_the_method_and_nothing_else():
  rows = _rows(
    # Sorted before the plain one.
    made_up.write("a", [0.1, 0.1], method="aug", model__init="letters"),
    made_up.write("aug", [0.5, 0.5], method="aug"),
    made_up.write("guided", [0.6, 0.6]),
  )
  assert "reference" not in rows["a"]
  assert rows["guided"]["difference"]["aug"]["mean"] == pytest.approx(0.1)
  assert rows["a"]["difference"]["aug"]["mean"] == pytest.approx(-0.4)


def test_labels_name_switches_and_unusual_fields():
  switches = {"guidance__pg_real": False, "guidance__pg_synthetic": False}
  rows = _rows(
    made_up.write("aug", [0.5], method="aug"),
    made_up.write("all", [0.5]),
    made_up.write("rg", [0.5], **switches),
    made_up.write("pg", [0.5], guidance__rg=False),
    made_up.write("off", [0.5], guidance__rg=False, **switches),
    made_up.write("random", [0.5], pretrained__weights="random", num_steps=7),
    made_up.write("quiet", [0.5, 0.5], eval_batch_size=1, checkpoint_every=3),
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
    made_up.write("aug", [0.5], method="aug"),
    made_up.write("guided", [0.5, 0.5], rates=[0.25, None]),
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
      made_up.write("aug", [0.5, 0.6], method="aug"),
      made_up.write("guided", [0.53, 0.61], rates=[0.125]),
      made_up.write("diverged", [None], method="fake"),
      made_up.write("weak", [0.5], data__synthetic="folder:weak"),
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
  header, _, diverged, aug, guided = (_cells(line) for line in blocks[0])
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
    "**57.00 +- 0.50**",
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
    made_up.write(
      "aug", [0.9, 0.8], method="aug", select_metric="balanced_accuracy"
    ),
    made_up.write("guided", [0.93, 0.82], select_metric="balanced_accuracy"),
  )
  difference = rows["guided"]["difference"]["aug"]["mean"]
  assert difference == pytest.approx(2.5 * made_up.POINT / 2)
  tables = table.gather([Path(row["workdir"]) for row in rows.values()])
  assert "| vs aug (paired, balanced) |" in table.markdown(tables)


def test_images_in_memory_and_streamed_are_one_table():
  rows = _rows(
    made_up.write("aug", [0.5], method="aug", data__feed="stream"),
    made_up.write("guided", [0.6]),
  )
  assert rows["aug"]["label"] == "aug"


def test_several_sources_in_a_title():
  both = "('npz:a@2', 'npz:b@0.5')"
  (only,) = table.gather([made_up.write("aug", [0.5], data__synthetic=both)])
  assert only["title"] == "digits with 2 npz:a + 0.5 npz:b"


def _bars(line):
  return [position for position, letter in enumerate(line) if letter == "|"]


def _cells(line):
  return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_of_other_shots_are_paired_among_themselves():
  rows = _rows(
    made_up.write("aug", [0.5, 0.5], method="aug"),
    made_up.write("guided", [0.6, 0.8], method="guided"),
    made_up.write("guided5", [0.4, 0.6], method="guided", data__shots=5),
    made_up.write("aug5", [0.3, 0.3], method="aug", data__shots=5),
  )
  assert rows["guided5"]["difference"]["aug"]["mean"] == pytest.approx(0.2)
  assert rows["guided"]["difference"]["aug"]["mean"] == pytest.approx(0.2)
  assert "data.shots=5" in rows["aug5"]["label"]


def test_of_equally_common_values_the_default_is_usual():
  letters = {"model__init": "train:configs/letters.py"}
  rows = _rows(
    made_up.write("guided", [0.6, 0.8], method="guided", **letters),
    made_up.write("aug", [0.5, 0.5], method="aug"),
  )
  assert rows["aug"]["label"] == "aug"
  assert rows["guided"]["difference"]["aug"]["mean"] == pytest.approx(0.2)


def test_the_conflict_rate_is_of_steps_and_of_runs_that_count():
  folder = made_up.write("guided", [0.6, None], method="guided")
  results = workdir.results(folder)
  results["diverged"] = {"1": 2}
  results["history"] = [
    {"step": 3, "train": {"conflict_rate": [0.0, 1.0]}},
    {"step": 4, "train": {"conflict_rate": [1.0, None]}},
  ]
  workdir.write_json(folder / "results.json", results)
  assert _rows(folder)["guided"]["conflict_rate"] == pytest.approx(0.25)


def test_the_best_of_the_same_shots_and_initialisation():
  letters = {"model__init": "train:configs/letters.py"}
  rows = _rows(
    made_up.write("fake", [0.6], method="fake"),
    made_up.write("aug", [0.7], method="aug"),
    # As good, to a hundredth of a percent.
    made_up.write("balanced", [0.70004], method="balanced"),
    made_up.write("guided", [0.69994]),
    made_up.write("diverged", [None], method="adda"),
    # The only one that begins from letters with ten shots.
    made_up.write("letters", [0.8], **letters),
    made_up.write("fake5", [0.3], method="fake", data__shots=5),
    made_up.write("aug5", [0.2], method="aug", data__shots=5),
    made_up.write("all", [0.9], method="real", data__shots=-1),
  )
  assert {n for n, row in rows.items() if row["best"]} == {
    *("aug", "balanced", "fake5"),
  }
  assert [n for n, row in rows.items() if row["upper_bound"]] == ["all"]
  assert list(rows) == [
    *("fake", "fake5", "aug", "aug5", "balanced", "diverged"),
    *("guided", "letters", "all"),
  ]


def test_all_real_images_are_no_upper_bound_where_others_have_them_too():
  rows = _rows(
    made_up.write("real", [0.9], method="real", data__shots=-1),
    made_up.write("aug", [0.8], method="aug", data__shots=-1),
  )
  assert rows["real"]["best"] and not rows["real"]["upper_bound"]


def test_the_reference_begins_as_the_row_does_if_there_is_one():
  letters = {"model__init": "train:configs/letters.py"}
  rows = _rows(
    made_up.write("aug", [0.5], method="aug"),
    made_up.write("balanced", [0.55], method="balanced"),
    made_up.write("guided", [0.6]),
    made_up.write("aug_letters", [0.7], method="aug", **letters),
    made_up.write("guided_letters", [0.75], **letters),
  )
  of_letters = rows["guided_letters"]["difference"]
  assert of_letters["aug"]["mean"] == pytest.approx(0.05)
  assert of_letters["balanced"]["mean"] == pytest.approx(0.2)
  assert rows["guided"]["difference"]["aug"]["mean"] == pytest.approx(0.1)


def test_equal_titles_say_what_differs():
  tables = table.gather(
    [
      made_up.write("aug", [0.5], method="aug"),
      made_up.write("seed", [0.6], seed=1),
      made_up.write("network", [0.6], model__name="mlp"),
      made_up.write("weak", [0.6], data__synthetic="folder:weak"),
    ]
  )
  start = "digits with folder:synthetic, model.name="
  assert [t["title"] for t in tables] == [
    f"{start}cifar_resnet18, seed=0",
    f"{start}cifar_resnet18, seed=1",
    f"{start}mlp, seed=0",
    "digits with folder:weak",
  ]


def test_what_older_results_lack_is_the_default():
  old = made_up.write("old", [0.5], method="aug")
  results = workdir.results(old)
  del results["config"]["microbatches"], results["config"]["data"]["folds"]
  workdir.write_json(old / "results.json", results)
  rows = _rows(old, made_up.write("new", [0.6]))
  assert [row["label"] for row in rows.values()] == ["aug", "RG + PG-R + PG-F"]


def test_planned_experiments_are_missing_rows_of_their_table():
  config = workdir.results(made_up.write("guided", [0.5], num_steps=3))
  planned = {"workdir": "runs/asg", "command": "python asg"}
  config["config"]["method"] = "asg"
  (only,) = table.gather(
    [Path("runs/guided"), made_up.write("aug", [0.4], method="aug")],
    [{**planned, "config": config["config"]}],
  )
  (missing,) = only["missing"]
  assert missing.items() >= {"label": "asg", **planned}.items()
  assert len(only["rows"]) == 2
  text = table.markdown([only])
  (line,) = [x for x in text.splitlines() if x.startswith("| asg")]
  assert _cells(line)[1] == "not run"
  assert "Not run (1):\n\n```sh\npython asg\n```" in text
