"""Tests of synguide_jax.analysis.exchange."""

import numpy as np
import pytest
from sklearn.isotonic import isotonic_regression

from synguide_jax.analysis import exchange
from synguide_jax.errors import UserError

_SHOTS = [1, 2, 4, 8, 16]
_CURVE = [0.5, 0.6, 0.7, 0.8, 0.9]  # 0.1 for each doubling


def _runs(means, number=1, spread=0.0, seed=0):
  """Accuracies of runs, each with a deviation of its own that all share."""
  noise = np.random.default_rng(seed).normal(size=number) * spread
  return [[mean + z for z in noise] for mean in means]


def _worth(gain, *, at=4, curve=_CURVE, number=1, **options):
  real = _runs(curve, number, 0.01)
  both = _runs(np.add(curve, gain), number, 0.01)
  return exchange.worth(_SHOTS, real, both, at=at, **options)


@pytest.mark.parametrize(
  ("gain", "equivalent"),
  [(0.0, 4), (0.1, 8), (0.15, 8 * 2**0.5), (0.2, 16), (-0.1, 2), (-0.2, 1)],
)
def test_a_gain_is_read_off_the_curve(gain, equivalent):
  found = _worth(gain)
  assert found["equivalent"] == pytest.approx(equivalent)
  assert found["shots"] == 4
  assert found["most"] == 16


def test_the_curve_is_not_extrapolated():
  assert _worth(0.21) | {"equivalent": 16.0, "beyond": True} == _worth(0.21)
  assert _worth(-0.21) | {"equivalent": 1.0, "below": True} == _worth(-0.21)
  inside = _worth(0.1)
  assert not inside["beyond"] and not inside["below"]


def test_more_accuracy_is_never_worth_less():
  rng = np.random.default_rng(0)
  for _ in range(20):
    curve = np.sort(rng.random(5)) + 0.1 * rng.normal(size=5)
    found = [
      _worth(gain, at=8, curve=curve)["equivalent"]
      for gain in np.linspace(-0.5, 0.5, 41)
    ]
    assert (np.diff(found) >= 0).all()
    assert found[20] == 8  # without a gain


def test_a_curve_that_falls_is_levelled():
  # Least squares makes 0.8 and 0.6 two of 0.7, which is reached from 2 on.
  curve = [0.5, 0.8, 0.6, 0.8, 0.9]
  fitted = isotonic_regression(curve)
  assert fitted[1] == fitted[2] == pytest.approx(0.7)
  found = [_worth(g, curve=curve)["equivalent"] for g in (-1e-6, 0, 1e-6)]
  np.testing.assert_allclose(found, [2, 4, 4], rtol=1e-4)
  assert _worth(0.05, curve=curve)["equivalent"] == pytest.approx(4 * 2**0.5)


def test_monotone_curves_are_those_of_scikit_learn():
  rng = np.random.default_rng(1)
  for _ in range(10):
    curve = rng.normal(size=5)
    fitted = isotonic_regression(curve)
    gain = 0.3 * rng.normal()
    goal = np.clip(fitted[1] + gain, fitted[0], fitted[-1])
    found = _worth(gain, at=2, curve=curve)["equivalent"]
    reached = np.interp(np.log(found), np.log(_SHOTS), fitted)
    assert reached == pytest.approx(goal, abs=1e-6)


def test_what_runs_share_does_not_widen_the_interval():
  found = _worth(0.1, number=10)
  assert found["n"] == 10
  assert found["low"] == pytest.approx(found["high"]) == pytest.approx(8)


def test_the_interval_is_that_of_the_gain_over_runs():
  rng = np.random.default_rng(0)
  gains = 0.05 + 0.03 * rng.normal(size=40)
  real = _runs(_CURVE, 40)
  both = [*real[:2], (0.7 + gains).tolist(), *real[3:]]
  found = exchange.worth(_SHOTS, real, both, at=4)
  # Normal theory of the mean gain, and 0.1 for each doubling.
  error = gains.std(ddof=1) / 40**0.5
  low, high = (4 * 2 ** ((gains.mean() + z * error) / 0.1) for z in (-2, 2))
  assert found["low"] == pytest.approx(low, rel=0.02)
  assert found["high"] == pytest.approx(high, rel=0.02)
  assert found == exchange.worth(_SHOTS, real, both, at=4)
  assert found != exchange.worth(_SHOTS, real, both, at=4, seed=1)


