"""results.json: what an experiment found, over its runs."""

from collections.abc import Mapping, Sequence
import importlib.metadata
import math
from pathlib import Path
import platform
import subprocess
from typing import Any

import numpy as np

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def plain(value: Any) -> Any:
  """Returns arrays as lists and non-finite numbers as None, for JSON."""
  if isinstance(value, Mapping):
    return {name: plain(of_name) for name, of_name in value.items()}
  if isinstance(value, (np.ndarray, np.generic)):
    value = value.tolist()
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def summarise(values: Sequence[float], kept: Sequence[bool]) -> dict[str, Any]:
  """Mean and spread of a figure over the runs.

  Args:
    values: One per run.
    kept: False for runs that are excluded because they diverged.

  Returns:
    ``mean``, ``std`` (of a sample: divided by n - 1; None for one run), ``n``
    (runs that count) and ``runs`` (every run's value; None if excluded).
  """
  inside = np.asarray(values, np.float64)[np.asarray(kept)]
  return {
    "mean": float(inside.mean()) if len(inside) else None,
    "std": float(inside.std(ddof=1)) if len(inside) > 1 else None,
    "n": len(inside),
    "runs": [
      plain(float(value)) if keep else None
      for value, keep in zip(values, kept, strict=True)
    ],
  }


def summarise_evaluation(
  metrics: Mapping[str, np.ndarray], kept: Sequence[bool]
) -> dict[str, Any]:
  """Summarises what an evaluation returned; see `summarise`."""
  return {
    name: plain(values) if name == "class_accuracy" else summarise(values, kept)
    for name, values in metrics.items()
  }


def held_out(config: Mapping[str, Any], images: Mapping[str, int]) -> str:
  """Says plainly which images the figures of a classifier are of.

  Args:
    config: The experiment's config.
    images: Number of images by role.
  """
  tested = "test" in config["evaluate_on"]
  if tested and (folds := config["data"]["folds"]):
    return (
      f"cross-validated: each run was tested on one of {folds} parts of "
      f"{images['test']} real images"
    )
  if tested and images["test"]:
    return f"on {images['test']} test images, looked at once"
  if not images["validation"]:
    return "no image was held out: nothing is known of the accuracy"
  why = (
    "no test image was looked at"
    if images["test"]
    else ("there is no test set")
  )
  used = ", which also chose the weights" if config["select"] == "best" else ""
  return f"{why}: these are {images['validation']} validation images{used}"


def versions() -> dict[str, str]:
  """Versions of what computed."""
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {"python": platform.python_version(), **found}


def commit() -> str | None:
  """The commit of the checkout this package runs from, if it is one."""

  def git(*args):
    return subprocess.run(
      ("git", *args),
      cwd=Path(__file__).parent,
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()

  try:
    git("ls-files", "--error-unmatch", Path(__file__).name)
    dirty = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
  except (OSError, subprocess.CalledProcessError):
    return None
