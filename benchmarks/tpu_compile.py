"""What a training step takes on a TPU slice, by its compiler, without a TPU.

  python -m benchmarks.tpu_compile [--cells=v5e-4,...]
  python -m benchmarks.tpu_compile --config=configs/cifar_lowshot.py \
      --topology=v5e:4x4 --batch_size=2048 --num_runs=1

The first form makes the table of BENCHMARKS.md, a cell after the other, each in
a process of its own; those that --output has are not compiled again. The second
one says whether a config fits a slice; any field can be overridden,
`--config.model.dtype=bfloat16`. Needs libtpu (extra "tpu"), which compiles for
slices that are not there; on two cores a ResNet-50 takes ten minutes.

By default digits of two classes stand in for the images and a random network,
--pretrained, for M_p and initial weights, so that neither data nor network is
needed; --nostand_ins takes the config's own. Runs that a device trains side by
side then have an M_p each, which real weights are not.

Figures are those of XLA, of a chip and step. Memory is that of the step, less
the stand-ins: beside it the trainer keeps resident images (a byte a pixel and
channel), the best weights so far, and what of M_p lies behind feature_layer. A
loop's body counts once: runs of a device in turn (runs_mode="map") take as many
times the FLOPs and collectives.
"""

from collections.abc import Sequence
import json
import math
import os
from pathlib import Path
import re
import resource
import signal
import subprocess
import sys
import time
from typing import Any

from absl import flags
from ml_collections import config_flags

from synguide_jax import config as config_lib
from synguide_jax import console
from synguide_jax.console import say
from synguide_jax.errors import check_known, UserError

# Bytes of a chip's memory that programs may use, as the compiler says where one
# does not fit. Chips have 16 and 32 GB: cloud.google.com/tpu/docs/v5e, .../v6e.
HBM = {"v5e": 15.75 * 2**30, "v6e": 31.25 * 2**30}
# What Google's API calls them.
_ACCELERATOR = {"v5e": "v5litepod", "v6e": "v6e"}

_FULL = "configs/cifar_lowshot.py"
# Config, topology, images a step and run, runs.
CELLS = {
  "v5e-4": (_FULL, "v5e:2x2", 4 * 128, 1),
  "v5e-16": (_FULL, "v5e:4x4", 16 * 128, 1),
  "v5e-64": (_FULL, "v5e:8x8", 64 * 128, 1),
  "v5e-256": (_FULL, "v5e:16x16", 256 * 128, 1),
  "v6e-8": (_FULL, "v6e:2x4", 8 * 128, 1),
  "v5e-4-batch128": (_FULL, "v5e:2x2", 128, 1),
  "v5e-4-small": (f"{_FULL}:small", "v5e:2x2", 4 * 128, 1),
  "v5e-8-runs5": (_FULL, "v5e:2x4", 128, 5),
}

COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "collective-permute",
  "all-to-all",
)
# "%name = shape operation(operands", where a tuple's shape has brackets.
_OPERATION = re.compile(
  r" = (?P<shape>\(.*?\)|\S+) "
  rf"(?P<kind>{'|'.join(COLLECTIVES)})(?P<start>-start)?\("
)
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)[a-z0-9]*\[([\d,]*)\]")

# "1.36T" and the like, in powers of 1024.
_TOO_LARGE = re.compile(
  r"Used (\S+) of (\S+) hbm|\((\S+)\) exceeds available HBM \((\S+)\)"
)

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Compile this config instead of the table's cells."
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", "v5e:2x2", "Kind and shape of the slice, such as v6e:4x4."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "0: the config's.")
_NUM_RUNS = flags.DEFINE_integer("num_runs", 0, "0: the config's.")
_STAND_INS = flags.DEFINE_boolean("stand_ins", True, "For data and weights.")
_PRETRAINED = flags.DEFINE_string(
  "pretrained", "resnet50", "Network that stands in for pretrained.weights."
)
_CELLS = flags.DEFINE_list("cells", list(CELLS), "Rows of the table.")
_NAME = flags.DEFINE_string(
  "name", "", "Name of the config's row in --output; by default it gets none."
)
_OUTPUT = flags.DEFINE_string(
  "output", "runs/tpu_compile.jsonl", "Rows so far, JSON lines; appended to."
)
_TEXT = flags.DEFINE_string("text", "", "File for the config's compiled step.")


