"""Tests of synguide_jax.analysis.fidelity, and so of balls.py."""

import json
import tracemalloc

import numpy as np
import pytest
import scipy.linalg

from synguide_jax.analysis import fidelity
from synguide_jax.errors import UserError

# Five points and four, of which all was counted by hand.
_REAL = [(0, 0), (1, 0), (0, 1), (3, 3), (4, 3)]
_SYNTHETIC = [(0.2, 0.1), (0.9, 0.1), (5, 5), (3.2, 3)]


def _squared(x, y):
  """All squared distances in float64, from the differences."""
  return np.stack([np.square(row - y).sum(1) for row in x.astype(np.float64)])


def _by_hand(real, synthetic, k, strict):
  """Precision, recall, density, coverage and who is in a real ball."""
  inside = np.less if strict else np.less_equal
  of_real, of_synthetic = (
    np.sort(_squared(x, x), axis=1)[:, k] for x in (real, synthetic)
  )
  squares = _squared(real, synthetic)
  in_real = inside(squares, of_real[:, None])
  in_synthetic = inside(squares, of_synthetic)
  shares = (
    in_real.any(0).mean(),
    in_synthetic.any(1).mean(),
    in_real.sum(0).mean() / k,
    in_real.any(1).mean(),
  )
  return shares, in_real.any(1), in_real.any(0)


def _shares(found):
  return found.precision, found.recall, found.density, found.coverage


def _two_sets(numbers, width, *, offset=0.0, seed=0):
  """Normal sets with copies of one in the other, and equal rows in one."""
  rng = np.random.default_rng(seed)
  real, synthetic = (
    offset + scale * rng.normal(size=(number, width))
    for number, scale in zip(numbers, (1, 1.05), strict=True)
  )
  synthetic[:20] = real[:20]
  real[30:33] = real[29]
  return real.astype(np.float32), synthetic.astype(np.float32)


@pytest.mark.parametrize(
  ("k", "shares"), [(1, (0.75, 0.8, 1.75, 1)), (2, (1, 1, 1.375, 1))]
)
def test_points_counted_by_hand(k, shares):
  found = fidelity.prdc(np.array(_REAL), np.array(_SYNTHETIC), k)
  assert _shares(found) == shares
  # The one at (5, 5) is farther from (4, 3) than (3, 3) is.
  assert found.realistic.tolist() == [True, True, k == 2, True]
  assert found.covered.all()


def test_ties_are_in_a_ball_or_not():
  real, synthetic = np.array([[0], [1], [3]]), np.array([[1], [2]])
  found = fidelity.prdc(real, synthetic, 1)
  assert (found.precision, found.recall) == (1, pytest.approx(1 / 3))
  assert found.covered.tolist() == [False, True, True]
  assert fidelity.precision_recall(real, synthetic, 1) == (1, 1)


def test_equal_rows_are_at_no_distance():
  # Neither in float32 nor in float64 would a matrix product find zeros.
  rows = np.random.default_rng(0).normal(100, 1, (40, 300)).astype(np.float32)
  twice = np.concatenate([rows, rows])
  np.testing.assert_array_equal(fidelity.radii(twice, 1), np.zeros(80))
  assert (fidelity.radii(twice, 2) > 1).all()
  assert fidelity.precision_recall(twice, rows, 1) == (1, 1)
  assert fidelity.precision_recall(twice, rows + 1e-4, 1) == (0, 1)
  assert fidelity.prdc(twice, rows, 1).covered.sum() == 0


def test_a_copy_of_the_nearest_row_is_on_the_ball():
  rng = np.random.default_rng(0)
  real = rng.normal(size=(100, 700)).astype(np.float32)
  squares = _squared(real, real)
  np.fill_diagonal(squares, np.inf)
  nearest = squares.argmin(1)
  # Far from all but row 7's nearest neighbour, of which it has a copy.
  synthetic = np.stack([real[nearest[7]], 100 * real[0]])
  strict = fidelity.prdc(real, synthetic, 1)
  # It is in its own ball, and in those that reach beyond it.
  expected = squares[nearest[7]] < squares.min(1)
  expected[nearest[7]] = True
  np.testing.assert_array_equal(strict.covered, expected)
  assert not strict.covered[7]


