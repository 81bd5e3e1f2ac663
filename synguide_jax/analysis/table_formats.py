"""Tables of results as Markdown, LaTeX and CSV."""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import io
import itertools
import re
from typing import Any

from synguide_jax.analysis.table_overview import overview
from synguide_jax.analysis.table_rows import REFERENCES

_NOT_RUN = "not run"
_CELL = "mean +- standard deviation (n runs)"
_NOTES = (
  "Accuracy, and its mean over classes (balanced), in percent, mean +- "
  "standard deviation over n runs; paired differences in points, mean +- "
  "standard error, to the reference of the same shots, and of the same "
  "initialisation if there is one.",
  "Bold: the best of the same images, shots and initialisation, and what "
  "equals it when rounded; networks that saw all real images, where others saw "
  "fewer, are not compared.",
)
_PACKAGES = ("{booktabs}", "{graphicx}", "[T1]{fontenc}")
# LaTeX's own characters, and those that its default fonts lack.
_ESCAPES = {
  **{character: f"\\{character}" for character in "&%$#_{}"},
  "\\": r"\textbackslash{}",
  "~": r"\textasciitilde{}",
  "^": r"\textasciicircum{}",
  "<": r"\textless{}",
  ">": r"\textgreater{}",
  "|": r"\textbar{}",
  '"': r"\textquotedbl{}",
}


class Bold(str):
  """A cell that stands out."""


@dataclasses.dataclass(frozen=True)
class _Block:
  """A table as text; headings are lines above the rows, names first."""

  title: str
  headings: list[list[str]]
  rows: list[list[str]]


def markdown(tables: Sequence[Mapping[str, Any]]) -> str:
  """Formats what `table.gather` returned, all shares in percent.

  Args:
    tables: The tables.

  Returns:
    Settings side by side, where there are several; each table; what bold and
    the paper's values mean; the commands of what is missing.
  """
  parts = [_markdown_block(block) for block in _blocks(tables)]
  parts += [_NOTES[0]]
  if any(row["best"] for table in tables for row in table["rows"]):
    parts += [_NOTES[1]]
  if matches := _matches(tables):
    parts += ["\n".join(["The paper's values:", "", *matches])]
  if commands := _commands(tables):
    parts += [
      "\n".join([f"Not run ({len(commands)}):", "", "```sh", *commands, "```"])
    ]
  return "\n\n".join(parts)


def latex(tables: Sequence[Mapping[str, Any]]) -> str:
  """The same as LaTeX tables, which want the packages booktabs and graphicx.

  Tables that are wider than the text are made as wide as it. What is missing
  and what the paper's values are of stands in comments.
  """
  parts = ["\n".join(f"% \\usepackage{name}" for name in _PACKAGES)]
  parts += [_latex_block(block) for block in _blocks(tables)]
  notes = [*_NOTES, *_matches(tables), *_commands(tables)]
  parts.append("\n".join(f"% {line}" for n in notes for line in n.split("\n")))
  return "\n\n".join(parts)


def long_csv(tables: Sequence[Mapping[str, Any]]) -> str:
  """One line for each row of each table, with a header; shares, not percent."""
  lines = [_flat(t, row) for t in tables for row in [*t["rows"], *t["missing"]]]
  text = io.StringIO()
  fields = dict.fromkeys(itertools.chain.from_iterable(lines))
  writer = csv.DictWriter(text, fields, lineterminator="\n")
  writer.writeheader()
  writer.writerows(lines)
  return text.getvalue().rstrip("\n")


