"""Tests of sweeps: their cells, and how they are run, stopped and continued.

The trainings themselves are replaced by a program that does what it is told.
"""

import json
import os
from pathlib import Path
import pty
import re
import shlex
import stat
import subprocess
import sys
import time
import weakref

from absl import flags
import filelock
import jax
from ml_collections import config_flags
import pytest

from synguide_jax import config as config_lib
from synguide_jax import experiment, grid, hosts, jobs, workdir
from synguide_jax.errors import DivergedError, Preempted, UserError
from synguide_jax.train import train_and_evaluate
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent

_CONFIG = """
from synguide_jax import config as config_lib


def get_config(arg=None):
  config = config_lib.classifier_defaults()
  config.method = "aug"
  config.data.real = config.data.synthetic = "digits"
  config.data.image_size = 8
  config.data.channels = 1
  config.data.test = config.data.validation = 50
  config.model.name = "small_cnn"
  config.model.std = (1,)
  config.num_steps = {steps}
  return config


def get_sweep(arg=None):
  return {rows!r}
"""

# In place of python -m synguide_jax.main: does what plan.json says for the
# method, a list of steps for each time that it is started, and then finishes.
_FAKE = f"""#!{sys.executable} -IS
import glob, json, os, signal, sys, time

flag = dict(arg.partition("=")[::2] for arg in sys.argv[1:])
folder, method = flag["--workdir"], flag["--config.method"]

def exit_on(number, text, code):
  def stop(*_):
    print(text, flush=True)
    # One saves longer than the other.
    time.sleep(0.4 * (what == "wait"))
    sys.exit(code)
  signal.signal(number, stop)

def there(number):
  open(f"{{folder}}/there", "w").close()
  while len(glob.glob(f"{{os.path.dirname(folder)}}/*/there")) < number:
    time.sleep(0.01)

with open("calls.jsonl", "a") as file:
  file.write(json.dumps(sys.argv[1:]) + "\\n")
with open("calls.jsonl") as file:
  start = sum(json.loads(line)[-1] == sys.argv[-1] for line in file) - 1
with open("plan.json") as file:
  plan = json.load(file).get(method, [])
for step in plan[start] if start < len(plan) else []:
  what, _, rest = step.partition(" ")
  if what == "say":
    print(rest, flush=True)
  elif what == "group":
    print(os.getpgrp() == os.getpid(), flush=True)
  elif what == "env":
    print(os.environ.get(rest), flush=True)
  elif what == "hold":
    there(int(rest))
  elif what == "signal":
    os.kill(os.getppid(), int(rest))
  elif what == "exit":
    sys.exit(int(rest))
  elif what == "die":
    os.kill(os.getpid(), int(rest))
  elif what == "meet":
    print(time.monotonic())
    there(2)
    time.sleep(0.05)
    print(time.monotonic())
  else:
    exit_on(signal.SIGTERM, "TERM", 75)
    exit_on(signal.SIGINT, "INT", 130)
    there(2)
    if what == "tell":
      os.kill(os.getppid(), int(rest))
    time.sleep(30)
    sys.exit(3)
os.replace(f"{{folder}}/to_be_results.json", f"{{folder}}/results.json")
"""


def _write(file="x.py", rows=None, steps=7):
  rows = rows or [{"method": name} for name in ("real", "fake", "aug")]
  Path(file).write_text(_CONFIG.format(rows=rows, steps=steps))
  return file


def _cells(*files, axes=(), methods=(), rows=None, **overrides):
  files = files or (_write(rows=rows),)
  return grid.cells(files, overrides, methods=methods, grid=axes)


def _to_finish(cell, accuracy=0.5):
  """Lays down what the trainer's stand-in has to leave."""
  workdir.claim(cell.folder, cell.config)
  summary = {"mean": accuracy, "std": None, "n": 1, "runs": [accuracy]}
  results = {
    "method": cell.config.method,
    "config": workdir.as_json(cell.config),
    "runs": [0],
    "test": {
      "accuracy": summary,
      "balanced_accuracy": summary,
      "class_accuracy": [[accuracy]],
    },
    "data": {"class_names": ["0"], "held_out": ""},
    "diverged": {},
    "history": [],
    "seconds": {"train": 1.0},
    "devices": ["cpu:0"],
  }
  workdir.write_json(cell.folder / "to_be_results.json", results)