@pytest.mark.parametrize(
  ("numbers", "width", "offset"),
  [((500, 313), 3, 0), ((300, 700), 64, 0), ((600, 520), 200, 100)],
)
@pytest.mark.parametrize(("k", "strict"), [(5, True), (3, False)])
def test_decisions_are_those_of_float64(numbers, width, offset, k, strict):
  real, synthetic = _two_sets(numbers, width, offset=offset)
  shares, covered, realistic = _by_hand(real, synthetic, k, strict)
  if strict:
    found = fidelity.prdc(real, synthetic, k, block=128)
    np.testing.assert_allclose(_shares(found), shares, rtol=1e-12)
    np.testing.assert_array_equal(found.covered, covered)
    np.testing.assert_array_equal(found.realistic, realistic)
  else:
    found = fidelity.precision_recall(real, synthetic, k, block=128)
    np.testing.assert_allclose(found, shares[:2], rtol=1e-12)
  squares = np.sort(_squared(real, real), axis=1)[:, k]
  found = fidelity.radii(real, k, block=128)
  np.testing.assert_array_equal(found, np.sqrt(squares))


def test_modes_narrower_than_float32_resolves():
  # Squared distances within a mode are 1e-10 of those to the mean.
  rng = np.random.default_rng(0)
  modes = rng.normal(size=(4, 30))
  real, synthetic = (
    (modes[np.arange(n) % 4] + 1e-5 * rng.normal(size=(n, 30))).astype("f4")
    for n in (160, 120)
  )
  expected = np.sqrt(np.sort(_squared(real, real), axis=1)[:, 5])
  np.testing.assert_allclose(fidelity.radii(real, 5), expected, rtol=1e-9)
  shares, *_ = _by_hand(real, synthetic, 5, True)
  found = fidelity.prdc(real, synthetic, 5)
  np.testing.assert_allclose(_shares(found), shares, rtol=1e-12)


def test_outliers_count_for_recall_but_not_for_coverage():
  real = np.random.default_rng(0).normal(size=(300, 4))
  # Four points far away, whose balls hold all of the real ones.
  synthetic = 50 * np.concatenate([np.eye(4), -np.eye(4)])
  found = fidelity.prdc(real, synthetic, 5)
  assert (found.recall, found.coverage, found.precision) == (1, 0, 0)


def test_no_matrix_of_all_pairs():
  real, synthetic = _two_sets((4000, 4000), 2)
  fidelity.prdc(real[:300], synthetic[:300], block=256)
  tracemalloc.start()
  fidelity.prdc(real, synthetic, block=256)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 4000 * 4000 / 4  # bytes


@pytest.mark.parity
@pytest.mark.parametrize(
  ("numbers", "width"), [((700, 500), 8), ((400,) * 2, 512)]
)
def test_prdc_of_its_authors(numbers, width):
  prdc = pytest.importorskip("prdc", reason="prdc is not installed")
  rng = np.random.default_rng(1)
  real, synthetic = (
    rng.normal(0.1 * i, 1, (n, width)) for i, n in enumerate(numbers)
  )
  for k in (1, 5):
    theirs = prdc.compute_prdc(real, synthetic, k)
    names = ("precision", "recall", "density", "coverage")
    found = _shares(fidelity.prdc(real, synthetic, k))
    np.testing.assert_allclose(found, [theirs[n] for n in names], atol=1e-6)


def _labelled():
  """Three classes: well covered, one of two modes dropped, and dropped."""
  rng = np.random.default_rng(0)
  labels = np.repeat([0, 1, 2], 60)
  centres = np.array([0.0, 10.0, 20.0])[labels]
  centres[60:90] = 15  # Half of class 1.
  real = centres[:, None] + rng.normal(size=(180, 3))
  kept = np.r_[0:60, 90:120]
  synthetic = real[kept] + 0.1 * rng.normal(size=(90, 3))
  return real, synthetic, labels, labels[kept]


def test_dropped_modes_show_by_class():
  real, synthetic, labels, kept = _labelled()
  whole, half, none, empty = fidelity.per_class(
    *(real, synthetic, labels, kept), num_classes=4
  )
  assert whole["coverage"] > 0.95 and whole["recall"] > 0.9
  assert 0.45 < half["coverage"] <= 0.5 and half["precision"] > 0.9
  assert none == {
    "real": 60,
    "synthetic": 0,
    "k": 5,
    "synthetic_k": 0,
    "precision": None,
    "recall": 0.0,
    "density": None,
    "coverage": 0.0,
  }
  assert empty == {
    "real": 0,
    "synthetic": 0,
    "k": 0,
    "synthetic_k": 0,
    **dict.fromkeys(("precision", "recall", "density", "coverage")),
  }
  # A class is measured among its own rows alone, and what is said is JSON.
  alone = fidelity.prdc(real[labels == 1], synthetic[kept == 1])
  assert _shares(alone) == tuple(half[n] for n in list(half)[4:])
  assert json.loads(json.dumps(half)) == half


def test_classes_swapped_by_the_generator_show_by_class_only():
  real, synthetic, labels, kept = _labelled()
  swapped = np.where(kept == 0, 2, kept)
  assert fidelity.prdc(real, synthetic).precision > 0.9
  classes = fidelity.per_class(real, synthetic, labels, swapped, 3)
  assert (classes[2]["precision"], classes[2]["coverage"]) == (0, 0)


