import copy
import hashlib
import itertools
import xml.etree.ElementTree as ElementTree

import matplotlib
from PIL import Image
import pytest

from synguide_jax.analysis import figures
from tests.analysis import made_up_analysis
from tests.analysis.made_up_analysis import BAD, GOOD


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
  return made_up_analysis.build(tmp_path_factory.mktemp("workdir"))


@pytest.fixture(scope="module")
def drawn(analysis, tmp_path_factory):
  return figures.draw(analysis, tmp_path_factory.mktemp("drawn") / "figures")


def _texts(svg):
  tag = "{http://www.w3.org/2000/svg}text"
  return ["".join(t.itertext()) for t in ElementTree.parse(svg).iter(tag)]


def test_every_part_has_a_figure_as_png_and_svg(drawn):
  kinds = ("losses", "coverage", "exchange", "amount")
  of_sources = {
    f"{kind}_{n}_{name}" for kind in kinds for n, name in ((1, GOOD), (2, BAD))
  }
  curves = {"curves_0_real", f"curves_1_{GOOD}", f"curves_2_{BAD}"}
  of_all = {"distances", "embedding_PCA", "embedding_UMAP"}
  assert set(drawn) == of_sources | curves | of_all
  for name, (png, svg) in drawn.items():
    assert (png.name, svg.name) == (f"{name}.png", f"{name}.svg")
    with Image.open(png) as image:
      assert image.width == 740
      assert image.convert("L").getextrema()[0] < 128
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


def test_only_parts_that_were_run_are_drawn(analysis, tmp_path):
  some = {name: analysis[name] for name in ("sources", "span")}
  some["span"] = {k: v for k, v in some["span"].items() if k != "embedding"}
  assert set(figures.draw(some, tmp_path)) == {"distances"}
  assert figures.draw({"sources": analysis["sources"]}, tmp_path) == {}


def test_figures_of_an_earlier_analysis_are_removed(analysis, tmp_path):
  figures.draw(analysis, tmp_path)
  other = {n: analysis[n] for n in ("sources", "span", "curves")}
  other["curves"] = {GOOD: analysis["curves"][GOOD]}
  points = analysis["span"]["embedding"]["points"]
  embedding = {**other["span"]["embedding"], "points": {"PCA": points["PCA"]}}
  other["span"] = {**other["span"], "embedding": embedding}
  kept = [tmp_path / name for name in ("curves.png", "my_losses_1_a.svg")]
  for path in kept:
    path.touch()
  drawn = figures.draw(other, tmp_path)
  assert set(drawn) == {f"curves_1_{GOOD}", "distances", "embedding_PCA"}
  files = [path for paths in drawn.values() for path in paths]
  assert figures.find(tmp_path) == sorted(files)
  assert set(tmp_path.iterdir()) == {*files, *kept}


def test_figures_are_found_by_their_names(drawn):
  files = [path for paths in drawn.values() for path in paths]
  assert figures.find(files[0].parent) == sorted(files)


def test_figures_repeat_and_leave_settings_alone(analysis, drawn, tmp_path):
  before = dict(matplotlib.rcParams)
  some = {name: analysis[name] for name in ("sources", "curves")}
  again = figures.draw(some, tmp_path)
  assert dict(matplotlib.rcParams) == before

  def digest(path):
    return hashlib.sha256(path.read_bytes()).digest()

  for name, paths in again.items():
    assert list(map(digest, paths)) == list(map(digest, drawn[name]))


def test_real_has_one_colour_and_each_source_its_own(analysis, drawn):
  of = figures.colours(analysis)
  assert of["real"] == of["held-out real"]
  assert len({of["real"], of[GOOD], of[BAD]}) == 3
  more = {"sources": [{"name": "photos", "kind": "real"}]}
  assert figures.colours(more)["photos"] == of["real"]
  for name in (GOOD, BAD):
    other = BAD if name == GOOD else GOOD
    svg = drawn[figures.figure_name("losses", analysis, name)][1].read_text()
    assert of["real"] in svg and of[name] in svg and of[other] not in svg


