import base64
import copy
import csv
import html.parser
import io
import json
import re

import numpy as np
from PIL import Image
import pytest

from synguide_jax.analysis import report
from synguide_jax.errors import UserError
from tests.analysis import made_up_analysis
from tests.analysis.made_up_analysis import BAD, GOOD

_VOID = {"meta", "link", "img", "br", "wbr"}
_PARTS = ["accuracy", "curves", "losses", "fidelity", "copies", "span"]
_PARTS += ["exchange", "verdict"]


class _Page(html.parser.HTMLParser):
  """Checks that elements are nested, and collects what tests ask about."""

  def __init__(self, text):
    super().__init__()
    self.open, self.seen, self.texts = [], [], []
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    assert len(dict(attrs)) == len(attrs), (tag, attrs)
    self.seen.append((tag, dict(attrs)))
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.seen.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, self.getpos()

  def handle_data(self, data):
    if not {"style", "title", "text"} & set(self.open):
      self.texts.append(data)

  def all(self, *tags):
    return [attrs for tag, attrs in self.seen if tag in tags]

  @property
  def text(self):
    return re.sub(r"\s+", " ", "".join(self.texts))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp("workdir")


@pytest.fixture(scope="module")
def analysis(workdir):
  return made_up_analysis.build(workdir)


@pytest.fixture(scope="module")
def page(analysis, workdir):
  path = report.write(analysis, workdir)
  assert path == workdir / "report.html"
  text = path.read_text(encoding="utf-8")
  assert text.startswith("<!DOCTYPE html>")
  (workdir / "analysis.csv").rename(workdir / "full.csv")
  return _Page(text)


def test_page_needs_nothing_else(page):
  for attrs in page.all("img", "link", "image", "use", "script"):
    for name in ("src", "href", "xlink:href"):
      assert attrs.get(name, "data:").startswith(("data:", "#"))
  assert not page.all("script", "iframe", "object")


def test_page_is_one_that_a_screen_reader_can_follow(page):
  assert page.all("html") == [{"lang": "en"}]
  assert all(image["alt"].strip() for image in page.all("img"))
  pictures = [a for a in page.all("svg") if "aria-label" in a]
  assert len(pictures) == len(page.all("svg")) == 14
  levels = [int(t[1]) for t, _ in page.seen if re.fullmatch(r"h\d", t)]
  assert levels[0] == 1 and levels.count(1) == 1
  assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
  cells = page.all("th")
  assert cells and all("scope" in cell for cell in cells)


def test_names_of_elements_are_unique_and_what_is_referred_to_is_there(page):
  names = [attrs["id"] for _, attrs in page.seen if "id" in attrs]
  assert len(names) == len(set(names))
  referred = [
    attrs[name][1:]
    for _, attrs in page.seen
    for name in ("href", "xlink:href")
    if attrs.get(name, "").startswith("#")
  ]
  referred += re.findall(r"url\(#([^)]*)\)", str(page.seen))
  assert referred and set(referred) <= set(names)


def test_figures_are_in_the_ink_of_the_page(page):
  styles = "".join(attrs.get("style", "") for _, attrs in page.seen)
  assert "currentColor" in styles
  assert "#1b1f24" not in styles and "#ffffff" not in styles


def test_verdict_comes_first_and_says_what_images_are_worth(page):
  text = page.text
  assert text.index("Verdict") < text.index("Observation 1: accuracy")
  worth = (
    "These 2,000 images are worth about 7 real ones a class (4 to 10, 95% of "
    "2,000 resamplings of 5 runs), used with 10 of them by balanced."
  )
  assert text.index(worth) < text.index("Observation 1: accuracy")
  assert f"{GOOD}: Content gap" in text and f"{BAD}: Quality gap" in text
  assert "Least covered classes: 8, 3." in text
  # Of several sources all verdicts stand first, and lead to what they are of.
  both = f"{GOOD}Content gap {BAD}Quality gap "
  assert text.index(both) < text.index(worth)


def test_real_images_are_a_row_of_copies_once_if_they_are_the_same(
  analysis, tmp_path
):
  def rows(some):
    text = _Page(report.write(some, tmp_path).read_text()).text
    text = text[text.index("median distance") : text.index("Distances are")]
    return re.findall(r" (real(?:, for [a-z_]+)?)700", text)

  some = _some(analysis, "copies")
  assert rows(some) == ["real"]
  some["copies"][BAD]["references"]["near_copies"] = 1
  assert rows(some) == [f"real, for {GOOD}", f"real, for {BAD}"]