def _finish(cell, accuracy=0.5):
  _to_finish(cell, accuracy)
  path = cell.folder / "to_be_results.json"
  path.replace(cell.folder / "results.json")
  return workdir.results(cell.folder)


def _plan(cells, **plan):
  for cell in cells:
    if workdir.results(cell.folder) is None:
      _to_finish(cell)
  Path("plan.json").write_text(json.dumps(plan))


def _calls():
  """The commands that were started, sorted."""
  return sorted(map(json.loads, Path("calls.jsonl").read_text().splitlines()))


def _called():
  """Their methods."""
  return sorted(call[3].removeprefix("--config.method=") for call in _calls())


@pytest.fixture
def fake(tmp_path):
  path = tmp_path / "bin" / "python"
  path.parent.mkdir()
  path.write_text(_FAKE)
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return path


@pytest.fixture
def fake_main(fake, monkeypatch):
  monkeypatch.setattr(sys, "executable", str(fake))
  return fake


def _environment(**changes):
  return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


_SWEEP = """
import runpy, signal, sys
sys.executable = {executable!r}
# Whatever this process was told to ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.{hangup})
try:
  runpy.run_module("synguide_jax.sweep", run_name="__main__")
finally:
  print(*sys.modules, file=sys.stderr)
"""


def _sweep(*args, executable=sys.executable, hangup="SIG_DFL"):
  """Runs the command; returns exit code, stdout, stderr, imported modules."""
  program = _SWEEP.format(executable=str(executable), hangup=hangup)
  done = subprocess.run(
    [sys.executable, "-c", program, *args],
    env=_environment(),
    capture_output=True,
    text=True,
  )
  *stderr, modules = done.stderr.splitlines()
  return done.returncode, done.stdout, stderr, set(modules.split())


# The grid.


def test_values_of_a_grid_have_the_types_of_their_fields():
  config = config_lib.classifier_defaults()
  axes = [
    "data.shots=1, -1",
    "optimizer.learning_rate=1e-3,2",
    "data.flip=true,False",
    "model.mean=(0.5,),(0.4,0.6),0.25",
    "data.classes=(),('a,b','1'),cat,('c (d','e')",
    "model.init=,scratch,folder:a=b;c d",
    "data.synthetic=('x@2', 'y;z@1'),'a,b',\"it's\",''",
  ]
  parsed = grid.parse_grid(axes, config)
  expected = {
    "data.shots": [1, -1],
    "optimizer.learning_rate": [0.001, 2.0],
    "data.flip": [True, False],
    "model.mean": [(0.5,), (0.4, 0.6), (0.25,)],
    "data.classes": [(), ("a,b", "1"), ("cat",), ("c (d", "e")],
    "model.init": ["", "scratch", "folder:a=b;c d"],
    # The text of a tuple is the trainer's to read.
    "data.synthetic": ["('x@2', 'y;z@1')", "a,b", "it's", ""],
  }
  assert parsed == expected
  assert repr(parsed) == repr(expected)  # 2 is not 2.0
  assert grid.parse_grid([], config) == {}
  # What one value of it changes, another must not begin with.
  assert config == config_lib.classifier_defaults()


@pytest.mark.parametrize(
  "text,message",
  [
    ("data.shot=1", "no field 'data.shot'. Did you mean data.shots"),
    ("data.shots=1,x", "data.shots=x: invalid literal for int"),
    ("data.shots=1.5", "data.shots=1.5"),
    ("data.shots=", "data.shots=: "),
    ("data.flip=maybe", "data.flip=maybe"),
    ("optimizer.learning_rate=fast", "learning_rate=fast"),
    ("data.classes=(a b,)", "data.classes"),
    ("data.shots", "--grid=data.shots: wants <field>=<value>"),
    ("data=1", "data is a section"),
    ("model.mean=(0.5,", "a bracket or a quote is not closed"),
    ("model.init='scratch", "a bracket or a quote is not closed"),
    ("method=real,fake", "every row sets method itself; .*--methods"),
  ],
)
def test_what_is_wrong_with_a_grid_is_told(text, message):
  with pytest.raises(UserError, match=message):
    _cells(axes=[text])


def test_a_grid_has_a_field_once():
  with pytest.raises(UserError, match="--grid=seed=2: .*each field once"):
    _cells(axes=["seed=1", "num_runs=2", "seed=2"])


