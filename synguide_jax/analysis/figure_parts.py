"""What the figures have in common: their style, axes, legends and bands."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

INK, PAPER = "#1b1f24", "#ffffff"  # which pages replace by their own
WIDTH = 3.7  # inches
_HEIGHT = 2.6
_LONGEST = 26  # name in a legend, characters
_LONGEST_LINE = 34  # of one, all names
STYLE = {
  "axes.edgecolor": INK,
  "axes.facecolor": "none",
  "axes.labelcolor": INK,
  "axes.linewidth": 0.6,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "figure.facecolor": PAPER,
  "font.size": 9,
  "legend.borderaxespad": 0.2,
  "legend.fontsize": 9,
  "legend.frameon": False,
  "legend.handlelength": 1.8,
  "lines.linewidth": 1.6,
  "lines.markersize": 4,
  # As text, which the page sets in its own font.
  "svg.fonttype": "none",
  # The same figure is the same file.
  "svg.hashsalt": "synguide",
  "text.color": INK,
  "text.parse_math": False,  # "$" in a name is a dollar
  "xtick.color": INK,
  "xtick.major.width": 0.6,
  "xtick.minor.width": 0.4,
  "ytick.color": INK,
  "ytick.major.width": 0.6,
}


def new(
  x: str | None, y: str | None, height: float = _HEIGHT
) -> tuple[Figure, Axes]:
  """Begins a figure.

  Args:
    x: What is written below it.
    y: What stands beside it; None for no grid either.
    height: Inches.
  """
  figure = Figure(figsize=(WIDTH, height), layout="constrained")
  axes = figure.add_subplot()
  if y:
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.set_ylabel(y)
  if x:
    axes.set_xlabel(x)
  axes.set_axisbelow(True)
  return figure, axes


def legend(axes: Axes) -> None:
  """Above the axes, where it hides nothing; long names below each other."""
  handles, labels = axes.get_legend_handles_labels()
  fit = sum(map(len, labels)) <= _LONGEST_LINE
  axes.figure.legend(
    handles,
    labels,
    loc="outside upper left",
    ncols=len(labels) if fit else 1,
    columnspacing=1.2,
  )


def band(
  axes: Axes,
  x: np.ndarray,
  mean: np.ndarray,
  std: np.ndarray,
  colour: str,
  line: str,
  label: str,
) -> None:
  """A line of means in percent, and the standard deviation as a shade."""
  axes.plot(x, 100 * mean, line, color=colour, label=label)
  low, high = 100 * (mean - std), 100 * (mean + std)
  axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def whole(runs: Sequence[Sequence[float | None] | None]) -> list[list[float]]:
  """Leaves out runs that diverged."""
  return [list(run) for run in runs if run and None not in run]


def mean_std(runs: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
  """Of runs ``[R, S]``; a single one has no spread."""
  values = np.asarray(runs, float)
  several = len(values) > 1
  return values.mean(0), values.std(0, ddof=1) if several else 0 * values[0]


def summaries(
  found: Sequence[Mapping[str, Any] | None],
) -> tuple[np.ndarray, np.ndarray]:
  """Means and standard deviations; NaN where there is none, 0 for one run."""
  means = [(summary or {}).get("mean") for summary in found]
  stds = [(summary or {}).get("std") or 0.0 for summary in found]
  return np.array(means, float), np.array(stds, float)


def shares(counts: Sequence[float]) -> np.ndarray:
  """Counts as percent of all."""
  counts = np.asarray(counts, float)
  return 100 * counts / max(1, counts.sum())


def percent(value: float | None) -> float:
  """A share in percent, NaN for none."""
  return np.nan if value is None else 100 * value


def short(name: str, longest: int = _LONGEST) -> str:
  """Cuts what is too long."""
  return name if len(name) <= longest else name[: longest - 1] + "…"
