"""Tests of synguide_jax.analysis.verdict, on analyses that are made up."""

import json

import pytest

from synguide_jax.analysis import verdict

_SOURCE = "generated"
_TEST = 1000  # images
_PERFECT = {
  "precision": 0.9,
  "recall": 0.9,
  "density": 1.0,
  "coverage": 0.95,
  "frechet": 1.0,
}


def _summary(mean, std=0.002):
  return {"mean": mean, "std": std, "n": 5, "runs": [mean] * 5}


def _analysis(
  *, teacher=0.95, recognised=0.95, learnable=0.95, classes=None, **fidelity
):
  """The analysis of a source; by default of one without any gap."""
  sets = [
    {"source": "real", "part": "training", "images": 900},
    {"source": "real", "part": "test", "images": _TEST},
    {"source": _SOURCE, "part": "training", "images": 2000},
    {"source": _SOURCE, "part": "held out", "images": _TEST},
  ]
  rows = (1.0, 0.95, 0.1, recognised), (0.2, teacher, 1.0, learnable)
  names = ("cat", "dog", "eel")
  counts = {"real": 300, "synthetic": 300}
  by_class = {name: counts | {"coverage": 0.95} for name in names}
  for name, coverage in (classes or {}).items():
    by_class[name] = counts | {"coverage": coverage}
  return {
    "sources": [
      {"name": "real", "kind": "real", "images": 900},
      {"name": _SOURCE, "kind": "synthetic", "images": 2000},
    ],
    "accuracy": {
      "trained_on": ["real", _SOURCE],
      "sets": sets,
      "cells": [[_summary(mean) for mean in row] for row in rows],
    },
    "losses": [
      {
        "trained_on": trained_on,
        "evaluated_on": of,
        "above_one": _summary(share),
      }
      for trained_on, of, share in (
        ("real", _SOURCE, 0.02),
        (_SOURCE, "real", 0.1),
      )
    ],
    "fidelity": {
      _SOURCE: {"overall": _PERFECT | fidelity, "classes": by_class},
      verdict.HELD_OUT: {
        "overall": _PERFECT,
        "classes": {name: counts | {"coverage": 0.95} for name in names},
      },
    },
  }


def _judge(**changes):
  return verdict.judge(_analysis(**changes), _SOURCE)


_OFF = {"precision": 0.3, "density": 0.2, "coverage": 0.4}
_NARROW = {"recall": 0.5, "coverage": 0.6}


@pytest.mark.parametrize(
  ("changes", "gaps"),
  [
    ({}, ["none"]),
    ({"recognised": 0.97, "learnable": 0.8, "density": 2.0}, ["none"]),
    ({"teacher": 0.925, "recognised": 0.925}, ["none"]),
    # Easier than real images, and yet as good a teacher.
    ({"recognised": 0.99}, ["unclear"]),
    # The paper's SG-XL, and its LSGM, whose images lose less than 2 points.
    ({"recognised": 0.987, "teacher": 0.789} | _NARROW, ["content"]),
    ({"recognised": 0.9354, "teacher": 0.8576} | _NARROW, ["content"]),
    # Two of three are enough, also where a classifier is as good.
    ({"teacher": 0.85, "recall": 0.5}, ["content"]),
    ({"teacher": 0.85, "coverage": 0.6}, ["content"]),
    ({"teacher": 0.85, "classes": {"dog": 0.3}}, ["content"]),
    (_NARROW, ["content"]),
    # By elimination.
    ({"teacher": 0.85}, ["content"]),
    ({"teacher": 0.91, "recognised": 0.93}, ["unclear"]),
    ({"recall": 0.5}, ["unclear"]),
    ({"coverage": 0.6}, ["unclear"]),
    ({"recall": 0.5, "coverage": None}, ["unclear"]),
    # Labels that are wrong, then content that is distorted.
    ({"recognised": 0.7, "teacher": 0.9}, ["quality"]),
    ({"recognised": 0.7, "teacher": 0.9, "learnable": 0.7} | _OFF, ["quality"]),
    # The same, but told apart by a classifier of its own; or recognised.
    ({"recognised": 0.7, "teacher": 0.9} | _OFF, ["appearance"]),
    (_OFF, ["appearance"]),
    ({"density": 0.7}, ["appearance"]),
    # Images that are off cover little, which does not speak of content.
    ({"teacher": 0.85} | _OFF, ["appearance"]),
    # The larger comes first: 15 points, or 5 of 25, are not mutual.
    ({"recognised": 0.85, "teacher": 0.7} | _NARROW, ["content", "quality"]),
    ({"recognised": 0.75, "teacher": 0.7} | _NARROW, ["quality", "content"]),
    ({"teacher": 0.7} | _OFF | {"recall": 0.5}, ["content", "appearance"]),
  ],
)
def test_verdicts(changes, gaps):
  found = _judge(**changes)
  assert found["gap"] == gaps[0]
  assert (found["gaps"] or [found["gap"]]) == gaps
  assert found["sentences"] and found["advice"]
  assert json.loads(json.dumps(found)) == found