def _luminance(colour):
  parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
  linear = [
    c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
  ]
  weights = 0.2126, 0.7152, 0.0722
  return sum(w * c for w, c in zip(weights, linear, strict=True))


def test_colours_stand_out_on_light_and_on_dark_paper():
  sources = [{"name": str(n), "kind": "synthetic"} for n in range(8)]
  sources.append({"name": "real", "kind": "real"})
  found = set(figures.colours({"sources": sources}).values())
  assert len(found) == 5
  for colour, paper in itertools.product(found, ("#ffffff", "#14171a")):
    low, high = sorted(map(_luminance, (colour, paper)))
    assert (high + 0.05) / (low + 0.05) >= 3


def test_losses_are_drawn_as_shares_of_each_source(analysis, tmp_path):
  some = {name: analysis[name] for name in ("sources", "losses")}
  more = copy.deepcopy(some)
  # Twice the images are the same distribution.
  for entry in more["losses"]:
    entry["counts"] = [2 * count for count in entry["counts"]]
  first, second = (
    figures.draw(made, tmp_path / str(n)) for n, made in enumerate((some, more))
  )
  for name, paths in first.items():
    assert paths[1].read_bytes() == second[name][1].read_bytes()
  pair = figures.loss_pair(analysis, GOOD)
  assert [e["evaluated_on"] for e in pair] == [GOOD, "real"]


def test_classes_are_ordered_by_coverage_and_unmeasured_left_out(
  analysis, drawn
):
  classes = analysis["fidelity"][BAD]["classes"]
  worst = figures.worst_first(classes)
  shares = [of["coverage"] for of in worst.values()]
  assert shares == sorted(shares) and set(worst) == set(classes) - {"1"}
  svg = drawn[figures.figure_name("coverage", analysis, BAD)][1]
  texts = [text for text in _texts(svg) if text in classes]
  # "0" is also a tick of the axis.
  assert [t for t in texts if t != "0"] == [c for c in worst if c != "0"]


def test_many_classes_show_the_worst(analysis, tmp_path):
  some = copy.deepcopy({n: analysis[n] for n in ("sources", "fidelity")})
  some["fidelity"] = {GOOD: some["fidelity"][GOOD]}
  numbers = some["fidelity"][GOOD]["classes"]["0"]
  some["fidelity"][GOOD]["classes"] = {
    f"class {n}": numbers | {"coverage": n / 100} for n in range(50)
  }
  ((_, svg),) = figures.draw(some, tmp_path).values()
  texts = _texts(svg)
  assert "class 19" in texts and "class 20" not in texts


def test_diverged_and_single_runs_and_strange_names_are_drawn(
  analysis, tmp_path
):
  made = copy.deepcopy(analysis)
  for source in made["sources"]:
    source["name"] = {GOOD: '<a> & "$x_1$/' + 60 * "y"}.get(
      source["name"], source["name"]
    )
  name = made["sources"][1]["name"]
  made = {"sources": made["sources"], "span": made["span"]} | {
    part: {name: made[part][GOOD]} for part in ("curves", "exchange")
  }
  curves = made["curves"][name]
  curves["training"] = [[None] * 21, None, curves["training"][0]]
  del curves["validation"]
  curves["saturation"]["mean"] = None
  entry = made["exchange"][name]
  entry["real"][0] = {"mean": None, "std": None, "n": 0, "runs": [None]}
  entry["worth"] |= {"low": None, "high": None}
  drawn = figures.draw(made, tmp_path)
  assert all(p.parent == tmp_path for ps in drawn.values() for p in ps)
  assert all(p.name.isascii() and " " not in p.name for p in drawn["distances"])
  svg = drawn[figures.figure_name("curves", made, name)][1]
  assert "training images" in _texts(svg) and "real validation" not in _texts(
    svg
  )