def test_rows_are_crossed_with_all_combinations():
  rows = [{"method": "real"}, {"method": "aug", "data.shots": 3}]
  cells = _cells(
    axes=["data.shots=1,5", "seed=0,1"], rows=rows, **{"batch_size": 16}
  )
  # What a row sets holds against the grid, and no cell is there twice.
  found = [(c.config.method, c.config.data.shots, c.config.seed) for c in cells]
  assert found == [
    ("real", 1, 0),
    ("real", 1, 1),
    ("real", 5, 0),
    ("real", 5, 1),
    ("aug", 3, 0),
    ("aug", 3, 1),
  ]
  assert {cell.config.batch_size for cell in cells} == {16}
  assert [cell.name for cell in cells[2:5]] == [
    "real, data.shots=5, seed=0",
    "real, data.shots=5, seed=1",
    "aug, data.shots=3, seed=0",
  ]
  base = config_lib.load("x.py")
  for cell in cells:
    folder = workdir.default_workdir("x.py", cell.config, base)
    assert cell.folder == folder
  assert len({cell.folder for cell in cells}) == len(cells)


def test_a_row_holds_against_the_grid_and_that_against_overrides():
  rows = [{"method": "real"}, {"method": "aug", "seed": 3}]
  overrides = {"seed": 1, "num_runs": 4}
  (real, aug) = _cells(axes=["seed=2"], rows=rows, **overrides)
  assert (real.config.seed, aug.config.seed) == (2, 3)
  assert real.config.num_runs == aug.config.num_runs == 4


def test_several_files():
  files = _write("x.py"), _write("y.py", rows=[{"method": "dann"}], steps=9)
  cells = _cells(*files, axes=["seed=0,1"], methods=["dann", "fake"])
  assert [cell.name for cell in cells] == [
    "x: fake, seed=0",
    "x: fake, seed=1",
    "y: dann, seed=0",
    "y: dann, seed=1",
  ]
  assert [cell.config.num_steps for cell in cells] == [7, 7, 9, 9]
  assert str(cells[2].folder) == "runs/y/dann"
  with pytest.raises(UserError, match="--methods=cycle: x.py, y.py has rows"):
    _cells(*files, methods=["dann", "cycle"])
  # One of them may lack a field.
  text = Path("y.py").read_text()
  Path("y.py").write_text(
    text.replace("  return c", "  del config.seed\n  return c")
  )
  for wrong in (
    {"overrides": {"seed": 1}},
    {"overrides": {}, "grid": ["seed=1"]},
  ):
    with pytest.raises(UserError, match="y.py: The config has no field 'seed'"):
      grid.cells(files, **wrong)


# Printed commands.


def _parsed(argv):
  """The config and workdir of a command, as main gets them."""
  assert argv[:4] == ["python", "-m", "synguide_jax.main", "--config=x.py"]
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict(
    "config", config_lib.load("x.py"), flag_values=values, sys_argv=argv[4:]
  )
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  values([argv[0], *argv[4:]])
  return values["config"].value, values["workdir"].value


_STRANGE = [
  {"method": "real"},
  {"method": "aug", "optimizer.learning_rate": 1e-05 / 3, "data.flip": True},
  {"method": "aug", "data.classes": ("a'b", 'c "d"', "e,f", "", "$HOME")},
  {"method": "aug", "model.mean": (0.1, 1, 2.0), "model.std": ()},
  {"method": "aug", "data.groups": 'pattern:^(\\w+) "$x";`y`|*', "seed": -3},
  {"method": "aug", "data.real": "", "data.synthetic": "('a b@2', 'c@1')"},
  {"method": "aug", "data.synthetic": "it's", "num_epochs": 1e22},
  # Equal numbers that are not the same in config.json.
  {"method": "aug", "model.std": (1.0,)},
]


def test_a_printed_command_is_the_cell():
  _write(rows=_STRANGE)
  cells = _cells("x.py", axes=["num_runs=3,5", "optimizer.decay_at=(),(1.0,)"])
  lines = grid.commands(cells)
  assert len(lines) == len(cells) == 32
  for cell, line in zip(cells, lines, strict=True):
    config, folder = _parsed(shlex.split(line))
    assert repr(config.to_dict()) == repr(cell.config.to_dict())
    assert folder == str(cell.folder)
    base = config_lib.load("x.py")
    assert workdir.default_workdir("x.py", config, base) == cell.folder
  # Only what is not as in the file is typed.
  assert lines[0] == (
    "python -m synguide_jax.main --config=x.py --config.method=real "
    f"--config.num_runs=3 --workdir={cells[0].folder}"
  )