def test_evidence_is_met_below_its_threshold():
  found = _judge(teacher=0.7, recall=0.85)
  items = {item["rule"].split(":")[0]: item for item in found["evidence"]}
  assert items["worse teacher"]["met"] is True
  assert items["worse teacher"]["value"] == 0.7
  # Two errors, of runs and of 1,000 images each.
  error = (0.05 * 0.95 / 1000 + 0.7 * 0.3 / 1000 + 2 * 0.002**2 / 5) ** 0.5
  threshold = items["worse teacher"]["threshold"]
  assert threshold == pytest.approx(0.95 - 2 * error, abs=2e-4)
  assert items["narrow"]["met"] is False
  assert items["narrow"]["threshold"] == pytest.approx(0.81)
  assert items["off"]["rule"].startswith("off: density")
  assert items["off"]["threshold"] == pytest.approx(0.8)
  assert found["evidence"][-1]["met"] is True  # losses


def test_thresholds_grow_with_noise():
  analysis = _analysis(teacher=0.9, recall=0.5)
  assert verdict.judge(analysis, _SOURCE)["gap"] == "content"
  analysis["accuracy"]["cells"][1][1]["std"] = 0.1
  assert verdict.judge(analysis, _SOURCE)["gap"] == "unclear"


def test_a_worse_source_never_looks_better():
  rank = {"none": 0, "unclear": 1, "content": 2}
  for steps in (
    [{"recall": r, "coverage": r} for r in (0.95, 0.87, 0.84, 0.8, 0.4, 0.0)],
    [{"teacher": a, "recall": 0.5} for a in (0.99, 0.94, 0.9, 0.5, 0.1)],
  ):
    ranks = [rank[_judge(**step)["gap"]] for step in steps]
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1] == 2
  for step in (0.95, 0.94, 0.9, 0.5, 0.1):
    expected = "none" if step > 0.93 else "quality"
    assert _judge(recognised=step)["gap"] == expected


def test_least_covered_classes():
  few = {"cat": 0.5, "eel": 0.2, "dog": 0.9}
  found = _judge(teacher=0.85, classes=few)
  assert found["least_covered"] == ["eel", "cat"]
  assert any("eel, cat" in line for line in found["advice"])
  # Of images that are off, real ones of these classes are no remedy.
  found = _judge(classes=few, **_OFF)
  assert found["least_covered"] == ["eel", "cat"]
  assert not any("eel" in line for line in found["advice"])
  # Three images say little of a class.
  analysis = _analysis(teacher=0.85, classes=few)
  for entry in analysis["fidelity"].values():
    for counts in entry["classes"].values():
      counts["real"] = 3
  assert verdict.judge(analysis, _SOURCE)["least_covered"] == []


