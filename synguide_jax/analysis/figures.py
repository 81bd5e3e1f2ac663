"""Figures of an analysis, as PNG and SVG.

Each is as wide as a phone's screen, so that its text is read at the size of the
page's; a page lays them side by side where there is room. A source has one
colour throughout; what else is told apart differs in line or marker. Colours
keep a contrast of 3 to white and to nearly black, and after Okabe and Ito
(https://jfly.uni-koeln.de/color/) are told apart by the colour-blind.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
import re
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
import numpy as np

from synguide_jax.analysis import figure_parts as parts

HELD_OUT = "held-out real"  # as `fidelity` calls it
WORST = 20  # classes shown, at most

_REAL, _SYNTHETIC = "#0072b2", ("#d55e00", "#009e73", "#b5609a", "#80752b")
_NEAR_ZERO, _HIGH = 0.01, 1.0  # losses in nats
# Figures' names, of a source and of all; see `figure_name`.
_OF_SOURCE = "(curves|losses|coverage|exchange|amount)_[0-9]+_[A-Za-z0-9_-]+"
_OF_ALL = "distances|embedding_[A-Za-z]+"


def draw(
  analysis: Mapping[str, Any], folder: str | Path
) -> dict[str, list[Path]]:
  """Draws what an analysis has, whatever parts of it were run.

  Args:
    analysis: As analysis.json holds it.
    folder: Where to write; made if need be. Figures of an earlier analysis,
      which may have had other parts and sets, are removed; other files stay.

  Returns:
    The files of each figure, PNG and SVG, by name: ``curves_<n>``,
    ``losses_<n>``, ``coverage_<n>``, ``exchange_<n>`` and ``amount_<n>``, see
    :func:`figure_name`; ``distances``, and ``embedding_<method>`` of each.
  """
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for path in find(folder):
    path.unlink()
  written = {}
  with matplotlib.rc_context(parts.STYLE):
    for name, figure in _figures(analysis):
      # Laid out once for both.
      figure.draw_without_rendering()
      figure.set_layout_engine("none")
      written[name] = [folder / f"{name}.{ending}" for ending in ("png", "svg")]
      for path in written[name]:
        no_date = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=200, metadata=no_date)
  return written


def find(folder: str | Path) -> list[Path]:
  """Finds the figures in a folder by their names, in the order of these."""
  name = re.compile(rf"({_OF_SOURCE}|{_OF_ALL})\.(png|svg)")
  paths = Path(folder).iterdir()
  return sorted(path for path in paths if name.fullmatch(path.name))


def figure_name(kind: str, analysis: Mapping[str, Any], source: str) -> str:
  """Names the figure of a source: its kind, number and name, safe for files."""
  number = [s["name"] for s in analysis["sources"]].index(source)
  return f"{kind}_{number}_{re.sub(r'[^A-Za-z0-9-]+', '_', source)[:50]}"


def colours(analysis: Mapping[str, Any]) -> dict[str, str]:
  """Gives each source its colour, ``#rrggbb``; the real one has always one."""
  found, count = {HELD_OUT: _REAL}, 0
  for source in analysis["sources"]:
    if source["kind"] == "real":
      found[source["name"]] = _REAL
    else:
      found[source["name"]] = _SYNTHETIC[count % len(_SYNTHETIC)]
      count += 1
  return found


def real_name(analysis: Mapping[str, Any]) -> str:
  """Names the real source."""
  return next(s["name"] for s in analysis["sources"] if s["kind"] == "real")


def loss_pair(
  analysis: Mapping[str, Any], source: str
) -> list[Mapping[str, Any]]:
  """Finds the losses of a synthetic source and the real one.

  Returns:
    Those that were computed of: the source's images under the classifier of
    the real ones, and real images under the source's classifier.
  """
  real = real_name(analysis)
  pairs = [(real, source), (source, real)]
  return [
    entry
    for pair in pairs
    for entry in analysis.get("losses", ())
    if (entry["trained_on"], entry["evaluated_on"]) == pair
  ]