def test_printed_commands_go_through_a_shell(fake):
  cells = _cells(rows=_STRANGE)
  gpu = ["env CUDA_VISIBLE_DEVICES"]
  _plan(cells, real=[gpu], aug=[gpu])
  code, out, stderr, modules = _sweep("--config=x.py", "--print_commands")
  assert (code, stderr) == (0, [])
  assert out.splitlines() == grid.commands(cells)
  assert not modules & {"jax", "tensorflow"}
  one_each = "--process-slot-var=CUDA_VISIBLE_DEVICES"
  done = subprocess.run(
    ["xargs", "-d", "\n", "-n", "1", "-P", "4", one_each, "sh", "-c"],
    input=out,
    capture_output=True,
    text=True,
    check=True,
    env=_environment(PATH=f"{fake.parent}:{os.environ['PATH']}"),
  )
  gpus = done.stdout.split()
  assert len(gpus) == len(cells) and {"0"} <= set(gpus) <= set("0123")
  assert _calls() == sorted(cell.command()[1:] for cell in cells)
  # They are finished now.
  code, out, stderr, _ = _sweep("--config=x.py", "--print_commands")
  assert (code, out, stderr) == (0, "", [])


def test_main_leaves_the_config_that_the_sweep_leaves():
  cells = _cells(rows=_STRANGE[2:4])
  for cell in cells:
    _finish(cell)
  # The printed command, and what somebody would type who knows of no sweep.
  printed = [cell.command() for cell in cells]
  typed = [command[:-1] for command in printed]
  for command, cell in zip(printed + typed, cells + cells, strict=True):
    config = cell.folder / "config.json"
    written = config.read_bytes()
    config.unlink()
    done = subprocess.run(
      [sys.executable, *command[1:]],
      env=_environment(),
      capture_output=True,
      text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Finished before; delete {cell.folder}" in done.stdout
    assert config.read_bytes() == written


def test_a_value_with_a_line_break_cannot_be_listed():
  cells = _cells(rows=[{"method": "aug", "data.groups": "a\nb"}])
  with pytest.raises(UserError, match="data.groups=a\nb: a value has a line"):
    grid.commands(cells)


def test_commands_of_cells_that_are_not_to_be_had_are_printed():
  cells = _cells()
  for cell, text in zip(cells, ("{", None, "{}"), strict=True):
    workdir.claim(cell.folder, cell.config)
    if text:
      (cell.folder / "results.json").write_text(text)
  # This one belongs to another config.
  (cells[2].folder / "config.json").write_text('{"seed": 1}')
  assert len(grid.commands(cells)) == 3


# In this process.


def test_one_cell_that_fails_does_not_keep_the_others(monkeypatch, capsys):
  cells = _cells(axes=["seed=0,1"], methods=["real", "fake"])
  _finish(cells[1], 0.25)

  def run(config, folder, *, show_progress):
    assert not show_progress
    if folder == cells[0].folder:
      raise DivergedError("the loss\nbecame NaN")
    if folder == cells[2].folder:
      raise UserError("seed is odd.")
    (cell,) = [cell for cell in cells if cell.folder == folder]
    assert cell.config == config
    return workdir.results(folder) or _finish(cell)

  monkeypatch.setattr(experiment, "run", run)
  assert jobs.run_here(cells) == 2
  first, second, third, fourth = capsys.readouterr().out.splitlines()
  assert first == "[ 1/4] real, seed=0: failed: the loss became NaN"
  figures = "test accuracy 25.00 (n=1), balanced 25.00 (n=1)"
  assert second == f"[ 2/4] real, seed=1: {figures}  (finished before)"
  assert third == "[ 3/4] fake, seed=0: failed: seed is odd."
  assert fourth.startswith("[ 4/4] fake, seed=1: test accuracy 50.00 (n=1), ")
  assert fourth.endswith("  in 0s")


def test_an_error_that_nobody_foresaw_ends_its_cell_only(monkeypatch, capsys):
  class Held:
    pass

  held = []

  def run(config, folder, *, show_progress):
    if config.method == "real":
      arrays = Held()
      arrays.itself = arrays
      held.append(weakref.ref(arrays))
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory.\nMore.")
    if config.method == "fake":
      # The device must not be full of what nobody needs.
      assert [array() for array in held] == [None]
      raise ZeroDivisionError
    (cell,) = [cell for cell in cells if cell.folder == folder]
    return _finish(cell)

  monkeypatch.setattr(experiment, "run", run)
  cells = _cells()
  assert jobs.run_here(cells) == 2
  first, second, third = capsys.readouterr().out.splitlines()
  logs = [cell.folder / "log.txt" for cell in cells[:2]]
  assert first == (
    "[ 1/3] real: failed: JaxRuntimeError: RESOURCE_EXHAUSTED: memory. "
    f"(see {logs[0]})"
  )
  assert second == f"[ 2/3] fake: failed: ZeroDivisionError (see {logs[1]})"
  assert "Traceback" in logs[1].read_text()
  assert "aug: test accuracy 50.00" in third


@pytest.mark.parametrize(
  "error,several",
  [
    (Preempted("Stopped."), False),
    (OSError(28, "No space left on device"), False),
    # The other processes may be in the middle of the cell.
    (RuntimeError("RESOURCE_EXHAUSTED"), True),
  ],
)
def test_some_errors_end_the_sweep(monkeypatch, error, several):
  called = []

  def run(config, folder, *, show_progress):
    called.append(config.method)
    raise error

  monkeypatch.setattr(experiment, "run", run)
  monkeypatch.setattr(hosts, "are_several", lambda: several)
  with pytest.raises(type(error)) as raised:
    jobs.run_here(_cells())
  assert raised.value is error
  assert called == ["real"]


def test_a_cell_in_use_is_skipped(monkeypatch, capsys):
  cells = _cells(methods=["real"])
  workdir.claim(cells[0].folder, cells[0].config)
  monkeypatch.setattr(
    experiment,
    "train",
    lambda config, folder, inputs, **_: train_and_evaluate(
      config, folder, tiny.Recorder(), inputs=inputs
    ),
  )
  with filelock.FileLock(cells[0].folder / ".lock"):
    assert jobs.run_here(cells) == 1
  assert capsys.readouterr().out == (
    "[ 1/1] real: skipped: runs/x/real is in use by another process; wait for "
    "it, or choose another --workdir.\n"
  )


def test_what_is_finished_is_skipped_at_once():
  cells = _cells(axes=["data.shots=1,2,3"])
  for cell in cells:
    _finish(cell)
  grid_flag = "--grid=data.shots=1,2,3"
  for flag in ("--jobs=1", "--jobs=2", "--gpus=0"):
    code, out, stderr, modules = _sweep("--config=x.py", grid_flag, flag)
    assert (code, stderr) == (0, [])
    lines = [line for line in out.splitlines() if line.startswith("[")]
    assert len(lines) == 9
    assert all(line.endswith("(finished before)") for line in lines)
    assert re.search("^\\| real, data.shots=2 +\\|", out, re.MULTILINE)
    assert "synguide_jax.grid" in modules
    assert not modules & {"jax", "tensorflow", "flax", "clu", "orbax"}


# In processes of their own.


def test_jobs_print_a_line_each_and_the_rest_to_their_log(fake_main, capsys):
  cells = _cells()
  _finish(cells[1])
  _plan(cells, real=[["say hello", "group"]])
  assert jobs.run_jobs(cells, 2 * [None]) == 0
  first, *others = capsys.readouterr().out.splitlines()
  figures = "test accuracy 50.00 (n=1), balanced 50.00 (n=1)"
  assert first == f"[ 1/3] fake: {figures}  (finished before)"
  assert sorted(line[7:] for line in others) == [
    f"aug: {figures}  in 0s",
    f"real: {figures}  in 0s",
  ]
  assert [line[:6] for line in others] == ["[ 2/3]", "[ 3/3]"]
  assert Path("runs/x/real/log.txt").read_text() == "hello\nTrue\n"
  # What runs is what is printed.
  assert _calls() == sorted(c.command()[1:] for c in (cells[0], cells[2]))


def test_so_many_run_at_a_time(fake_main):
  cells = _cells(axes=["seed=0,1"], methods=["real", "fake"])
  # Each waits until there is another.
  _plan(cells, real=[["meet"]], fake=[["meet"]])
  assert jobs.run_jobs(cells, 2 * [None]) == 0
  spans = [
    [float(time) for time in (cell.folder / "log.txt").read_text().split()]
    for cell in cells
  ]
  overlaps = [sum(a <= begin < b for a, b in spans) for begin, _ in spans]
  assert max(overlaps) == 2


def test_what_was_cut_is_started_again(fake_main, capsys):
  cells = _cells()
  _plan(
    cells,
    real=[["say first", "exit 75"], ["say second", "die 9"], ["say third"]],
    fake=[["die 9"], ["exit 75"], ["die 9"], ["die 15"], ["exit 0"]],
    aug=[["say error: before", "exit 75"], *3 * [["exit 75"]]],
  )
  assert jobs.run_jobs(cells, 3 * [None]) == 2
  lines = {
    line[7:].split(":")[0]: line
    for line in capsys.readouterr().out.splitlines()
  }
  assert "real: test accuracy 50.00" in lines["real"]
  log = Path("runs/x/real/log.txt").read_text()
  assert log == "first\nsecond\nthird\n"
  assert lines["fake"].endswith(
    "fake: killed by signal 15, 4 starts; see runs/x/fake/log.txt"
  )
  assert lines["aug"].endswith("aug: stopped, 4 starts; see runs/x/aug/log.txt")
  assert _called() == 4 * ["aug"] + 4 * ["fake"] + 3 * ["real"]


def test_what_failed_is_not(fake_main, capsys):
  cells = _cells(rows=[{"method": m} for m in ("real", "fake", "aug", "dann")])
  _plan(
    cells,
    real=[["say error: 1", "say error: seed=-1 is odd.", "exit 2"]],
    fake=[["say Traceback", "say ValueError: no", "exit 1"]],
    aug=[["say error: runs/x/aug is in use.", "exit 76"]],
    dann=[["exit 3"]],
  )
  # Of an earlier sweep.
  Path("runs/x/dann/log.txt").write_text("error: long ago\n")
  assert jobs.run_jobs(cells, 3 * [None]) == 4
  assert sorted(x[7:] for x in capsys.readouterr().out.splitlines()) == [
    "aug: skipped: runs/x/aug is in use.",
    "dann: failed: exit code 3, see runs/x/dann/log.txt",
    "fake: failed: ValueError: no (exit code 1, see runs/x/fake/log.txt)",
    "real: failed: seed=-1 is odd. (exit code 2, see runs/x/real/log.txt)",
  ]
  assert _called() == ["aug", "dann", "fake", "real"]


def test_a_gpu_has_one_job_at_a_time(fake_main):
  cells = _cells(rows=[{"method": m} for m in ("real", "fake", "aug", "dann")])
  gpu = "env CUDA_VISIBLE_DEVICES"
  # The first is through when all have been there, so that the others have one
  # GPU among them.
  _plan(
    cells,
    real=[[gpu, "hold 4", gpu]],
    fake=[[gpu, "exit 75"], [gpu, "hold 2"]],
    aug=[[gpu, "hold 3"]],
    dann=[[gpu, "hold 4"]],
  )
  assert jobs.run_jobs(cells, jobs.slots(None, ["5", "GPU-7"])) == 0
  seen = [(cell.folder / "log.txt").read_text().split() for cell in cells]
  assert seen == [["5", "5"], ["GPU-7", "GPU-7"], ["GPU-7"], ["GPU-7"]]


@pytest.mark.parametrize("filtering", [None, "tracebackhide"])
def test_jobs_have_the_environment_of_the_sweep(
  fake_main, monkeypatch, filtering
):
  cells = _cells(methods=["real", "fake"])
  seen = ["env CUDA_VISIBLE_DEVICES", "env JAX_TRACEBACK_FILTERING"]
  _plan(cells, real=[seen], fake=[seen])
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
  monkeypatch.delenv("JAX_TRACEBACK_FILTERING", raising=False)
  if filtering:
    monkeypatch.setenv("JAX_TRACEBACK_FILTERING", filtering)
  assert jobs.run_jobs(cells, jobs.slots(2, [])) == 0
  for cell in cells:
    log = (cell.folder / "log.txt").read_text().split()
    # A traceback's last line is to be the error.
    assert log == ["2,3", filtering or "off"]


def test_gpus_say_how_many_run_at_a_time():
  assert jobs.slots(None, ()) == jobs.slots(1, ()) == []
  assert jobs.slots(3, ()) == [None, None, None]
  assert jobs.slots(None, ["0"]) == jobs.slots(1, ["0"]) == ["0"]
  assert jobs.slots(2, ["0", "3"]) == ["0", "3"]
  for number, gpus in ((1, ["0", "1"]), (3, ["0", "1"]), (None, ["0", ""])):
    with pytest.raises(UserError, match=f"--gpus={','.join(gpus)} wants"):
      jobs.slots(number, gpus)


def test_a_workdir_of_another_config_starts_no_job(fake_main, capsys):
  cells = _cells(methods=["real", "fake"])
  _plan(cells)
  (cells[0].folder / "checkpoints").mkdir()
  (cells[0].folder / "config.json").write_text('{"seed": 1}')
  assert jobs.run_jobs(cells, 2 * [None]) == 1
  first, second = capsys.readouterr().out.splitlines()
  assert "real: failed: runs/x/real belongs to another config: " in first
  assert "fake: test accuracy" in second
  assert _called() == ["fake"]


@pytest.mark.parametrize(
  "number,code,said",
  [
    (15, 75, "Stopped by SIGTERM. The same"),
    (1, 75, "Stopped by SIGHUP. The same"),
    (2, 130, "interrupted; the same command"),
  ],
)
def test_signals_are_passed_on(fake, number, code, said):
  # One of two tells the sweep, as soon as both of them are there.
  _plan(_cells(), real=[["wait"]], fake=[[f"tell {number}"]])
  got, out, stderr, _ = _sweep("--config=x.py", "--jobs=2", executable=fake)
  assert got == code
  assert [said in line for line in stderr] == [True]
  word = "interrupted" if number == 2 else "stopped"
  # Neither is started again, and the third not at all.
  assert sorted(line[7:] for line in out.splitlines()) == [
    f"fake: {word}; see runs/x/fake/log.txt",
    f"real: {word}; see runs/x/real/log.txt",
  ]
  assert _called() == ["fake", "real"]
  for name in ("real", "fake"):
    log = Path(f"runs/x/{name}/log.txt").read_text()
    # Trainings know nothing of SIGHUP.
    assert log == ("INT\n" if number == 2 else "TERM\n")


def test_a_hangup_that_is_ignored_stays_so(fake):
  _plan(_cells(), real=[["signal 1", "hold 2"]], fake=[["hold 2"]])
  code, out, stderr, _ = _sweep(
    "--config=x.py", "--jobs=2", executable=fake, hangup="SIG_IGN"
  )
  assert (code, stderr) == (0, [])
  assert sum(line.startswith("[") for line in out.splitlines()) == 3


def test_a_terminal_that_is_gone_lets_jobs_save_once(fake):
  _plan(_cells(), real=[["wait"]], fake=[["tell 0"]])
  its_terminal = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
  program = _SWEEP.format(executable=str(fake), hangup="SIG_DFL")
  ours, its = pty.openpty()
  sweep = subprocess.Popen(
    [sys.executable, "-c", its_terminal + program, "--config=x.py", "--jobs=2"],
    env=_environment(),
    stdin=its,
    stdout=its,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )
  os.close(its)
  logs = [Path(f"runs/x/{name}/log.txt") for name in ("real", "fake")]
  while not all((log.parent / "there").exists() for log in logs):
    assert sweep.poll() is None
    time.sleep(0.01)
  time.sleep(0.1)
  os.close(ours)
  sweep.wait(20)
  # One of them is slower to save, and nobody hears of the other.
  assert [log.read_text() for log in logs] == ["TERM\n", "TERM\n"]


def test_several_hosts_run_cells_in_turn():
  _write()
  for flag in ("--jobs=2", "--gpus=0", "--print_commands"):
    code, out, stderr, _ = _sweep("--config=x.py", "--multihost", flag)
    assert (code, out) == (2, "")
    assert stderr == [
      "error: --multihost wants no --jobs, --gpus, --print_commands."
    ]


def test_the_command_with_jobs(fake):
  _plan(_cells(seed=3), fake=[["say error: no.", "exit 2"]])
  code, out, stderr, modules = _sweep(
    "--config=x.py", "--config.seed=3", "--jobs=2", executable=fake
  )
  assert (code, stderr) == (1, [])
  assert sum(line.startswith("[") for line in out.splitlines()) == 3
  # The table of those that are finished.
  rows = re.findall("^\\| (real|fake|aug) +\\|", out, re.MULTILINE)
  assert rows == ["real", "aug"]
  assert not modules & {"jax", "tensorflow"}
  assert all("--config.seed=3" in call for call in _calls())