@pytest.mark.parametrize("part", ["accuracy", "fidelity", "losses", "sources"])
def test_missing_parts(part):
  analysis = _analysis()
  del analysis[part]
  found = verdict.judge(analysis, _SOURCE)
  is_needed = part in ("accuracy", "fidelity")
  assert found["gap"] == ("unclear" if is_needed else "none")
  said = found["sentences"][-1]
  assert said.startswith("Not measured") is is_needed
  assert (part in said) is is_needed
  assert any("missing" in line for line in found["advice"]) is is_needed


def test_nothing_at_all():
  found = verdict.judge({}, _SOURCE)
  assert found["gap"] == "unclear"
  assert not any(item["met"] for item in found["evidence"])
  assert f"fidelity of {_SOURCE}" in found["sentences"][-1]


def test_what_tells_quality_and_appearance_apart_is_missing():
  analysis = _analysis(recognised=0.7, **_OFF)
  del analysis["accuracy"]["sets"][3]  # the training images stand in
  for row in analysis["accuracy"]["cells"]:
    del row[3]
  found = verdict.judge(analysis, _SOURCE)
  assert found["gap"] == "unclear"
  assert "not learnable" in found["sentences"][-1]


def test_runs_that_all_diverged_were_not_measured():
  analysis = _analysis()
  nothing = {"mean": None, "std": None, "n": 0, "runs": [None]}
  analysis["accuracy"]["cells"][1][1] = nothing
  found = verdict.judge(analysis, _SOURCE)
  assert found["gap"] == "unclear"
  assert "worse teacher" in found["sentences"][-1]


@pytest.mark.parametrize(
  ("images", "gap"), [(900, "content"), (899, "unclear")]
)
def test_too_few_images_may_be_why_a_teacher_is_worse(images, gap):
  analysis = _analysis(teacher=0.85)
  analysis["sources"][1]["images"] = images
  assert verdict.judge(analysis, _SOURCE)["gap"] == gap


def test_one_run_has_the_noise_of_images():
  analysis = _analysis(teacher=0.8, recall=0.5)
  for row in analysis["accuracy"]["cells"]:
    for cell in row:
      cell |= {"std": None, "n": 1}
  assert verdict.judge(analysis, _SOURCE)["gap"] == "content"


def test_fidelity_of_other_numbers_of_images_is_not_compared():
  analysis = _analysis(teacher=0.8, **_NARROW)
  for entry in analysis["fidelity"][verdict.HELD_OUT]["classes"].values():
    entry["synthetic"] = 100
  found = verdict.judge(analysis, _SOURCE)
  assert found["gap"] == "unclear"
  assert "900 against 300" in found["sentences"][-1]


def test_the_advice_knows_of_few_images_and_few_shots():
  analysis = _analysis(teacher=0.8, recall=0.5)
  analysis["sources"][1]["images"] = 450
  worth = {"shots": 10, "equivalent": 11.0, "low": 9.5, "high": 12.0}
  analysis["exchange"] = {_SOURCE: {"worth": worth}}
  advice = verdict.judge(analysis, _SOURCE)["advice"]
  assert any("450 are fewer than the 900" in line for line in advice)
  assert any("with 10 a class" in line for line in advice)
  worth["low"] = 10.5
  advice = verdict.judge(analysis, _SOURCE)["advice"]
  assert not any("Label more" in line for line in advice)


def test_sentences_have_figures_with_units():
  found = _judge(recognised=0.987, teacher=0.789, **_NARROW)
  assert found["sentences"] == [
    "Content gap of generated: its images show a part of what real ones show.",
    "Trained on real images, a classifier is right on 95.0% of real test "
    "images and on 98.7% of generated; trained on generated, on 78.9% of real "
    "test images.",
    "90% of its images are near real ones (held-out real images: 90%); 60% of "
    "real images have one of its near (95%), and 50% are within the range of "
    "what it makes (90%).",
  ]
