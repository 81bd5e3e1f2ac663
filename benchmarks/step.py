"""A guided step against a plain one, ours against PyTorch.

A step is all that training does for a batch: draw, gather, normalise, both
passes, guidance, Adam. Ours is the one that a config trains with; PyTorch's is
`benchmarks.torch_peer`; "lax" is ours on `jax.lax.conv_general_dilated`, which
differs from it on the CPU. Everything that is compared takes turns, in an order
that alternates, each turn as many steps as take --turn_seconds.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import importlib.util
import time
from typing import Any

from absl import flags
import jax

from benchmarks import flops, tables, training
from benchmarks.tables import Table
from benchmarks.training import Shape

# Network, side of the images and images a step.
CPU_CELLS = (
  "small_cnn:8:64",
  "cifar_resnet20:32:128",
  "cifar_resnet_narrow50:32:128",
  "cifar_resnet50:32:32",
  "resnet50:224:8",
)
GPU_CELLS = (
  *(f"cifar_resnet18:32:{batch}" for batch in (128, 512, 1024)),
  *(f"cifar_resnet50:32:{batch}" for batch in (128, 512, 1024)),
  *(f"resnet50:224:{batch}" for batch in (128, 256)),
  *(f"vit_small_patch16:224:{batch}" for batch in (128, 256)),
)
CANDIDATES = ("ours", "lax", "torch")

_CELLS = flags.DEFINE_list(
  "cells", None, "network:side:batch; by default those of the device."
)
_DTYPES = flags.DEFINE_list(
  "dtypes", None, "By default float32, and bfloat16 but on a CPU."
)
_VARIANTS = flags.DEFINE_list(
  "variants", list(training.VARIANTS), "Kinds of steps."
)
_CANDIDATES = flags.DEFINE_list(
  "candidates", ["ours", "torch"], f"Of {', '.join(CANDIDATES)}."
)
_AUGMENT = flags.DEFINE_bool("augment", False, "Crop and flip the images.")
_TURN_SECONDS = flags.DEFINE_float("turn_seconds", 2.0, "Length of a turn.")
_TORCH_MODE = flags.DEFINE_string(
  "torch_mode", "default", "Of torch.compile; '' for eager PyTorch."
)

# By variant and candidate.
Key = tuple[str, str]


def has_torch() -> bool:
  """Whether PyTorch is installed (extra "parity")."""
  return importlib.util.find_spec("torch") is not None


def _create(shape: Shape, variant: str, candidate: str) -> Any:
  """Makes a training, compiled; None without PyTorch."""
  if candidate == "torch":
    if not has_torch():
      return None
    from benchmarks import torch_peer

    return torch_peer.Training(shape, variant, _TORCH_MODE.value)
  on_lax = flops.on_lax_convolutions()
  with on_lax if candidate == "lax" else contextlib.nullcontext():
    config = training.make_config(shape, variant)
    made = training.Training(config, training.random_data(shape))
    made.advance(1)
  return made


def _steps_a_turn(trainings: Mapping[Key, Any]) -> dict[Key, int]:
  """Tries each of them; the time of the second step counts."""
  found = {}
  for key, made in trainings.items():
    made.advance(1)
    start = time.perf_counter()
    made.advance(1)
    took = time.perf_counter() - start
    found[key] = max(1, round(_TURN_SECONDS.value / took))
  return found


def _time(trainings: Mapping[Key, Any]) -> dict[Key, list[float]]:
  """Returns seconds a step, over rounds."""
  steps = _steps_a_turn(trainings)
  seconds = {key: [] for key in trainings}
  for number in range(tables.rounds()):
    for key in list(trainings)[:: -1 if number % 2 else 1]:
      start = time.perf_counter()
      trainings[key].advance(steps[key])
      seconds[key].append((time.perf_counter() - start) / steps[key])
  return seconds


def _step_rows(
  shape: Shape, seconds: Mapping[Key, Sequence[float]], rate: float
) -> Iterator[dict[str, tables.Cell]]:
  trained, frozen = flops.of_step(shape)
  for (variant, candidate), own in seconds.items():
    row = _name(shape) | {"step": variant, "candidate": candidate}
    if not own:
      yield row | {"images/s": "not installed"}
      continue
    row["images/s"] = [shape.batch / x for x in own]
    for other in ("torch", "lax"):
      if theirs := seconds.get((variant, other)):
        row[f"to {other}"] = tables.ratios(theirs, own)
    work = trained + frozen * ("PG" in variant)
    row["TFLOP/s"] = [work / x / 1e12 for x in own]
    row["of matmul, %"] = [100 * work / x / rate for x in own]
    yield row


def _overhead_rows(
  shape: Shape, seconds: Mapping[Key, Sequence[float]]
) -> Iterator[dict[str, tables.Cell]]:
  trained, frozen = flops.of_step(shape)
  for (variant, candidate), own in seconds.items():
    plain = seconds.get(("plain", candidate))
    if variant == "plain" or not own or not plain:
      continue
    bound = 1 + frozen / trained if "PG" in variant else 1.0
    to_plain = tables.ratios(own, plain)
    yield _name(shape) | {
      "step": variant,
      "candidate": candidate,
      "ms more": [1e3 * (a - b) for a, b in zip(own, plain, strict=True)],
      "to plain": to_plain,
      "bound": bound,
      "to bound": [ratio / bound for ratio in to_plain],
    }


def _name(shape: Shape) -> dict[str, tables.Cell]:
  return {
    "network": f"{shape.network}, {shape.side} px",
    "dtype": shape.dtype,
    "batch": shape.batch,
  }


def _shapes() -> Iterator[Shape]:
  on_cpu = jax.default_backend() == "cpu"
  cells = _CELLS.value or (CPU_CELLS if on_cpu else GPU_CELLS)
  dtypes = ["float32"] if on_cpu else ["float32", "bfloat16"]
  for dtype in _DTYPES.value or dtypes:
    for cell in cells:
      network, side, batch = cell.split(":")
      # A few passes over few images: they only have to be looked up.
      yield Shape(
        *(network, int(side), int(batch), dtype),
        num_images=max(512, int(batch)),
        augment=_AUGMENT.value,
      )


def measure() -> Iterator[Table]:
  """Yields the table of speeds and that of overheads."""
  images = "cropped and flipped" if _AUGMENT.value else "as they are"
  speed = Table(
    "step: all of a training step, by images a second; ratios are images a "
    "second of this row to those of the other, in the same round; TFLOP/s "
    f"counts products and convolutions; images {images}"
  )
  overhead = Table(
    "overhead: time of a guided step to that of a plain one of the same "
    "candidate and round; bound: FLOPs with M_p's forward pass to its feature "
    "layer to those without"
  )
  rates = {}
  for shape in _shapes():
    if shape.dtype not in rates:
      rates[shape.dtype] = flops.matmul_rate(shape.dtype)
    keys = [(v, c) for v in _VARIANTS.value for c in _CANDIDATES.value]
    trainings = {key: _create(shape, *key) for key in keys}
    there = {key: made for key, made in trainings.items() if made is not None}
    seconds = {key: [] for key in keys} | _time(there)
    speed.rows += _step_rows(shape, seconds, rates[shape.dtype])
    overhead.rows += _overhead_rows(shape, seconds)
    # Their memory goes to the next.
    del trainings, there
    _forget()
  rate = ", ".join(f"{k} {v / 1e12:,.2f}" for k, v in rates.items())
  speed.title += f"; products of matrices, TFLOP/s: {rate}"
  yield speed
  yield overhead


def _forget() -> None:
  """Drops what was compiled for one shape."""
  jax.clear_caches()
  if has_torch():
    import torch

    torch.compiler.reset()
    if torch.cuda.is_available():
      torch.cuda.empty_cache()
