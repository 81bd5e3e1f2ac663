"""Several runs in one program, against one after the other by themselves.

Starts the command anew for each of five runs, then once for all five, in both
modes; everything counts, from the start of Python to results.json, compilation
included and never cached. What the config's specs make is made beforehand.
With --resnet, a ResNet-18 on 32 px images for a few steps, digits standing in
for CIFAR-10. Rounds repeat all of it; ratios are of one round.
"""

from collections.abc import Iterator
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time

from absl import flags

from benchmarks import tables
from benchmarks.tables import Table

_RUNS = flags.DEFINE_integer("runs", 5, "Number of runs.")
_RESNET = flags.DEFINE_bool("resnet", False, "Measure a ResNet instead.")
_STEPS = flags.DEFINE_integer("steps", 0, "Steps; 0: the config's, or 20.")

_CONFIG = flags.DEFINE_string(
  "runs_config", "configs/digits_lowshot.py", "What is trained, else."
)

_SMALL_RESNET = [
  "--config=configs/cifar_lowshot.py:small",
  "--config.data.real=digits",
  "--config.data.synthetic=digits",
  "--config.data.convert_channels=True",
  "--config.data.validation=64",
  "--config.data.test=64",
  "--config.pretrained.weights=random",
  "--config.pretrained.random_model=cifar_resnet18",
  "--config.pretrained.image_size=32",
  "--config.batch_size=32",
  "--config.num_steps=20",
  "--config.eval_every=20",
  "--config.evaluate_on=('test',)",
]
_MODES = flags.DEFINE_list("modes", ["map", "vmap"], "Values of runs_mode.")


def _seconds(folder: Path, *overrides: str) -> float:
  """Wall time of one command in a fresh workdir."""
  base = _SMALL_RESNET if _RESNET.value else [f"--config={_CONFIG.value}"]
  steps = [f"--config.num_steps={_STEPS.value}"] if _STEPS.value else []
  started = time.perf_counter()
  subprocess.run(
    [
      *(sys.executable, "-m", "synguide_jax.main", *base, *steps),
      *(f"--config.{override}" for override in overrides),
      f"--workdir={folder}",
    ],
    check=True,
    stdout=subprocess.DEVNULL,
    env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
  )
  return time.perf_counter() - started


def measure() -> Iterator[Table]:
  """Yields the table of wall times."""
  runs = _RUNS.value
  separate, together = [], {mode: [] for mode in _MODES.value}
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    _seconds(folder / "warm", "num_runs=1", "num_steps=1")
    for number in range(tables.rounds()):
      here = folder / str(number)
      separate.append(
        sum(
          _seconds(here / str(run), "num_runs=1", f"first_run={run}")
          for run in range(runs)
        )
      )
      for mode in _MODES.value:
        together[mode].append(
          _seconds(here / mode, f"num_runs={runs}", f"runs_mode={mode}")
        )
  rows = [{f"{runs} runs": "separate programs", "wall time, s": separate}]
  for mode, seconds in together.items():
    rows.append(
      {
        f"{runs} runs": f'one program, runs_mode="{mode}"',
        "wall time, s": seconds,
        "to separate": tables.ratios(seconds, separate),
      }
    )
  what = "ResNet-18 at 32 px" if _RESNET.value else _CONFIG.value
  yield Table(f"runs: {what}, from start to results.json", rows)