def _flat(table: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
  """A row with all of what `long_csv` has; None becomes an empty cell."""
  fields = table["fields"]
  accuracy, balanced, synthetic = (
    row.get(name) or {}
    for name in ("accuracy", "balanced_accuracy", "synthetic")
  )
  flat = {
    "table": table["title"],
    "real": fields["data.real"],
    "synthetic": str(fields["data.synthetic"]),
    "network": fields["model.name"],
    "seed": fields["seed"],
    **{name: row[name] for name in ("shots", "initialisation")},
    **{name: row[name] for name in ("method", "name", "label")},
    "status": _NOT_RUN if "command" in row else "finished",
    "accuracy": accuracy.get("mean"),
    "accuracy_std": accuracy.get("std"),
    "n": accuracy.get("n"),
    "balanced_accuracy": balanced.get("mean"),
    "balanced_accuracy_std": balanced.get("std"),
    "best": row.get("best"),
    "upper_bound": row["upper_bound"],
  }
  for name in REFERENCES:
    difference = row.get("difference", {}).get(name, {})
    flat[f"vs_{name}"] = difference.get("mean")
    flat[f"vs_{name}_standard_error"] = difference.get("standard_error")
    flat[f"vs_{name}_n"] = difference.get("n")
  published = row.get("paper") or {}
  return flat | {
    "accuracy_on_synthetic": synthetic.get("mean"),
    "conflict_rate": row.get("conflict_rate"),
    "train_seconds": row.get("seconds"),
    "paper": published.get("value"),
    "paper_matched": published.get("matched"),
    "workdir": row["workdir"],
    "command": row.get("command"),
  }


def _blocks(tables: Sequence[Mapping[str, Any]]) -> list[_Block]:
  layout = overview(tables)
  side_by_side = [_overview_block(layout)] if layout else []
  return [*side_by_side, *map(_table_block, tables)]


def _overview_block(layout: Mapping[str, Any]) -> _Block:
  headings = [[name, *texts] for name, texts in layout["headings"]]
  common = [f"{name}: {text}" for name, text in layout["common"].items()]
  rows = [
    [name, *map(_overview_cell, cells, layout["balanced"])]
    for name, cells in layout["rows"]
  ]
  values = [
    cell.get("paper") for _, row in layout["rows"] for cell in row if cell
  ]
  paper = ", [the paper's]" if any(values) else ""
  title = f"Side by side: {_CELL}{paper}"
  return _Block("; ".join([title, *common]), headings, rows)


def _overview_cell(row: Mapping[str, Any] | None, balanced: bool) -> str:
  if row is None:
    return ""
  if "command" in row:
    return _NOT_RUN
  summary = row["balanced_accuracy" if balanced else "accuracy"]
  text = " ".join(filter(None, [_mean_std(summary), f"({summary['n']})"]))
  if row["paper"]:
    text += f" [{_percent(row['paper']['value'], 2)}]"
  return Bold(text) if row["best"] else text


def _table_block(table: Mapping[str, Any]) -> _Block:
  how = "paired, balanced" if table["balanced"] else "paired"
  heading = ["method", "accuracy", "balanced", "n"]
  heading += [f"vs {name} ({how})" for name in REFERENCES]
  heading += ["on synthetic", "conflicts", "train s"]
  with_paper = any(row["paper"] for row in table["rows"])
  heading += ["the paper's"] if with_paper else []
  rows = []
  for row in table["rows"]:
    cells = [
      row["label"],
      *_accuracies(row, table["balanced"]),
      str(row["accuracy"]["n"]),
      *(_difference(row["difference"].get(name)) for name in REFERENCES),
      _mean_std(row["synthetic"]),
      _percent(row["conflict_rate"]),
      f"{row['seconds']:.1f}",
    ]
    if with_paper:
      cells.append(_percent(row["paper"]["value"], 2) if row["paper"] else "")
    rows.append(cells)
  for row in table["missing"]:
    rows.append([row["label"], _NOT_RUN, *[""] * (len(heading) - 2)])
  return _Block(table["title"], [heading], rows)


def _accuracies(row: Mapping[str, Any], balanced: bool) -> list[str]:
  """Accuracy and balanced accuracy; what weights were selected by is bold."""
  cells = [_mean_std(row["accuracy"]), _mean_std(row["balanced_accuracy"])]
  if row["best"]:
    cells[balanced] = Bold(cells[balanced])
  return cells


def _matches(tables: Sequence[Mapping[str, Any]]) -> list[str]:
  """What the paper's values are of, a line each."""
  lines = [
    f"* {_percent(row['paper']['value'], 2)}: {row['paper']['matched']}"
    for table in tables
    for row in table["rows"]
    if row["paper"]
  ]
  return list(dict.fromkeys(lines))


def _commands(tables: Sequence[Mapping[str, Any]]) -> list[str]:
  return [row["command"] for table in tables for row in table["missing"]]


def _markdown_block(block: _Block) -> str:
  first, *others = block.headings
  rule = ["---", *["---:"] * (len(first) - 1)]
  lines = [
    [_in_markdown(cell) for cell in line]
    for line in [first, rule, *others, *block.rows]
  ]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = [
    f"| {' | '.join(map(_pad, line, widths, range(len(line))))} |"
    for line in lines
  ]
  return "\n".join([f"### {block.title}", "", *text])


def _in_markdown(cell: str) -> str:
  escaped = cell.replace("|", "\\|")
  return f"**{escaped}**" if isinstance(cell, Bold) else escaped


def _pad(cell: str, width: int, column: int) -> str:
  """Left-aligns the first column; stretches the rule under the header."""
  if cell in ("---", "---:"):
    return cell.rjust(width, "-")
  return cell.rjust(width) if column else cell.ljust(width)


def _latex_block(block: _Block) -> str:
  lines = [
    r"\begin{table}",
    r"  \centering",
    rf"  \caption{{{_in_latex(block.title)}}}",
    r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
    rf"  \begin{{tabular}}{{l{'r' * (len(block.headings[0]) - 1)}}}",
    r"    \toprule",
    *(f"    {_latex_heading(line)} \\\\" for line in block.headings),
    r"    \midrule",
    *(f"    {' & '.join(map(_in_latex, row))} \\\\" for row in block.rows),
    r"    \bottomrule",
    r"  \end{tabular}}",
    r"\end{table}",
  ]
  return "\n".join(lines)


def _latex_heading(cells: Sequence[str]) -> str:
  """A line of headings, equal neighbours as one."""
  name, *texts = cells
  made = [_in_latex(name)]
  for text, group in itertools.groupby(texts):
    text, count = _in_latex(text), len(list(group))
    made.append(
      rf"\multicolumn{{{count}}}{{c}}{{{text}}}" if count > 1 else text
    )
  return " & ".join(made)


def _in_latex(cell: str) -> str:
  text = "".join(_ESCAPES.get(character, character) for character in cell)
  text = text.replace("+-", r"$\pm$")
  # A minus, not a hyphen, before a number that is alone or a mean.
  text = re.sub(r"^-(?=\d)", "$-$", text)
  return rf"\textbf{{{text}}}" if isinstance(cell, Bold) else text


def _percent(value: float | None, digits: int = 1) -> str:
  return "" if value is None else f"{100 * value:.{digits}f}"


def _mean_std(summary: Mapping[str, Any] | None) -> str:
  if summary is None or summary["mean"] is None:
    return ""
  spread = "" if summary["std"] is None else f" +- {100 * summary['std']:.2f}"
  return f"{100 * summary['mean']:.2f}{spread}"


def _difference(difference: Mapping[str, Any] | None) -> str:
  if difference is None:
    return ""
  error = difference["standard_error"]
  spread = "" if error is None else f" +- {100 * error:.2f}"
  return f"{100 * difference['mean']:+.2f}{spread}"
