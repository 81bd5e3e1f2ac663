"""The report of an analysis: one page, for a person, and its numbers as CSV."""

from collections.abc import Iterable, Mapping
import functools
from pathlib import Path
import re
from typing import Any

import jinja2
from markupsafe import escape, Markup

from synguide_jax.analysis import exchange, figures, report_csv, report_images
from synguide_jax.cache import write_whole

_TEMPLATE = "report.html.j2"  # beside this file
_MISSING = "–"
_GAPS = {
  "content": "Content gap",
  "quality": "Quality gap",
  "appearance": "Appearance gap",
  "none": "No gap found",
  "unclear": "Unclear",
}


def write(analysis: Mapping[str, Any], workdir: str | Path) -> Path:
  """Writes report.html, analysis.csv and figures/.

  The page is one file that needs nothing else. A part that the analysis does
  not have is said not to have been run.

  Args:
    analysis: As analysis.json holds it.
    workdir: Where to write, and what the images that it names are relative to.

  Returns:
    The page.

  Raises:
    UserError: An image that the analysis names cannot be read.
  """
  workdir = Path(workdir)
  drawn = figures.draw(analysis, workdir / "figures")
  page = (
    _environment()
    .get_template(_TEMPLATE)
    .render(
      a=analysis,
      real=figures.real_name(analysis),
      held_out=figures.HELD_OUT,
      synthetic=[
        s["name"] for s in analysis["sources"] if s["kind"] == "synthetic"
      ],
      colours=figures.colours(analysis),
      gaps=_GAPS,
      worths=_worths(analysis),
      config=_flat(analysis.get("config", {})),
      figure=functools.partial(_figure, analysis, drawn),
      strip=functools.partial(report_images.strip, workdir),
      losses_of=functools.partial(figures.loss_pair, analysis),
      worst_first=figures.worst_first,
      mean_distance=report_csv.mean_distance,
      runs=_runs,
    )
  )
  write_whole(workdir / "analysis.csv", report_csv.as_csv(analysis).encode())
  path = workdir / "report.html"
  write_whole(path, page.lstrip().encode())
  return path


def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {
    "pm": _pm,
    "number": _number,
    "sentence": _sentence,
    "breakable": _breakable,
    "options": _options,
  }
  return environment


def _worths(analysis: Mapping[str, Any]) -> dict[str, str]:
  """Says of each synthetic source what it is worth."""
  images = {s["name"]: s["images"] for s in analysis["sources"]}
  return {
    source: exchange.sentence(entry["worth"], images[source])
    for source, entry in analysis.get("exchange", {}).items()
    if entry.get("worth")
  }


def _figure(
  analysis: Mapping[str, Any],
  drawn: Mapping[str, list[Path]],
  kind: str,
  alt: str,
  source: str | None = None,
) -> Markup | None:
  """A figure as part of the page; None if it was not drawn."""
  name = figures.figure_name(kind, analysis, source) if source else kind
  if name not in drawn:
    return None
  svg = next(path for path in drawn[name] if path.suffix == ".svg")
  return report_images.inline(svg, alt)


def _runs(summaries: Iterable[Mapping[str, Any] | None]) -> int | None:
  """The number of runs of figures, None if it is not one for all."""
  counts = {summary["n"] for summary in summaries if summary}
  return counts.pop() if len(counts) == 1 else None


def _pm(
  summary: Mapping[str, Any] | None,
  digits: int = 2,
  scale: float = 100,
  with_n: bool = False,
) -> str:
  """Formats mean, standard deviation and, if they differ, n; in percent."""
  if not summary or summary["mean"] is None:
    return _MISSING
  text = f"{scale * summary['mean']:,.{digits}f}"
  if summary["std"] is not None:
    # Parts that belong together stay on one line.
    text += "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"
    text += f"{scale * summary['std']:,.{digits}f}"
  return text + (f"\N{NO-BREAK SPACE}({summary['n']})" if with_n else "")


def _number(value: Any, digits: int | None = None, scale: float = 1) -> str:
  """Formats a number, to three significant digits by default."""
  if value is None:
    return _MISSING
  if isinstance(value, str):
    return value
  if digits is not None:
    return f"{scale * value:,.{digits}f}"
  return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _sentence(text: str) -> str:
  """Begins with a capital and ends with a full stop."""
  return text[:1].upper() + text[1:].rstrip(".") + "."


def _breakable(name: str) -> Markup:
  """Lets a name go on in a new line after each underscore."""
  return Markup("_<wbr>").join(name.split("_"))


def _options(text: str) -> Markup:
  """Keeps the dashes of a command's options together with their names."""
  option = r'<span class="option">\g<0></span>'
  return Markup(re.sub(r"--[\w.]+", option, str(escape(text))))


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
  """Names fields as the command line does, with dots."""
  found = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      found |= _flat(value, f"{before}{name}.")
    else:
      found[before + name] = value
  return found
