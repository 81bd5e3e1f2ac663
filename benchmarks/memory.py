"""What grows with the batch, the data set, the runs and the classes.

PG compares all pairs of a batch, so its value and gradient are measured by
themselves, between random features of 2,048 channels. The steps are of the
PG+RG variant of `benchmarks.step`. "Temporary" is what XLA's program needs
beside its arguments and results; "peak" is what the process (on a GPU, the
device) took above what it had before.
"""

from collections.abc import Callable, Iterator
import dataclasses
from pathlib import Path
import time
from typing import Any

from absl import flags
import jax
import psutil

from benchmarks import tables, training
from benchmarks.tables import Table
from benchmarks.training import Shape
from synguide_jax import pretrained_guidance_loss

MIB = 2**20
GROWTHS = ("batch", "images", "runs", "classes")

_GROWTHS = flags.DEFINE_list("growths", list(GROWTHS), "What grows.")
_ROWS = flags.DEFINE_list(
  "pg_rows", [str(2**power) for power in range(8, 14)], "N of PG."
)
_CHANNELS = flags.DEFINE_integer("pg_channels", 2048, "D of PG.")
_STEP = flags.DEFINE_string(
  "growth_step", "", "network:side:batch of the steps; '': the device's."
)
_IMAGES = flags.DEFINE_list("growth_images", ["1000", "10000", "50000"], "")
_RUNS = flags.DEFINE_list("growth_runs", ["1", "2", "5", "10"], "")
_CLASSES = flags.DEFINE_list("growth_classes", ["10", "100", "1000"], "")


class _Peak:
  """Measures the most memory taken inside the context, in MiB.

  ``added`` is None where the platform does not tell.
  """

  def __enter__(self) -> "_Peak":
    self._device = jax.devices()[0]
    self.added = None
    if self._device.platform != "cpu":
      stats = self._device.memory_stats() or {}
      # The device's own peak is never reset: what was more before hides it.
      self._before = stats.get("bytes_in_use"), stats.get("peak_bytes_in_use")
      return self
    # Linux resets the peak of the process.
    file = Path("/proc/self/clear_refs")
    if file.exists():
      file.write_text("5")
    self._before = psutil.Process().memory_info().rss
    return self

  def __exit__(self, *error: Any) -> None:
    if self._device.platform != "cpu":
      peak = (self._device.memory_stats() or {}).get("peak_bytes_in_use")
      in_use, before = self._before
      if peak is not None and peak > before:
        self.added = (peak - in_use) / MIB
      return
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
      if line.startswith("VmHWM"):
        self.added = int(line.split()[1]) / 1024 - self._before / MIB


def _milliseconds(call: Callable[[], Any], steps: int = 1) -> list[float]:
  """Times calls over rounds, each of so many steps, after one without."""
  call()
  found = []
  for _ in range(tables.rounds()):
    start = time.perf_counter()
    call()
    found.append(1e3 * (time.perf_counter() - start) / steps)
  return found


def _pg_rows() -> Iterator[dict[str, tables.Cell]]:
  grad = jax.jit(jax.value_and_grad(pretrained_guidance_loss))
  for count in map(int, _ROWS.value):
    keys = jax.random.split(jax.random.key(0))
    shape = (count, _CHANNELS.value)
    arguments = [jax.random.normal(key, shape) for key in keys]
    compiled = grad.lower(*arguments).compile()
    jax.block_until_ready(arguments)
    with _Peak() as peak:
      jax.block_until_ready(compiled(*arguments))
    yield {
      "N": count,
      "ms": _milliseconds(lambda: jax.block_until_ready(compiled(*arguments))),  # noqa: B023
      "temporary, MiB": compiled.memory_analysis().temp_size_in_bytes / MIB,
      "peak, MiB": peak.added,
    }


def _step_row(shape: Shape, num_runs: int = 1) -> dict[str, tables.Cell]:
  config = training.make_config(shape, "PG+RG", {"num_runs": num_runs})
  made = training.Training(config, training.random_data(shape, num_runs))
  memory = made.program.traced_step().lower().compile().memory_analysis()
  made.advance(1)
  steps = 5
  return {
    "ms a step": _milliseconds(lambda: made.advance(steps), steps),
    "temporary, MiB": memory.temp_size_in_bytes / MIB,
    "arguments, MiB": memory.argument_size_in_bytes / MIB,
    "of which images, MiB": made.program.images.abstract_stored.size / MIB,
    "runs_mode": made.program.runs_mode,
  }


def _shape() -> Shape:
  on_cpu = jax.default_backend() == "cpu"
  named = _STEP.value or (
    "small_cnn:8:64" if on_cpu else "cifar_resnet18:32:128"
  )
  network, side, batch = named.split(":")
  return Shape(network, int(side), int(batch), num_images=1000)


def measure() -> Iterator[Table]:
  """Yields a table for each thing that grows."""
  shape = _shape()
  step = (
    f"a PG+RG step of {shape.network}, {shape.side} px, batch {shape.batch}"
  )
  if "batch" in _GROWTHS.value:
    title = (
      f"memory: value and gradient of PG, D = {_CHANNELS.value:,}, float32"
    )
    yield Table(title, list(_pg_rows()))
  if "images" in _GROWTHS.value:
    table = Table(f"memory: {step}, by the images of each set")
    for count in map(int, _IMAGES.value):
      of = dataclasses.replace(shape, num_images=count)
      table.rows.append({"images of a set": count} | _step_row(of))
    yield table
  if "runs" in _GROWTHS.value:
    table = Table(f"memory: {step}, by runs in one program")
    for count in map(int, _RUNS.value):
      table.rows.append({"runs": count} | _step_row(shape, count))
    yield table
  if "classes" in _GROWTHS.value:
    table = Table(f"memory: {step}, by classes")
    for count in map(int, _CLASSES.value):
      of = dataclasses.replace(shape, num_classes=count)
      table.rows.append({"classes": count} | _step_row(of))
    yield table
