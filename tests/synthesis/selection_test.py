"""Tests of synguide_jax.synthesis.selection."""

import numpy as np
import pytest

from synguide_jax.errors import UserError
from synguide_jax.synthesis.classifier import Predictions
from synguide_jax.synthesis.selection import (
  balanced_counts,
  BALANCING,
  CONFIDENCE,
  count,
  DISAGREEMENT,
  draw,
  KEPT,
  LOSS,
  Rules,
  select,
)


def _predictions(labels, confidences=None, losses=None, predicted=None):
  number = len(labels)
  return Predictions(
    np.asarray(labels, np.int32),
    np.asarray(labels if predicted is None else predicted, np.int32),
    np.asarray([0.9] * number if confidences is None else confidences, "f4"),
    np.asarray([0.1] * number if losses is None else losses, "f4"),
  )


def test_the_confidence_must_be_above_the_threshold():
  just_above = np.nextafter(np.float32(0.8), np.float32(1))
  # As a float64, the first of these is above 0.8.
  confidences = [np.float32(0.8), just_above, 0.79, 1.0, 0.1]
  assert float(confidences[0]) > 0.8
  found = _predictions([0] * 5, confidences)
  own = np.full(5, -1)
  fates = select(found, own, Rules())
  assert fates.tolist() == [CONFIDENCE, KEPT, CONFIDENCE, KEPT, CONFIDENCE]
  assert select(found, own, Rules(threshold=0.0)).tolist() == [KEPT] * 5


def test_losses_are_kept_within_both_ends():
  found = _predictions([0] * 5, losses=[0.0, 0.1, 0.5, 2.0, 2.5])
  own = np.zeros(5, int)
  fates = select(found, own, Rules(min_loss=0.1, max_loss=2.0))
  assert fates.tolist() == [LOSS, KEPT, KEPT, KEPT, LOSS]
  fates = select(found, own, Rules(min_loss=0.5))
  assert fates.tolist() == [LOSS, LOSS, KEPT, KEPT, KEPT]


def test_a_limited_loss_decides_alone_unless_a_threshold_is_given():
  found = _predictions([0] * 3, [0.3, 0.5, 0.9], losses=[1.2, 0.7, 0.1])
  own = np.zeros(3, int)

  def kept(**rules):
    return (select(found, own, Rules(**rules)) == KEPT).tolist()

  assert kept() == [False, False, True]
  assert kept(min_loss=0.0) == [False, False, True]
  assert kept(min_loss=0.5) == [True, True, False]
  assert kept(max_loss=1.0) == [False, True, True]
  assert kept(max_loss=0.0) == [False, False, False]
  assert kept(max_loss=1.0, threshold=0.8) == [False, False, True]
  assert kept(min_loss=0.5, threshold=0.4) == [False, True, False]
  for rules in (Rules(), Rules(max_loss=1.0), Rules(threshold=0.3)):
    assert rules.resolved().resolved() == rules.resolved()


def test_the_first_filter_that_drops_an_image_counts():
  found = _predictions(
    labels=[0, 0, 0, 1],
    predicted=[1, 1, 0, 1],
    confidences=[0.5, 0.9, 0.9, 0.9],
    losses=[3.0, 3.0, 3.0, 0.1],
  )
  own = found.labels
  rules = Rules(agree=True, max_loss=1.0, threshold=0.8)
  fates = select(found, own, rules)
  assert fates.tolist() == [CONFIDENCE, DISAGREEMENT, LOSS, KEPT]
  fates = select(found, own, Rules(max_loss=1.0, threshold=0.8))
  assert fates.tolist() == [CONFIDENCE, LOSS, LOSS, KEPT]


def test_draw_takes_of_each_class_what_it_may():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 200)
  fates = np.where(rng.random(200) < 0.2, LOSS, KEPT).astype(np.int8)
  limits = [10, 0, 1000]
  drawn = draw(fates, labels, limits, seed=1)
  available = np.bincount(labels[fates == KEPT], minlength=3)
  kept = np.bincount(labels[drawn == KEPT], minlength=3)
  assert kept.tolist() == [10, 0, available[2]]
  np.testing.assert_array_equal(drawn[fates == LOSS], LOSS)
  assert set(drawn[fates == KEPT]) == {KEPT, BALANCING}

  np.testing.assert_array_equal(draw(fates, labels, limits, seed=1), drawn)
  assert (draw(fates, labels, limits, seed=2) != drawn).any()
  more = draw(fates, labels, [20, 5, 1000], seed=1)
  assert (more[drawn == KEPT] == KEPT).all()


def test_draw_does_not_prefer_the_first_images():
  labels, fates = np.zeros(50, int), np.zeros(50, np.int8)
  times = sum(draw(fates, labels, [25], seed=s) == KEPT for s in range(200))
  # Binomial with n = 200, p = 1/2: five standard deviations.
  assert 65 < times.min() <= times.max() < 135


@pytest.mark.parametrize(
  ("real", "available", "wanted", "total"),
  [
    ([5, 3, 4], [10, 10, 10], [8, 10, 9], 13),
    ([5, 5], [2, 7], [2, 2], 7),
    # The third has more than the second can reach.
    ([2, 1, 90], [50, 9, 5], [8, 9, 0], 10),
    ([2, 10], [8, 3], [8, 0], 10),
    ([3, 4], [0, 9], [0, 0], 3),
  ],
)
def test_balanced_counts(real, available, wanted, total):
  found, size = balanced_counts(real, available)
  assert (found.tolist(), size) == (wanted, total)
  assert (found <= available).all()
  reached = np.add(real, found)
  assert (reached[np.less_equal(real, total)] == total).all()


def test_count():
  found = _predictions([0, 0, 0, 2], confidences=[0.9, 0.7, 0.5, 0.6])
  fates = np.array([KEPT, KEPT, LOSS, BALANCING], np.int8)
  first, second, third = count(fates, found, ("a", "b", "c"))
  none = dict.fromkeys(("confidence", "disagreement", "loss", "balancing"), 0)
  mean = first.pop("mean_confidence")
  assert mean == pytest.approx(0.8)
  assert first == {"class": "a", "images": 3, "kept": 2, **none, "loss": 1}
  empty = {"kept": 0, "mean_confidence": None}
  assert second == {"class": "b", "images": 0, **none, **empty}
  assert third == {"class": "c", "images": 1, **none, **empty, "balancing": 1}


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ({"threshold": 1.0}, "threshold=1.0 must be"),
    ({"threshold": -0.1}, "threshold=-0.1"),
    ({"threshold": float("nan")}, "threshold=nan"),
    ({"min_loss": 2.0, "max_loss": 1.0}, "min_loss=2.0 and max_loss=1.0"),
    ({"min_loss": -1.0}, "min_loss=-1.0"),
    ({"max_loss": float("nan")}, "max_loss=nan"),
    ({"per_class": 0}, "per_class=0"),
    ({"per_class": 5, "balance_with": "digits"}, "two ways to balance"),
    ({"seed": -1}, "seed=-1"),
  ],
)
def test_rules_out_of_range(rules, message):
  with pytest.raises(UserError, match=message):
    Rules(**rules).check()