def with_stand_ins(config: Any, pretrained: str) -> Any:
  """Returns a config that needs neither data nor weights, alike otherwise."""
  changes = {
    "data.real": "digits",
    "data.synthetic": "digits",
    "data.synthetic_per_class": 0,
    "data.classes": ("0", "1"),
    "data.class_mapping": (),
    "data.shots": min(config.data.shots, 10),
    "data.validation": 8,
    "data.test": 8,
    "data.folds": 0,
    "data.groups": "",
    "data.feed": "resident",
    "num_steps": 1000,
  }
  if "model" in config:
    changes["model.init"] = "scratch"
  if "pretrained" in config and config.pretrained.weights not in ("", "random"):
    changes |= {
      "pretrained.weights": "random",
      "pretrained.random_model": pretrained,
      "pretrained.image_size": config.pretrained.image_size or 224,
    }
  return config_lib.override(config, changes)


def count_collectives(text: str) -> dict[str, tuple[int, int]]:
  """Counts the collectives of a compiled program, and bytes they put out.

  Args:
    text: The program as optimised HLO.

  Returns:
    Number and bytes by kind, for the kinds that occur.
  """
  operations = set()
  for number, line in enumerate(text.splitlines()):
    if match := _OPERATION.search(line):
      # The compiler repeats one in every computation that hides a part of it;
      # those that it makes itself may share a channel.
      channel = _CHANNEL.search(line)
      key = channel[1] if channel else f"line {number}"
      operations.add((key, match["kind"], _output_bytes(match)))
  found = {}
  for _, kind, size in sorted(operations):
    count, total = found.get(kind, (0, 0))
    found[kind] = count + 1, total + size
  return found


def _output_bytes(operation: re.Match) -> int:
  sizes = [_num_bytes(*array) for array in _ARRAY.findall(operation["shape"])]
  if operation["start"] and operation["kind"] == "collective-permute":
    # Source, destination and two numbers.
    sizes = sizes[1:2]
  elif operation["start"] and operation["kind"] == "all-gather":
    # Sources and destinations.
    sizes = sizes[len(sizes) // 2 :]
  return sum(sizes)


def _num_bytes(dtype: str, shape: str) -> int:
  bits = 8 if dtype == "pred" else int(re.sub(r"\D", "", dtype))
  return bits * math.prod(map(int, filter(None, shape.split(",")))) // 8


def num_chips(topology: str) -> int:
  """Returns the number of chips of v5e:4x4, 16."""
  return math.prod(map(int, topology.partition(":")[2].split("x")))


def topology_devices(name: str) -> list[Any]:
  """Returns the devices of a slice, which need not be there."""
  kind, _, shape = name.partition(":")
  if kind not in HBM or not re.fullmatch(r"\d+x\d+", shape):
    raise UserError(
      f"--topology={name} must be one of {', '.join(HBM)}, a colon, and the "
      "slice's shape, such as v5e:4x4."
    )
  # libtpu would look for the machine it is on.
  os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": f"{_ACCELERATOR[kind]}-{num_chips(name)}",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  }
  from jax.experimental import topologies

  # Hosts have four chips, but where there is only one.
  options = {"chips_per_host_bounds": (1, 1, 1)} if shape == "1x1" else {}
  try:
    topology = topologies.get_topology_desc(
      platform="tpu", topology_name=name, **options
    )
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f"--topology={name}: {str(error).splitlines()[0]} Is libtpu installed "
      "(extra 'tpu')?"
    ) from error
  return topology.devices


def compile_step(config: Any, topology: str) -> dict[str, Any]:
  """Compiles the first stage's step of a config for a slice.

  Args:
    config: The experiment's config.
    topology: Kind and shape of the slice.

  Returns:
    What is known of the step; with ``"failure"`` if it did not compile.
  """
  devices = topology_devices(topology)
  import jax

  from synguide_jax.data import experiment_data
  from synguide_jax.program import Program
  from synguide_jax.train import run_numbers

  runs = run_numbers(config)
  data = experiment_data.load(config.data, seed=config.seed, runs=runs)
  program = Program(config, data, runs, devices)
  start = time.monotonic()
  lowered = program.traced_step().lower()
  row = {
    "mesh": list(program.mesh.shape.values()),
    "runs_mode": program.runs_mode,
    "trace_s": time.monotonic() - start,
  }
  start = time.monotonic()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    return row | {"failure": _why(error), **_took(start)}
  row |= _took(start)
  if _TEXT.value:
    Path(_TEXT.value).write_text(compiled.as_text())
  memory = compiled.memory_analysis()
  images = program.images.abstract_stored
  return row | {
    "argument_bytes": memory.argument_size_in_bytes,
    "output_bytes": memory.output_size_in_bytes,
    "aliased_bytes": memory.alias_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
    "code_bytes": memory.generated_code_size_in_bytes,
    "image_bytes": images.size if images is not None else 0,
    "flops": compiled.cost_analysis()["flops"],
    "collectives": count_collectives(compiled.as_text()),
  }


