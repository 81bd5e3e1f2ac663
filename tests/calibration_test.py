"""Temperatures and calibration errors against what they should be."""

import jax
import numpy as np
import pytest

from synguide_jax import calibration, train
from tests import tiny


def _drawn(count, scale, seed=0):
  """Labels drawn from the softmax of logits, which are then scaled."""
  rng = np.random.default_rng(seed)
  logits = 2 * rng.normal(size=(count, 4))
  gumbel = rng.gumbel(size=logits.shape)
  return (scale * logits).astype(np.float32), (logits + gumbel).argmax(1)


def _nll(logits, labels, temperature):
  logits = logits.astype(np.float64) / temperature
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  return -log_p[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0, 15.0])
def test_the_temperature_is_what_logits_were_multiplied_by(scale):
  logits, labels = _drawn(20_000, scale)
  found = calibration.fit_temperature(logits, labels)
  # Its standard error is 0.01 here.
  np.testing.assert_allclose(found, scale, rtol=0.04)
  least = _nll(logits, labels, found)
  for other in (0.99 * found, 1.01 * found):
    assert _nll(logits, labels, other) > least
  # Scaled, a temperature is scaled alike; shifted, it is the same.
  shifted = (
    2 * logits.astype(np.float64) + np.linspace(-900, 900, 20_000)[:, None]
  )
  if scale < 10:
    np.testing.assert_allclose(
      calibration.fit_temperature(shifted, labels), 2 * found, rtol=1e-5
    )


def test_where_there_is_no_minimum():
  logits, _ = _drawn(50, 1.0)
  right, wrong = logits.argmax(1), logits.argmin(1)
  assert calibration.fit_temperature(logits, right) == 1.0
  assert calibration.fit_temperature(100 * logits, right) == 1.0
  assert calibration.fit_temperature(logits, wrong) == 20.0
  assert calibration.fit_temperature(0 * logits, right) == 1.0
  logits[3, 1] = np.nan
  assert np.isnan(calibration.fit_temperature(logits, right))
  assert np.isnan(list(calibration.measure(logits, right).values())).all()


def test_the_calibration_error_by_hand():
  # Confidences 0.9 (right), 0.9 (wrong), 0.62 (right), 0.55 (wrong), in bins
  # (13/15, 14/15], (9/15, 10/15] and (8/15, 9/15].
  confidence = np.array([0.9, 0.9, 0.62, 0.55])
  logits = np.log(np.stack([confidence, 1 - confidence], 1))
  labels = np.array([0, 1, 0, 1])
  found = calibration.measure(logits, labels)
  error = (2 * abs(0.5 - 0.9) + abs(1 - 0.62) + abs(0 - 0.55)) / 4
  np.testing.assert_allclose(found["calibration_error"], error, rtol=1e-12)
  nll = -np.log([0.9, 0.1, 0.62, 0.45]).mean()
  np.testing.assert_allclose(found["nll"], nll, rtol=1e-12)


def test_the_calibration_error_against_its_definition():
  logits, labels = _drawn(3_000, 2.0)
  logits = logits.astype(np.float64)
  p = np.exp(logits / 1.7)
  p /= p.sum(1, keepdims=True)
  confidence, right = p.max(1), p.argmax(1) == labels
  error = 0.0
  for m in range(1, 16):
    inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
    if inside.any():
      gap = abs(right[inside].mean() - confidence[inside].mean())
      error += inside.mean() * gap
  found = calibration.measure(logits, labels, 1.7)
  np.testing.assert_allclose(found["calibration_error"], error, rtol=1e-9)
  np.testing.assert_allclose(found["nll"], _nll(logits, labels, 1.7))


def test_a_report_fits_on_validation_and_measures_on_both():
  first, second = (
    _drawn(4_000, scale, seed) for seed, scale in ((1, 3), (2, 1))
  )
  diverged = np.full_like(first[0], np.nan)
  logits = {
    "validation": np.stack([first[0], diverged, 5 * first[0]]),
    "test": np.stack([second[0], diverged, second[0]]),
  }
  labels = {"validation": first[1], "test": second[1]}
  of_run = np.random.default_rng(0).random((3, 4_000)) < 0.5
  found = calibration.report(
    logits, labels, np.array([True, False, True]), {"test": of_run}
  )
  temperature = found["temperature"]
  assert temperature["n"] == 2 and temperature["runs"][1] is None
  np.testing.assert_allclose(temperature["runs"][::2], [3.0, 15.0], rtol=0.1)
  before, after = (found["validation"][key] for key in ("before", "after"))
  assert before["nll"]["mean"] > after["nll"]["mean"]
  error = "calibration_error"
  assert before[error]["mean"] > 3 * after[error]["mean"]
  # Test images were calibrated before; nothing is fitted on them.
  for run in (0, 2):
    seen = second[0][of_run[run]], second[1][of_run[run]]
    for when, t in (("before", 1.0), ("after", temperature["runs"][run])):
      expected = calibration.measure(*seen, t)
      for key, value in expected.items():
        assert found["test"][when][key]["runs"][run] == value
  assert "15 bins" in found["definition"]


def test_training_calibrates_at_the_end(tmp_path):
  config = tiny.config(method="real", select="last", num_steps=2)
  results = train.train_and_evaluate(
    config, tmp_path, tiny.Recorder(), devices=jax.devices()[:1]
  )
  found = results["calibration"]
  assert found.keys() == {"definition", "temperature", "validation", "test"}
  for name in ("validation", "test"):
    assert "logits" not in results[name]
    np.testing.assert_allclose(
      found[name]["before"]["nll"]["runs"],
      results[name]["loss"]["runs"],
      rtol=1e-5,
    )
  after, before = (
    np.array(found["validation"][when]["nll"]["runs"])
    for when in ("after", "before")
  )
  assert (after < before).all() and len(after) == 2
  assert found["temperature"]["n"] == 2


def test_without_validation_there_is_no_temperature(tmp_path):
  config = tiny.config(
    method="real", num_steps=1, select="last", **{"data.validation": 0}
  )
  results = train.train_and_evaluate(
    config, tmp_path, tiny.Recorder(), devices=jax.devices()[:1]
  )
  assert "calibration" not in results and "test" in results