def _figures(analysis: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
  def named(kind: str, source: str) -> str:
    return figure_name(kind, analysis, source)

  of = colours(analysis)
  curves = analysis.get("curves", {})
  lowest = _lowest(curves.values())
  for source, entry in curves.items():
    yield named("curves", source), _curves(entry, of[source], lowest)
  for source in (s["name"] for s in analysis["sources"]):
    pair = loss_pair(analysis, source)
    if pair and source != real_name(analysis):
      yield named("losses", source), _losses(pair, source, of)
  fidelity = analysis.get("fidelity", {})
  for source in fidelity:
    if source != HELD_OUT and worst_first(fidelity[source]["classes"]):
      yield named("coverage", source), _coverage(fidelity, source, of)
  if span := analysis.get("span"):
    yield "distances", _distances(span)
    if found := span.get("embedding"):
      for method, points in found["points"].items():
        figure = _embedding(method, points, found["source"], of)
        yield f"embedding_{method}", figure
  for source, entry in analysis.get("exchange", {}).items():
    colour = of[source]
    yield named("exchange", source), _exchange(entry, colour)
    if entry.get("amount"):
      yield named("amount", source), _amount(entry["amount"], colour)


def _curves(
  entry: Mapping[str, Any], colour: str, lowest: float | None
) -> Figure:
  """Figure 2 of the paper for one source."""
  figure, axes = parts.new("step", "accuracy, %")
  steps = np.asarray(entry["steps"])
  lines = (
    ("training", "training images", "-"),
    ("validation", "real validation", "--"),
  )
  for part, label, line in lines:
    if runs := parts.whole(entry.get(part, ())):
      parts.band(axes, steps, *parts.mean_std(runs), colour, line, label)
  if (saturation := entry["saturation"]["mean"]) is not None:
    axes.axvline(saturation, color=parts.INK, linestyle=":", linewidth=1)
    late = saturation > steps.mean()
    axes.annotate(
      "saturated",
      (saturation, 0.03),
      xycoords=("data", "axes fraction"),
      xytext=(-3 if late else 3, 0),
      textcoords="offset points",
      ha="right" if late else "left",
    )
  if lowest is not None:  # One scale for all sources.
    axes.set_ylim(100 * lowest, 100 + (100 - 100 * lowest) / 25)
  parts.legend(axes)
  return figure


def _losses(
  pair: Sequence[Mapping[str, Any]], source: str, of: Mapping[str, str]
) -> Figure:
  """Figure 3 of the paper for one source: filled, and dotted the opposite."""
  figure, axes = parts.new(
    "loss, nats (logarithmic)", "share of images, %", 2.9
  )
  for entry in pair:
    counts = np.asarray(entry["counts"], float)
    shares = 100 * counts / max(1, counts.sum())
    edges = np.asarray(entry["edges"], float)
    name, trained = entry["evaluated_on"], entry["trained_on"]
    label = f"{parts.short(name)} images, trained on {parts.short(trained)}"
    if name == source:
      axes.stairs(shares, edges, fill=True, alpha=0.45, color=of[name])
      axes.stairs(shares, edges, color=of[name], linewidth=1, label=label)
    else:
      axes.stairs(
        shares, edges, color=of[name], linestyle=":", linewidth=2, label=label
      )
  for at in (_NEAR_ZERO, _HIGH):
    axes.axvline(np.log10(at), color=parts.INK, linewidth=0.6, alpha=0.6)
  axes.xaxis.set_major_locator(matplotlib.ticker.MultipleLocator(2))
  axes.xaxis.set_major_formatter(FuncFormatter(_power))
  parts.legend(axes)
  return figure


def _power(exponent: float, _: int) -> str:
  return f"{10.0**exponent:g}".replace("e-0", "e-")


def worst_first(
  classes: Mapping[str, Mapping[str, Any] | None],
) -> dict[str, Mapping[str, Any]]:
  """Orders the classes that were measured by their coverage, ascending."""
  measured = {
    name: of_class
    for name, of_class in classes.items()
    if of_class and of_class["coverage"] is not None
  }
  return dict(sorted(measured.items(), key=lambda item: item[1]["coverage"]))


def _coverage(
  fidelity: Mapping[str, Any], source: str, of: Mapping[str, str]
) -> Figure:
  """Coverage of each class, beside that of held-out real images."""
  classes = worst_first(fidelity[source]["classes"])
  names = list(classes)[:WORST]
  figure, axes = parts.new("coverage, %", None, 0.85 + 0.21 * len(names))
  rows = np.arange(len(names))
  found = np.array([100 * classes[name]["coverage"] for name in names])
  held_out = fidelity.get(HELD_OUT, {}).get("classes", {})
  reference = np.array(
    [
      parts.percent((held_out.get(name) or {}).get("coverage"))
      for name in names
    ]
  )
  axes.hlines(rows, found, reference, color=parts.INK, linewidth=0.8, alpha=0.5)
  if np.isfinite(reference).any():
    axes.plot(
      reference, rows, "o", color=of[HELD_OUT], mfc="none", label=HELD_OUT
    )
  axes.plot(found, rows, "o", color=of[source], label=parts.short(source))
  axes.set_yticks(rows, [parts.short(name, 16) for name in names])
  axes.set_ylim(len(names) - 0.4, -0.6)
  axes.set_xlim(-2, 103)
  axes.tick_params(axis="y", length=0)
  axes.grid(axis="y", visible=False)
  axes.grid(axis="x", color=parts.INK, alpha=0.12, linewidth=0.6)
  parts.legend(axes)
  return figure


def _distances(span: Mapping[str, Any]) -> Figure:
  """How far apart features are: the frozen network's filled, others lines."""
  figure, axes = parts.new("cosine distance of two images", "share of pairs, %")
  edges = np.asarray(span["edges"], float)
  centres = (edges[:-1] + edges[1:]) / 2
  frozen = parts.shares(span["frozen"])
  axes.stairs(
    frozen,
    edges,
    fill=True,
    color=parts.INK,
    alpha=0.22,
    label="frozen network",
  )
  styles = ("-", "--", ":", "-.")
  for number, (name, counts) in enumerate(span["networks"].items()):
    line = styles[number % len(styles)]
    axes.plot(
      centres,
      parts.shares(counts),
      line,
      color=parts.INK,
      label=parts.short(name),
      lw=1.3,
    )
  axes.set_ylim(bottom=0)
  parts.legend(axes)
  return figure


def _embedding(
  method: str,
  points: Sequence[Sequence[float]],
  sources: Sequence[str],
  of: Mapping[str, str],
) -> Figure:
  """Features in two dimensions."""
  figure, axes = parts.new(None, None, parts.WIDTH)
  points, sources = np.asarray(points, float), np.asarray(sources)
  for name, marker in zip(dict.fromkeys(sources), "osD^v" * 20, strict=False):
    chosen = points[sources == name]
    # Pixels, since a shape for each point makes a large page.
    axes.scatter(
      chosen[:, 0],
      chosen[:, 1],
      s=7,
      marker=marker,
      color=of.get(name, parts.INK),
      alpha=0.65,
      linewidths=0,
      rasterized=True,
    )
    axes.plot(
      [],
      [],
      marker,
      color=of.get(name, parts.INK),
      label=parts.short(name),
      lw=0,
    )
  axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
  axes.spines[:].set_visible(False)
  axes.set_xlabel(f"{method}, two dimensions")
  parts.legend(axes)
  return figure


def _exchange(entry: Mapping[str, Any], colour: str) -> Figure:
  """Accuracy by real shots, without and with synthetic images."""
  figure, axes = parts.new(
    "real images a class", "accuracy on real images, %", 3.1
  )
  shots = np.asarray(entry["shots"], float)
  parts.band(
    axes, shots, *parts.summaries(entry["real"]), _REAL, "-o", "real only"
  )
  for line, (name, found) in zip(
    ("-s", "--^", ":D", "-.v") * 9, entry["with"].items(), strict=False
  ):
    label = f"with synthetic, {parts.short(name)}"
    parts.band(axes, shots, *parts.summaries(found), colour, line, label)
  _worth(axes, entry)
  axes.set_xscale("log")
  axes.set_xticks(shots, [f"{n:g}" for n in shots])
  axes.xaxis.set_minor_formatter(NullFormatter())
  axes.tick_params(axis="x", which="minor", length=0)
  parts.legend(axes)
  return figure


def _worth(axes: Axes, entry: Mapping[str, Any]) -> None:
  """Joins what is reached with synthetic images to real ones of that worth."""
  worth = entry.get("worth")
  if not worth or worth["equivalent"] is None:
    return
  place = entry["shots"].index(worth["shots"])
  mean = entry["with"][worth["method"]][place]["mean"]
  if mean is None:
    return
  ends = [worth["shots"], worth["equivalent"]]
  axes.plot(ends, [100 * mean] * 2, ":", color=parts.INK, lw=1)
  axes.plot(ends[1], 100 * mean, "|", color=parts.INK, ms=9)
  if worth["low"] is not None and worth["high"] is not None:
    axes.axvspan(worth["low"], worth["high"], color=parts.INK, alpha=0.1, lw=0)


def _amount(amount: Mapping[str, Any], colour: str) -> Figure:
  """Accuracy by the number of synthetic images."""
  figure, axes = parts.new("synthetic images", "accuracy on real images, %")
  found = parts.summaries(amount["accuracy"])
  label = f"{parts.short(amount['method'])}, {amount['shots']} real a class"
  parts.band(axes, np.asarray(amount["images"]), *found, colour, "-s", label)
  axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
  parts.legend(axes)
  return figure


def _lowest(curves: Any) -> float | None:
  """Finds where an axis of all curves begins, a multiple of a tenth."""
  values = [
    value
    for entry in curves
    for part in ("training", "validation")
    for run in parts.whole(entry.get(part, ()))
    for value in run
  ]
  return np.floor(10 * min(values)) / 10 if values else None
