"""Tests of what commands show."""

import pytest

from synguide_jax import console, experiment


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
  writer.write_scalars(30, {"steps_per_sec": 13.5})
  assert capsys.readouterr().out == ""
  writer.write_scalars(
    30,
    {
      "progress": 0.1,
      "train/loss": 2.01174,
      "train/conflict_rate": 0.1234,
      "train/real_accuracy": 0.5,
      "validation/accuracy": 0.916,
    },
  )
  # 270 steps are left, at 13.5 a second.
  assert capsys.readouterr().out == (
    "  step  30/300  loss 2.0117  conflicts 12.3%  validation 91.6%"
    "  14 steps/s  20s left\n"
  )


def test_writer_without_speed_or_validation(capsys):
  writer = console.ConsoleWriter()
  writer.write_scalars(2, {"progress": 1.0, "train/loss": 1.0})
  writer.write_scalars(1, {"steps_per_sec": 0.25})
  writer.write_scalars(1, {"progress": 0.5, "train/loss": 0.5})
  assert capsys.readouterr().out == (
    "  step 2/2  loss 1.0000\n  step 1/2  loss 0.5000  0.2 steps/s  4s left\n"
  )
  writer.flush()


def _results(**changes):
  accuracy = {"mean": 0.5, "std": 0.1, "n": 2}
  return {
    "method": "aug",
    "test": {"accuracy": accuracy},
    "diverged": {},
    "seconds": {"train": 75.0},
    "devices": ["cpu:0"],
    **changes,
  }


def test_summary_of_results():
  synthetic = {"accuracy": {"mean": 0.9, "std": None, "n": 1}}
  results = _results(diverged={"3": 120, "4": 7}, synthetic=synthetic)
  assert experiment.summary(results) == [
    "aug: test accuracy 50.00 +- 10.00 (n=2)",
    "  accuracy on the synthetic images 90.00 (n=1)",
    "  excluded because their loss diverged: runs 3 (step 120), 4 (step 7)",
    "  1min 15s of training on cpu:0",
  ]


def test_headline_without_test_images():
  results = _results()
  results["validation"] = results.pop("test")
  assert experiment.headline(results) == (
    "validation accuracy 50.00 +- 10.00 (n=2)"
  )
  del results["validation"]
  results["history"] = [{"train": {"loss": [3.0]}}, {"train": {"loss": [1.5]}}]
  assert experiment.headline(results) == "training loss 1.5000"
