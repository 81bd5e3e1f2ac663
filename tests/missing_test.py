"""Tests of what is missing in the tables of a sweep."""

from pathlib import Path
import shlex
import subprocess
import sys

from synguide_jax import grid, missing, workdir
from synguide_jax.config import find

SPEC = "configs/digits_lowshot.py:smoke"


def _finish(cells):
  """Makes the workdirs of cells look finished; returns them."""
  for cell in cells:
    cell.folder.mkdir(parents=True)
    accuracy = {"mean": 0.5, "std": None, "n": 1, "runs": [0.5]}
    workdir.write_json(
      cell.folder / "results.json",
      {
        # As on a machine where the mode was settled.
        "config": {**workdir.as_json(cell.config), "runs_mode": "map"},
        "runs": [0],
        "test": {"accuracy": accuracy, "balanced_accuracy": accuracy},
        "history": [],
        "seconds": {"train": 1.0},
      },
    )
  return [cell.folder for cell in cells]


def _commands(cells):
  return {shlex.join(cell.command()) for cell in cells}


def test_the_rest_of_a_sweep_is_missing():
  cells = grid.cells([SPEC], {})
  found = missing.cells(_finish(cells[:5]))
  assert {cell["command"] for cell in found} == _commands(cells[5:])
  assert {cell["workdir"] for cell in found} == {
    str(cell.folder) for cell in cells[5:]
  }
  assert missing.cells(_finish(cells[5:]) + [c.folder for c in cells[:5]]) == []


def test_overrides_of_a_sweep_are_those_of_what_is_missing():
  overrides = {"data.shots": 5, "optimizer.decay_at": (0.5, 0.75)}
  cells = grid.cells([SPEC], overrides)
  # Among them is one that has all images, whatever the shots of the others.
  folders = _finish(cells[1:4] + cells[-1:])
  found = missing.cells(folders)
  assert {c["command"] for c in found} == _commands(cells[:1] + cells[4:-1])


def test_a_grid_is_several_sweeps():
  cells = grid.cells([SPEC], {}, grid=["data.shots=1,5"])
  found = missing.cells(_finish(cells[:8]))
  assert {cell["command"] for cell in found} == _commands(cells[8:])


def test_one_row_with_its_own_overrides_is_no_sweep():
  assert missing.cells(_finish(grid.cells([SPEC], {})[:1])) == []
  other = {"optimizer.learning_rate": 0.5}
  cells = grid.cells([SPEC], {})[1:]
  folders = _finish([*cells, *grid.cells([SPEC], other)[:1]])
  real = grid.cells([SPEC], {})[:1]
  found = missing.cells([*folders, real[0].folder])
  assert found == []


def test_folders_of_other_names_are_left_out():
  cells = grid.cells([SPEC], {})[:3]
  _finish(cells)
  cells[0].folder.parent.rename("mine")
  assert missing.cells(sorted(Path("mine").iterdir())) == []
  assert missing.cells([Path("nowhere")]) == []


def test_folders_elsewhere_keep_their_place():
  cells = grid.cells([SPEC], {})
  _finish(cells[:2])
  Path("runs").rename("kept")
  folders = sorted(Path("kept").glob("*/*"))
  found = missing.cells(folders)
  assert len(found) == len(cells) - 2
  assert all(
    cell["workdir"].startswith("kept/digits_lowshot_smoke/") for cell in found
  )
  assert f"--workdir={found[0]['workdir']}" in found[0]["command"]


def test_command_writes_all_formats():
  _finish(grid.cells([SPEC], {})[:2])
  command = ["--workdirs=runs/*", "--output=out/table"]
  done = subprocess.run(
    [sys.executable, "-m", "synguide_jax.table", *command],
    capture_output=True,
    text=True,
    check=True,
    cwd=Path.cwd(),
  )
  written = sorted(path.name for path in Path("out").iterdir())
  assert written == ["table.csv", "table.json", "table.md", "table.tex"]
  text = Path("out/table.md").read_text()
  assert done.stdout.startswith(text.rstrip("\n"))
  config, _ = find("configs/digits_lowshot.py")
  count = len(grid.cells([f"{config}:smoke"], {})) - 2
  assert f"Not run ({count}):" in text
