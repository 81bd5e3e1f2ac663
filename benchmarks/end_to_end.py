"""A whole training, from the start of the command to its end.

Starts `python -m synguide_jax.main` in a fresh process, with an empty folder
of compiled programs, and in another workdir once more with what the first
start left in it. What the config's specs name is prepared, or made, before
that, and files have been read once; images that any start before has decoded
and kept (`synguide_jax.data.decoded`) are found so. `--trainings`:

digits: --digits_config, as it is.
cifar: CIFAR-10 as JPEG files, one pass over 45,000 of its images that stand in
for synthetic ones, method guided, ResNet-20, M_p the same untrained, 128 images
a step, evaluated once. Of $SYNGUIDE_SHARED/data/cifar10_jpeg.zip, which has
folders <split>/<class>; not run without it.

The first step counts as done when all that was dispatched first is, which may
be several steps. Its parts, and the rest, add up to the total. "Waiting for
input" is the time until the next batch is there, drawn, decoded and given to
the device, as a share of that of the steps; a device that computes meanwhile
waits less.
"""

from collections.abc import Iterator, Sequence
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time

from absl import flags

from benchmarks import tables
from benchmarks.tables import Table
from synguide_jax.errors import check_known

ROOT = Path(__file__).parents[1]
# Columns, in the order of the starts.
STARTS = ("nothing compiled before", "second start")
TRAININGS = ("digits", "cifar")

_TRAININGS = flags.DEFINE_list(
  "trainings", list(TRAININGS), "Of the suite end_to_end."
)
_DIGITS = flags.DEFINE_string(
  "digits_config", "configs/digits_lowshot.py", "Config of its digits."
)
_STEPS = flags.DEFINE_integer(
  "training_steps", 0, "Steps of its trainings; 0: all."
)

_CIFAR = {
  "data.duplicates": "drop",  # What is validated on.
  "model.name": "cifar_resnet20",
  "pretrained.weights": "random",
  "pretrained.random_model": "cifar_resnet20",
  "pretrained.image_size": "32",
  "num_runs": "1",
  "batch_size": "128",
  "num_epochs": "1.0",
  "eval_every": "1000000",
  "checkpoint_every": "1000000",
  "evaluate_on": "('test',)",
}


def _arguments(training: str) -> list[str] | None:
  """Flags of the command; None if there are no images."""
  if training == "digits":
    return [f"--config={_DIGITS.value}"]
  archive = (
    Path(os.environ.get("SYNGUIDE_SHARED", "")) / "data/cifar10_jpeg.zip"
  )
  if not archive.is_file():
    return None
  overrides = dict.fromkeys(
    ("data.real", "data.synthetic"), f"folder:{archive}"
  )
  return [
    "--config=configs/cifar_lowshot.py:small",
    *(f"--config.{k}={v}" for k, v in (overrides | _CIFAR).items()),
  ]


def start(
  arguments: Sequence[str], folder: Path, compiled: Path | None = None
) -> dict[str, float]:
  """Runs the command once.

  Args:
    arguments: Its flags, without --workdir.
    folder: For its workdir, new.
    compiled: Folder of compiled programs; None: they are not kept.

  Returns:
    What was measured, by name, in the order of the table.

  Raises:
    subprocess.CalledProcessError: it failed; its errors were shown.
  """
  folder.mkdir()
  marks = folder / "marks.json"
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  started = time.monotonic()
  subprocess.run(
    [
      *(sys.executable, "-m", "benchmarks.timed_main", str(marks)),
      *(*arguments, f"--workdir={folder / 'workdir'}"),
    ],
    check=True,
    stdout=subprocess.DEVNULL,
    env={
      **os.environ,
      "PYTHONPATH": path.strip(os.pathsep),
      "JAX_ENABLE_COMPILATION_CACHE": str(compiled is not None).lower(),
      "JAX_COMPILATION_CACHE_DIR": str(compiled or folder / "unused"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    },
  )
  ended = time.monotonic()
  return measures(started, json.loads(marks.read_text()), ended)


def measures(
  started: float, marks: dict[str, dict[str, float]], ended: float
) -> dict[str, float]:
  """Makes parts of moments.

  Args:
    started: When the process was started, seconds.
    marks: What `benchmarks.timed_main` noted.
    ended: When the process had ended.

  Returns:
    As `start` does; what is of steps is left out if there was only the first.
  """

  def between(first, second, *kinds):
    a, b = marks[first], marks[second]
    return sum(b.get(kind, 0.0) - a.get(kind, 0.0) for kind in kinds or ["at"])

  def seconds(first, second, *kinds):
    return between(first, second) - between(first, second, *kinds)

  others = ("import", "evaluate", "save")
  steps = marks["last"]["step"] - marks["first"]["step"]
  training = seconds("first", "last", *others)
  found = {
    "imports, s": marks["begun"]["at"]
    - started
    + between("begun", "first", "import"),
    "inputs and data, s": seconds("begun", "data", "import"),
    "images decoded, s": between("data", "first", "decode"),
    "compilation and first step, s": seconds(
      "data", "first", "import", "decode"
    ),
    "so first step done after, s": marks["first"]["at"] - started,
    "other steps, s": training,
    "validation and checkpoints, s": between("first", "last", *others),
    "last validation and checkpoint, final evaluation, s": between(
      "last", "evaluated"
    ),
    "end of the process, s": ended - marks["evaluated"]["at"],
    "total, s": ended - started,
    "steps": marks["last"]["step"],
    "peak memory, MiB": marks["evaluated"]["peak_mib"],
  }
  if steps:
    waiting = between("first", "last", "input")
    found["a step, ms"] = 1e3 * training / steps
    found["waiting for input, %"] = 100 * waiting / training
  return found


def measure() -> Iterator[Table]:
  """Yields the table of each training."""
  for training in _TRAININGS.value:
    check_known("--trainings", training, TRAININGS)
    arguments = _arguments(training)
    if arguments is None:
      note = (
        "not run: SYNGUIDE_SHARED names no folder with data/cifar10_jpeg.zip"
      )
      yield Table(f"end_to_end: {training}", [{"": note}])
      continue
    # Another number of steps would be another program.
    short = [f"--config.num_steps={_STEPS.value}"] if _STEPS.value else []
    found = {name: [] for name in STARTS}
    with tempfile.TemporaryDirectory() as name:
      folder = Path(name)
      start([*arguments, "--config.num_steps=1"], folder / "made")
      for number in range(tables.rounds()):
        compiled = folder / f"compiled{number}"
        for column, of_start in found.items():
          here = folder / f"{number} {column}"
          of_start.append(start([*arguments, *short], here, compiled))
    yield Table(
      f"end_to_end: {training}, {arguments[0].partition('=')[2]}",
      [
        {"": row} | {name: [x[row] for x in of] for name, of in found.items()}
        for row in found[STARTS[0]][0]
      ],
    )