@pytest.mark.parametrize(
  ("real", "synthetic", "k", "synthetic_k"),
  [(4, 9, 3, 5), (9, 2, 5, 1), (1, 9, 0, 5), (9, 1, 5, 0)],
)
def test_small_classes_have_the_balls_of_a_smaller_k(
  real, synthetic, k, synthetic_k
):
  rng = np.random.default_rng(0)
  x, y = (rng.normal(size=(n, 2)) for n in (real, synthetic))
  (found,) = fidelity.per_class(
    x, y, np.zeros(real, int), np.zeros(synthetic, int), 1
  )
  assert (found["k"], found["synthetic_k"]) == (k, synthetic_k)
  squares = _squared(x.astype("f4"), y.astype("f4"))
  if k:
    inside = squares < fidelity.radii(x, k)[:, None] ** 2
    assert found["coverage"] == inside.any(1).mean()
    assert found["precision"] == inside.any(0).mean()
    assert found["density"] == pytest.approx(inside.sum() / k / synthetic)
  else:
    assert {found[n] for n in ("precision", "density", "coverage")} == {None}
  if synthetic_k:
    inside = squares < fidelity.radii(y, synthetic_k) ** 2
    assert found["recall"] == inside.any(1).mean()
  else:
    assert found["recall"] is None


def _frechet_by_hand(real, synthetic):
  (x, y), (a, b) = (
    [f(s.astype(np.float64), axis) for s in (real, synthetic)]
    for f, axis in ((np.mean, 0), (lambda s, _: np.cov(s.T), None))
  )
  root = scipy.linalg.sqrtm(a @ b).real
  return ((x - y) ** 2).sum() + np.trace(a + b - 2 * root)


@pytest.mark.parametrize(
  ("numbers", "width"), [((300, 200), 20), ((90, 2500), 5)]
)
def test_frechet_distance_by_scipy(numbers, width):
  real, synthetic = _two_sets(numbers, width, offset=3)
  synthetic = synthetic @ np.diag(np.linspace(0.1, 2, width, dtype="f4"))
  found = fidelity.frechet_distance(real, synthetic)
  expected = _frechet_by_hand(real, synthetic)
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_frechet_distance_of_singular_covariances():
  # Of orthogonal lines nothing is shared: what is left is all variance.
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, 50)).astype(np.float32)
  real, synthetic = np.zeros((2, 50, 6), np.float32)
  real[:, 1], synthetic[:, 4] = x, y
  means = x.mean(dtype=float) ** 2 + y.mean(dtype=float) ** 2
  spread = x.astype(float).var(ddof=1) + y.astype(float).var(ddof=1)
  found = fidelity.frechet_distance(real, synthetic)
  assert found == pytest.approx(means + spread, rel=1e-12)
  # Of fewer rows than features, shifted: the distance of the means.
  few = rng.normal(size=(7, 40))
  few, moved = (few + s for s in (0, 2))
  found = fidelity.frechet_distance(few, moved)
  assert found == pytest.approx(4 * 40, rel=1e-5)
  assert fidelity.frechet_distance(few, few) == pytest.approx(0, abs=1e-10)
  assert fidelity.frechet_distance(np.ones((3, 4)), np.zeros((3, 4))) == 4


def test_what_cannot_be_measured():
  rows = np.random.default_rng(0).normal(size=(5, 3))
  broken = rows.copy()
  broken[2, 1] = np.nan
  for arguments, message in (
    ((rows, rows, 5), "real has 5 rows; give at least 6, or a smaller k"),
    ((rows, rows[:2], 2), "synthetic has 2 rows; give at least 3"),
    ((rows, rows[:, :2], 1), "synthetic has 2 features a row and real 3"),
    ((broken, rows, 1), "real has 1 of 5 rows with features that are not fin"),
    ((rows, rows * 1e16, 1), "synthetic has 5 of 5 rows.* not below 1e.15"),
    ((rows[0], rows, 1), r"real must be features \[N, D\], got \[3\]"),
    ((rows, rows, 0), "k=0 must be at least 1"),
  ):
    for measure in (fidelity.prdc, fidelity.precision_recall):
      with pytest.raises(UserError, match=message):
        measure(*arguments)
  with pytest.raises(UserError, match="synthetic has 1 rows; give at least 2"):
    fidelity.frechet_distance(rows, rows[:1])
  labels = np.zeros(5, int)
  with pytest.raises(UserError, match=r"synthetic_labels of shape \[4\] must"):
    fidelity.per_class(rows, rows, labels, labels[:4], 1)
