"""Tables of measurements: how they are printed, and what is kept of them."""

from collections.abc import Sequence
import dataclasses
import datetime
import importlib.metadata
import math
import os
from pathlib import Path
import platform
import statistics
import subprocess
import sys
from typing import Any

from absl import flags

# A text, a number, or numbers over rounds.
Cell = str | float | Sequence[float] | None

CORES = len(os.sched_getaffinity(0))
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "triton")

_ROUNDS = flags.DEFINE_integer(
  "rounds", 5, "Timed turns of each candidate.", lower_bound=1
)


def rounds() -> int:
  """Returns n, the timed turns that everything gets."""
  return _ROUNDS.value


@dataclasses.dataclass
class Table:
  """Rows of one kind.

  Attributes:
    title: What was measured, and how.
    rows: Cells by column.
  """

  title: str
  rows: list[dict[str, Cell]] = dataclasses.field(default_factory=list)

  def __str__(self) -> str:
    columns = list(dict.fromkeys(name for row in self.rows for name in row))
    # Words to the left, numbers to the right.
    numeric = {
      name: not all(isinstance(row.get(name, ""), str) for row in self.rows)
      for name in columns
    }
    rules = ["---:" if numeric[name] else "---" for name in columns]
    lines = [columns, rules]
    lines += [[text(row.get(name)) for name in columns] for row in self.rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"\n{self.title}\n\n{body}"


def text(cell: Cell) -> str:
  """Formats a cell; numbers over rounds as median [smallest, largest]."""
  if cell is None or isinstance(cell, str):
    return cell or ""
  if not isinstance(cell, Sequence):
    return _number(cell, cell)
  if not cell:
    return ""
  middle = statistics.median(cell)
  low, high = (_number(x, middle) for x in (min(cell), max(cell)))
  return f"{_number(middle, middle)} [{low}, {high}]"


def _number(value: float, like: float) -> str:
  """Shows a number with the decimals that three digits of another need."""
  if isinstance(value, int) or not math.isfinite(value):
    return f"{value:,}"
  size = math.floor(math.log10(abs(like))) if like else 0
  return f"{value:,.{max(0, 2 - size)}f}"


def ratios(own: Sequence[float], other: Sequence[float]) -> list[float]:
  """Divides round by round."""
  return [a / b for a, b in zip(own, other, strict=True)]


def environment() -> dict[str, Any]:
  """What a figure has to be read with; starts JAX."""
  import jax

  device = jax.devices()[0]
  return {
    "command": f"python -m {_module()} {' '.join(sys.argv[1:])}".strip(),
    "commit": _commit(),
    "date": datetime.date.today().isoformat(),
    "processor": f"{_processor()}, {CORES} cores",
    "device": f"{device.device_kind} x {jax.device_count()}",
    "load": f"{os.getloadavg()[0]:.1f}",
    "versions": {"Python": platform.python_version()}
    | {name: _version(name) for name in _PACKAGES},
  }


def _module() -> str:
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  return spec.name if spec else sys.argv[0]


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "not installed"


def _processor() -> str:
  file = Path("/proc/cpuinfo")
  lines = file.read_text().splitlines() if file.exists() else []
  names = [x.partition(": ")[2] for x in lines if x.startswith("model name")]
  return names[0] if names else platform.processor()


def _commit() -> str:
  """Short hash of the checkout, with "+" where files differ from it."""

  def git(*arguments):
    return subprocess.run(
      ["git", "-C", str(Path(__file__).parent), *arguments],
      **{"capture_output": True, "text": True, "check": True},
    ).stdout.strip()

  try:
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
  except (OSError, subprocess.CalledProcessError):
    return "unknown"
