"""Tests of settings laid side by side."""

from synguide_jax.analysis import table
from synguide_jax.analysis.table_overview import overview
from tests.analysis import made_up


def _cells(layout):
  return {
    name: [cell and round(cell["accuracy"]["mean"], 4) for cell in cells]
    for name, cells in layout["rows"]
  }


def test_shots_are_columns():
  layout = overview(
    table.gather(
      [
        made_up.write("aug", [0.5], method="aug"),
        made_up.write("guided", [0.6]),
        made_up.write("aug1", [0.2], method="aug", data__shots=1),
        made_up.write("guided1", [0.3], data__shots=1),
        made_up.write("balanced1", [0.25], method="balanced", data__shots=1),
        made_up.write("all", [0.9], method="real", data__shots=-1),
      ]
    )
  )
  assert layout["headings"] == [("shots a class", ["1", "10"])]
  assert layout["common"]["initialisation"] == "(A) scratch"
  assert layout["common"]["real images"] == "digits"
  assert list(_cells(layout).items()) == [
    ("aug", [0.2, 0.5]),
    ("balanced", [0.25, None]),
    ("RG + PG-R + PG-F", [0.3, 0.6]),
    # One network with all images, whatever the shots of the others.
    ("real, data.shots=-1", [0.9, 0.9]),
  ]


def test_sets_and_initialisations_are_columns():
  folders = []
  for number, synthetic in enumerate(("folder:lsgm", "folder:sgxl")):
    for init in ("train:configs/letters.py", "scratch"):
      changed = {"data__synthetic": synthetic, "model__init": init}
      for method, shots in (("fake", 10), ("aug", 10), ("real", -1)):
        name = f"{number}{init[0]}{method}"
        changed |= {"method": method, "data__shots": shots}
        folders.append(made_up.write(name, [0.5], **changed))
  layout = overview(table.gather(folders))
  letters = "(B) train:configs/letters.py"
  assert layout["headings"] == [
    ("synthetic images", ["folder:lsgm"] * 2 + ["folder:sgxl"] * 2),
    ("initialisation", ["(A) scratch", letters] * 2),
  ]
  names = ["fake", "aug", "real, data.shots=-1"]
  assert _cells(layout) == dict.fromkeys(names, [0.5] * 4)


def test_one_experiment_with_a_few_rows_of_another_setting_has_none():
  tables = table.gather(
    [
      made_up.write("aug", [0.5], method="aug"),
      made_up.write("fake", [0.5], method="fake"),
      made_up.write("guided", [0.6]),
      made_up.write("letters", [0.6], model__init="train:configs/letters.py"),
      made_up.write(
        "probe",
        [0.6],
        method="linear_probe",
        pretrained__weights="train:configs/letters.py",
      ),
    ]
  )
  assert overview(tables) is None
  assert overview([]) is None


def test_what_nothing_else_tells_apart_is_a_heading():
  tables = table.gather(
    [
      made_up.write("aug", [0.5], method="aug"),
      made_up.write("aug1", [0.6], method="aug", seed=1),
    ]
  )
  assert overview(tables)["headings"] == [("seed", ["0", "1"])]


def test_of_the_same_twice_the_one_of_more_runs_is_shown():
  tables = table.gather(
    [
      made_up.write("aug", [0.5], method="aug"),
      made_up.write("more", [0.7, 0.7], method="aug"),
      made_up.write("less", [0.6], method="aug"),
      made_up.write("other", [0.4], method="aug", data__shots=1),
    ]
  )
  assert _cells(overview(tables)) == {"aug": [0.4, 0.7]}