def test_numbers_are_those_of_the_analysis(page, analysis):
  for row in analysis["accuracy"]["cells"]:
    for cell in row:
      mean, std = 100 * cell["mean"], 100 * cell["std"]
      assert f"{mean:.2f}\xa0±\xa0{std:.2f}" in "".join(page.texts)
  assert "over 5 runs" in page.text
  assert "0.150 (0.060 to 0.240)" in page.text
  assert "data.realdigits" in re.sub(r"\s", "", page.text)  # of the config


def _some(analysis, *parts):
  return copy.deepcopy({n: analysis[n] for n in ("sources", *parts)})


def test_counts_of_runs_that_differ_stand_beside_each(analysis, tmp_path):
  some = _some(analysis, "accuracy")
  cells = some["accuracy"]["cells"]
  cells[0][0] = {"mean": 0.5, "std": None, "n": 1, "runs": [0.5]}
  cells[0][1] = {"mean": None, "std": None, "n": 0, "runs": [None]}
  text = _Page(report.write(some, tmp_path).read_text()).texts
  assert "50.00\xa0(1)" in text and "–" in text
  assert sum("\xa0(5)" in part for part in text) == 16


def test_parts_that_are_absent_are_said_not_to_be_run(analysis, tmp_path):
  none = _Page(report.write(_some(analysis), tmp_path).read_text())
  assert none.text.count("Not run.") == len(_PARTS)
  for part in ("accuracy", "copies", "verdict"):
    some = _Page(report.write(_some(analysis, part), tmp_path).read_text())
    assert some.text.count("Not run.") == len(_PARTS) - 1


def test_full_page_has_run_all(page):
  assert "Not run." not in page.text


def test_names_cannot_become_elements(analysis, workdir):
  name = "<script>alert(1)</script> & \"'"
  some = _some(analysis, "accuracy", "curves", "copies", "verdict")
  # As a value, and as a key.
  text = json.dumps(some).replace(GOOD, json.dumps(name)[1:-1])
  page = _Page(report.write(json.loads(text), workdir).read_text())
  assert not page.all("script")
  assert name in page.text
  assert any(name in svg.get("aria-label", "") for svg in page.all("svg"))


def test_missing_image_is_named(analysis, tmp_path):
  some = _some(analysis, "losses", "class_names")
  with pytest.raises(UserError, match="00.png.*run analyze again"):
    report.write(some, tmp_path)


def test_photographs_are_shrunk(analysis, tmp_path):
  random = np.random.default_rng(0)
  some = _some(analysis, "losses", "class_names")
  del some["losses"][1:]
  (tmp_path / "images").mkdir()
  for number in range(16):
    pixels = random.integers(256, size=(100, 150, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / f"{number:02}.png")
  text = report.write(some, tmp_path).read_text()
  sheets = re.findall(r"data:image/webp;base64,([^\"]*)", text)
  assert len(sheets) == 10
  with Image.open(io.BytesIO(base64.b64decode(sheets[0]))) as sheet:
    assert sheet.size == (8 * 50 - 2, 2 * 50 - 2)
    # A photograph is 48 pixels wide and 32 high, and the page shows around it.
    alpha = np.asarray(sheet.convert("RGBA"))[:48, :48, 3]
  assert (alpha.max(1) > 128).sum() == 32 and (alpha[10:38] > 128).all()


def test_csv_has_a_number_a_line(page, analysis, workdir):
  with (workdir / "full.csv").open(newline="") as file:
    lines = list(csv.DictReader(file))
  assert list(lines[0]) == ["part", "source", "set", "name", "mean", "std", "n"]
  keys = [tuple(line[k] for k in list(line)[:4]) for line in lines]
  assert len(keys) == len(set(keys))
  found = dict(zip(keys, lines, strict=True))
  cell = analysis["accuracy"]["cells"][1][0]
  line = found["accuracy", GOOD, "real, training", "accuracy"]
  assert float(line["mean"]) == cell["mean"]
  assert float(line["std"]) == cell["std"] and line["n"] == "5"
  line = found["fidelity", GOOD, "8", "coverage"]
  assert (line["mean"], line["std"], line["n"]) == ("0.21", "", "")
  assert found["worth", GOOD, "10 shots", "equivalent"]["mean"] == "17.2"
  assert found["copies", GOOD, "samples", "exact_copies"]["mean"] == "4"
  parts = {line["part"] for line in lines}
  assert parts == {*_PARTS, "amount", "worth"} - {"verdict"}