def _took(start: float) -> dict[str, float]:
  """Seconds since then, and the most memory this process has had."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
    "compile_s": time.monotonic() - start,
    "host_peak_bytes": 1024 * peak,
  }


def _why(error: Exception) -> str:
  """Returns the compiler's reason for failing, on one line."""
  text = " ".join(str(error).split())
  if found := _TOO_LARGE.search(text):
    used, available = filter(None, found.groups())
    return f"does not fit: {used} of {available}"
  return text[:200]


def _read(path: Path) -> dict[str, dict[str, Any]]:
  """Returns the rows so far by name; of two, the later one."""
  if not path.exists():
    return {}
  rows = map(json.loads, path.read_text().splitlines())
  return {row["name"]: row for row in rows}


def _add(path: Path, row: dict[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a") as file:
    file.write(json.dumps(row) + "\n")


def run_cell(name: str, output: Path) -> None:
  """Compiles a cell in a process of its own, which may run out of memory."""
  spec, topology, batch_size, num_runs = CELLS[name]
  say(f"{name}: compiling for {topology}")
  command = [
    *(sys.executable, "-m", "benchmarks.tpu_compile"),
    *(f"--config={spec}", f"--topology={topology}"),
    *(f"--batch_size={batch_size}", f"--num_runs={num_runs}"),
    *(f"--name={name}", f"--output={output}"),
  ]
  code = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
  if code > 0:
    raise UserError(f"{' '.join(command)} failed; see above.")
  if code < 0:
    why = f"compiler ended by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
      why += ", probably for this machine's memory"
    _add(output, {"name": name, "topology": topology, "failure": why})


HEADER = (
  "cell",
  "slice",
  "runs x data",
  "images a chip",
  "arguments GB",
  "temporaries GB",
  "in all, of HBM",
  "TFLOP",
  "collectives: number, MB",
  "compiled in s",
)


def cells_of(row: dict[str, Any]) -> tuple[str, ...]:
  """Formats a row of the table."""
  kind = row["topology"].partition(":")[0]
  first = (row["name"], f"{num_chips(row['topology'])} {kind}")
  if "mesh" not in row:
    return (*first, row["failure"], *[""] * (len(HEADER) - 3))
  runs, shares = row["mesh"]
  side_by_side = 1
  if row["runs_mode"] == "vmap":
    side_by_side = math.ceil(row["num_runs"] / runs)
  images = f"{side_by_side * row['batch_size'] // shares}"
  first = (*first, f"{runs} x {shares}", images)
  seconds = f"{row['trace_s'] + row['compile_s']:.0f}"
  if "failure" in row:
    between = len(HEADER) - len(first) - 2
    return (*first, row["failure"], *[""] * between, seconds)
  own = row["argument_bytes"] - row["image_bytes"]
  total = (
    own
    + row["output_bytes"]
    - row["aliased_bytes"]
    + row["temporary_bytes"]
    + row["code_bytes"]
  )
  share = 100 * total / HBM[kind]
  collectives = "; ".join(
    f"{name}: {count}, {size / 1e6:,.1f}"
    for name, (count, size) in row["collectives"].items()
  )
  return (
    *first,
    f"{own / 1e9:.2f}",
    f"{row['temporary_bytes'] / 1e9:.2f}",
    f"{total / 1e9:.2f} ({share:.0f}%)",
    f"{row['flops'] / 1e12:.2f}",
    collectives or "none",
    seconds,
  )


def show(rows: Sequence[dict[str, Any]]) -> None:
  """Prints rows as a table."""
  say(f"| {' | '.join(HEADER)} |")
  # Words to the left, numbers to the right.
  say("| --- | --- | --- |" + " ---: |" * 5 + " --- | ---: |")
  for row in rows:
    say(f"| {' | '.join(cells_of(row))} |")


def main() -> None:
  """Compiles a config, or the cells that are missing; prints a table."""
  output = Path(_OUTPUT.value)
  if _CONFIG.value is None:
    for name in _CELLS.value:
      check_known("--cells", name, CELLS)
      if name not in _read(output):
        run_cell(name, output)
    rows = _read(output)
    show([rows[name] for name in _CELLS.value])
    return
  spec = config_flags.get_config_filename(flags.FLAGS["config"])
  config = _CONFIG.value
  for flag in (_BATCH_SIZE, _NUM_RUNS):
    if flag.value:
      config[flag.name] = flag.value
  if _STAND_INS.value:
    config = with_stand_ins(config, _PRETRAINED.value)
  row = {
    "name": _NAME.value or spec,
    "config": spec,
    "topology": _TOPOLOGY.value,
    "batch_size": config.batch_size,
    "num_runs": config.num_runs,
    **compile_step(config, _TOPOLOGY.value),
  }
  if _NAME.value:
    _add(output, row)
  show([row])


if __name__ == "__main__":
  console.run(main)
