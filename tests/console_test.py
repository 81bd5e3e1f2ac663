"""Tests of what commands show."""

import numpy as np
import pytest

from synguide_jax import console, experiment
from synguide_jax import results as results_lib


@pytest.mark.parametrize(
  ("seconds", "expected"),
  [
    (0.4, "0s"),
    (8.3, "8s"),
    (59.6, "1min 0s"),
    (75, "1min 15s"),
    (3599.7, "1h 0min"),
    (3723, "1h 2min"),
    (90_000, "25h 0min"),
  ],
)
def test_duration(seconds, expected):
  assert console.duration(seconds) == expected


def test_percent():
  summary = {"mean": 0.95321, "std": 0.0061, "n": 10}
  assert console.percent(summary) == "95.32 +- 0.61 (n=10)"
  assert console.percent({"mean": 0.5, "std": None, "n": 1}) == "50.00 (n=1)"
  none = {"mean": None, "std": None, "n": 0}
  assert console.percent(none) == "no run left"


def test_writer_prints_progress_and_time_left(capsys):
  writer = console.ConsoleWriter()
  writer.write_scalars(
    30,
    {
      "progress": 0.1,
      "steps_per_sec": 13.5,
      "images_per_sec": 1728.0,
      "seconds_left": 20.2,
      "train/loss": 2.01174,
      "train/conflict_rate": 0.1234,
      "train/real_accuracy": 0.5,
      "validation/accuracy": 0.916,
    },
  )
  assert capsys.readouterr().out == (
    "  step  30/300  loss 2.0117  conflicts 12.3%  validation 91.6%"
    "  14 steps/s  20s left\n"
  )


def test_writer_without_speed_or_validation(capsys):
  writer = console.ConsoleWriter()
  writer.write_scalars(2, {"progress": 1.0, "train/loss": 1.0})
  writer.write_scalars(
    1, {"progress": 0.5, "steps_per_sec": 0.25, "train/loss": 0.5}
  )
  writer.write_images(0, {"examples": np.zeros((1, 2, 2, 3), np.uint8)})
  assert capsys.readouterr().out == (
    "  step 2/2  loss 1.0000\n  step 1/2  loss 0.5000  0.2 steps/s\n"
  )
  writer.flush()


def _evaluation(mean, balanced, classes):
  return {
    "accuracy": {"mean": mean, "std": 0.1, "n": 2},
    "balanced_accuracy": {"mean": balanced, "std": 0.2, "n": 2},
    "class_accuracy": classes,
  }


def _results(**changes):
  return {
    "method": "aug",
    "runs": [3, 4, 5],
    # Run 4 diverged; nobody was tested on an owl.
    "test": _evaluation(
      0.5, 0.4, [[0.6, 0.2, None], [0.0, 0.0, None], [0.8, 0.4, None]]
    ),
    "diverged": {},
    "data": {
      "class_names": ["cat", "dog", "owl"],
      "held_out": "on 20 test images",
    },
    "seconds": {"train": 75.0},
    "devices": ["cpu:0"],
    **changes,
  }


def test_summary_of_results():
  results = _results(
    diverged={"4": 7}, synthetic=_evaluation(0.9, 0.8, [[1.0, 0.8, 0.6]] * 3)
  )
  assert experiment.summary(results) == [
    "aug: test accuracy 50.00 +- 10.00 (n=2), balanced 40.00 +- 20.00 (n=2)",
    "  by class: cat 70.0, dog 30.0",
    "  on 20 test images",
    "  accuracy on the synthetic images 90.00 +- 10.00 (n=2), balanced 80.00 +-"
    " 20.00 (n=2)",
    "  excluded because their loss diverged: runs 4 (step 7)",
    "  1min 15s of training on cpu:0",
  ]


def test_summary_of_many_classes():
  names = [f"c{i}" for i in range(40)]
  results = _results(
    runs=[0],
    test=_evaluation(0.5, 0.5, [[(i % 40) / 40 for i in range(3, 43)]]),
  )
  results["data"]["class_names"] = names
  assert experiment.summary(results)[1] == (
    "  lowest classes: c37 0.0, c38 2.5, c39 5.0, c0 7.5, c1 10.0"
  )


def test_summary_without_held_out_images():
  results = _results(history=[{"train": {"loss": [1.5]}}])
  del results["test"]
  results["data"]["held_out"] = "no image was held out"
  assert experiment.summary(results)[:2] == [
    "aug: training loss 1.5000",
    "  no image was held out",
  ]


@pytest.mark.parametrize(
  "data,select,images,expected",
  [
    ({"folds": 5}, "last", (10, 0), "each run was tested on one of 5 parts of"),
    ({"folds": 0}, "best", (10, 4), "on 10 test images, looked at once"),
    ({"folds": 0}, "best", (0, 4), "there is no test set: these are 4 valida"),
    ({"folds": 0}, "last", (0, 0), "no image was held out"),
  ],
)
def test_what_the_figures_are_of(data, select, images, expected):
  config = {"data": data, "select": select, "evaluate_on": ["test"]}
  test, validation = images
  said = results_lib.held_out(config, {"test": test, "validation": validation})
  assert expected in said
  assert ("also chose the weights" in said) == (images == (0, 4))


def test_test_images_that_were_left_alone():
  config = {"data": {"folds": 0}, "select": "last", "evaluate_on": []}
  said = results_lib.held_out(config, {"test": 10, "validation": 4})
  assert said == "no test image was looked at: these are 4 validation images"


def test_headline_without_test_images():
  results = _results()
  results["validation"] = results.pop("test")
  assert experiment.headline(results) == (
    "validation accuracy 50.00 +- 10.00 (n=2), balanced 40.00 +- 20.00 (n=2)"
  )
  del results["validation"]
  results["history"] = [{"train": {"loss": [3.0]}}, {"train": {"loss": [1.5]}}]
  assert experiment.headline(results) == "training loss 1.5000"