def test_runs_that_diverged_are_left_out_of_all():
  real, both = _runs(_CURVE, 3), _runs(np.add(_CURVE, 0.1), 3)
  real[0][1] = None
  both[2][2], real[3][2] = None, 0.1
  found = exchange.worth(_SHOTS, real, both, at=4)
  assert found["n"] == 1
  assert found["equivalent"] == pytest.approx(8)
  assert found["low"] is found["high"] is None
  real[4][0] = None
  found = exchange.worth(_SHOTS, real, both, at=4)
  assert found["n"] == 0
  assert found["equivalent"] is None
  said = exchange.sentence(found | {"method": "aug"}, 50)
  assert "all runs diverged" in said


@pytest.mark.parametrize(
  ("change", "named"),
  [
    ({"at": 3}, "at=3"),
    ({"shots": [1, 2, 4, 8, 8]}, "shots="),
    ({"shots": [1, 2, 4, 8]}, "of 4 shots"),
    ({"real": [[0.5]] * 4 + [[0.5, 0.6]]}, r"\[1, 2\] runs"),
    ({"draws": 0}, "draws=0"),
  ],
)
def test_what_does_not_fit_together(change, named):
  given = {"shots": _SHOTS, "real": _runs(_CURVE), "at": 4}
  given |= {"with_synthetic": _runs(_CURVE)} | change
  with pytest.raises(UserError, match=named):
    exchange.worth(
      given.pop("shots"),
      given.pop("real"),
      given.pop("with_synthetic"),
      **given,
    )


def test_sentences():
  found = _worth(0.1, number=10, draws=500) | {"method": "balanced"}
  assert exchange.sentence(found | {"low": 7.02, "high": 9.6}, 2000) == (
    "these 2,000 images are worth about 4 real ones a class (3 to 6, 95% of "
    "500 resamplings of 10 runs), used with 4 of them by balanced"
  )
  beyond = _worth(0.5) | {"method": "guided"}
  assert exchange.sentence(beyond, 10) == (
    "these 10 images are worth at least 12 real ones a class (of 1 run, so "
    "without an interval), used with 4 of them by guided"
  )
  sure = {"low": 9.0, "high": 16.0, "n": 3}
  assert "(5 or more, 95% of" in exchange.sentence(beyond | sure, 10)
  harmful = _worth(-0.05, number=2) | {"method": "aug"}
  assert (
    "do harm: 4 real ones a class with them, by aug, are worth about 2.8 w"
    in (exchange.sentence(harmful, 10))
  )


def test_saturation_is_within_one_standard_error_of_the_best():
  rng = np.random.default_rng(0)
  shared, own = rng.normal(size=9) * 0.1, rng.normal(size=9)
  own = 0.003 * (own - own.mean()) / own.std(ddof=1)  # an error of 0.001
  best = 0.9 + shared
  rows = [best - 0.05, best - 0.0011 + own, best - 0.0009 + own, best]
  images = [0, 100, 200, 400]
  found = exchange.saturation(images, [row.tolist() for row in rows])
  assert (found["images"], found["best"]) == (200, 400)
  assert not found["rising"]
  assert found["accuracy"] == pytest.approx(rows[2].mean())
  # Without the third, 400 is the smallest number as good as itself.
  found = exchange.saturation([0, 100, 400], [rows[0], rows[1], rows[3]])
  assert found["images"] == 400
  assert found["rising"]


def test_saturation_without_runs():
  assert exchange.saturation([0, 10], [[None, 0.5], [0.6, None]]) is None
  found = exchange.saturation([0, 10, 20], [[0.5], [0.7], [0.6]])
  assert (found["images"], found["n"], found["rising"]) == (10, 1, False)
  with pytest.raises(UserError, match="ascending"):
    exchange.saturation([10, 0], [[0.5], [0.6]])
  with pytest.raises(UserError, match="same runs"):
    exchange.saturation([0, 10], [[0.5], [0.6, 0.7]])
