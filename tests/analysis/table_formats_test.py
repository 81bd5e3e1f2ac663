"""Tests of the formats of tables; Markdown is in table_test.py too."""

import csv
import io
import re

import pytest

from synguide_jax import workdir
from synguide_jax.analysis import table
from tests.analysis import made_up


def _tables():
  """Aug and guided with ten shots and one, and csg planned with ten."""
  folders = [
    made_up.write("aug", [0.5, 0.6], method="aug"),
    made_up.write("guided", [0.53, 0.65]),
    made_up.write("aug1", [0.2, 0.3], method="aug", data__shots=1),
    made_up.write("guided1", [0.2, 0.2], data__shots=1),
  ]
  config = workdir.results(folders[0])["config"] | {"method": "csg"}
  planned = {"workdir": "runs/csg", "command": "python 'a, b'"}
  return table.gather(folders, [{**planned, "config": config}])


def test_csv_has_a_line_for_each_row():
  lines = list(csv.DictReader(io.StringIO(table.long_csv(_tables()))))
  found = {(line["label"], line["shots"]): line for line in lines}
  assert len(found) == len(lines) == 5
  guided = found["RG + PG-R + PG-F", "10"]
  assert float(guided["accuracy"]) == pytest.approx(0.59)
  assert float(guided["balanced_accuracy"]) == pytest.approx(0.295)
  assert float(guided["vs_aug"]) == pytest.approx(0.04)
  assert float(guided["vs_aug_standard_error"]) == pytest.approx(0.01)
  assert (guided["vs_aug_n"], guided["vs_balanced"]) == ("2", "")
  assert (guided["n"], guided["status"], guided["best"]) == (
    *("2", "finished"),
    "True",
  )
  missing = found["csg", "10"]
  assert (missing["status"], missing["accuracy"]) == ("not run", "")
  assert missing["command"] == "python 'a, b'"


def test_latex():
  text = table.latex(_tables())
  side_by_side, details = re.findall(
    r"\\begin{tabular}.*?\\end{tabular}", text, re.S
  )
  for tabular in (side_by_side, details):
    columns = re.search(r"{tabular}{(l?r*)}", tabular)[1]
    lines = [x for x in tabular.splitlines() if x.endswith(r"\\")]
    assert lines
    for line in lines:
      wide = sum(int(n) - 1 for n in re.findall(r"multicolumn{(\d)}", line))
      assert line.count("&") + wide == len(columns) - 1
    for rule in ("toprule", "midrule", "bottomrule"):
      assert tabular.count(rule) == 1
  assert r"\textbf{59.00 $\pm$ 0.50 (2)}" in side_by_side
  assert "$-$5.00 $\\pm$ 5.00" in details
  assert "csg & not run &" in details
  assert text.splitlines()[-1] == "% python 'a, b'"
  # The page may be narrower; each is a group that ends with its table.
  assert text.count("\\resizebox{") == text.count("\\end{tabular}}") == 2
  assert "% \\usepackage{graphicx}" in text


def test_latex_escapes():
  # A label is as a config's values are.
  spec = "folder:a_b&c%~^$#{x}"
  text = table.latex(
    table.gather([made_up.write("aug", [0.5], data__synthetic=spec)])
  )
  escaped = r"folder:a\_b\&c\%\textasciitilde{}\textasciicircum{}\$\#\{x\}"
  assert rf"\caption{{digits with {escaped}}}" in text


def test_markdown_has_settings_side_by_side_first():
  first, second, rest = table.markdown(_tables()).split("### ")[1:] + [""]
  assert "shots a class" in first and "train s" in second
  lines = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in first.splitlines()
    if line.startswith("|")
  ]
  assert lines[0] == ["shots a class", "1", "10"]
  assert ["aug", "**25.00 +- 0.50 (2)**", "55.00 +- 0.50 (2)"] in lines
  assert "Bold: " in second and not rest


def test_bold_is_the_figure_that_weights_were_selected_by():
  selects = {"select_metric": "balanced_accuracy"}
  text = table.markdown(
    table.gather(
      [
        made_up.write("aug", [0.5], method="aug", **selects),
        made_up.write("guided", [0.6], **selects),
      ]
    )
  )
  assert "**30.00**" in text and "**60.00" not in text


def test_a_bar_in_a_spec_stays_in_its_cell():
  text = table.markdown(
    table.gather(
      [
        made_up.write("aug", [0.5], method="aug"),
        made_up.write("aug2", [0.5], method="fake"),
        made_up.write("guided", [0.6], pretrained__weights="a|b"),
      ]
    )
  )
  assert r"pretrained.weights=a\|b" in text
