"""Do synthetic images look like real ones, and do they cover them?

All of it is asked in a feature space, of rows of float32 matrices. A row's ball
is centred at it and reaches to its k-th nearest other row of the same set; the
union of a set's balls stands for the support of its distribution. Decisions are
those of float64; see :mod:`synguide_jax.analysis.balls`.
"""

import dataclasses
from typing import Any

import numpy as np

from synguide_jax.analysis import balls
from synguide_jax.errors import UserError


def radii(
  features: np.ndarray, k: int, *, block: int = balls.BLOCK
) -> np.ndarray:
  """Computes the distance of each row to its k-th nearest other row.

  Args:
    features: float32 ``[N, D]``.
    k: Number of the neighbour, from 1.
    block: Rows that are compared with as many others at once.

  Returns:
    Euclidean distances in units of the features, float64 ``[N]``. They are
    those of float64 but for rows that have more than ``k + 5`` others about as
    near as float32 resolves: for these the k-th of all is looked for with an
    error of 1e-12 of the squared distance to the features' mean.

  Raises:
    UserError: ``features`` are not a finite matrix of more than ``k`` rows.
  """
  features = _checked("features", features, k)
  return np.sqrt(balls.squared_radii(features, k, block))


@dataclasses.dataclass(frozen=True)
class Fidelity:
  """How rows lie in the balls of the other set.

  Shares are None where there is nothing to take them of: no row, or too few to
  have balls.

  Attributes:
    precision: Share of synthetic rows in the ball of a real one: how many could
      be real.
    recall: Share of real rows in the ball of a synthetic one: how much of the
      real is within what the generator makes.
    density: Number of real balls that a synthetic row is in, on average, over
      k. About 1 for equal distributions; it may be more.
    coverage: Share of real rows with a synthetic one in their ball. Other than
      recall it does not grow with outliers among the synthetic.
    covered: bool ``[N]``, whether that is so of each real row.
    realistic: bool ``[M]``, whether each synthetic row is in a real ball.
  """

  precision: float | None
  recall: float | None
  density: float | None
  coverage: float | None
  covered: np.ndarray
  realistic: np.ndarray


def precision_recall(
  real: np.ndarray,
  synthetic: np.ndarray,
  k: int = 3,
  *,
  block: int = balls.BLOCK,
) -> tuple[float, float]:
  """Computes improved precision and recall.

  A row is in a ball if its distance to the centre is at most (``<=``) the
  radius. Time is that of `prdc`.

  Args:
    real: float32 ``[N, D]``.
    synthetic: float32 ``[M, D]``. The number of rows matters; compare only
      between pairs of sets that have the same two.
    k: Radii reach to the k-th nearest other row.
    block: Rows that are compared with as many others at once.

  Returns:
    Precision and recall, in [0, 1]; see :class:`Fidelity`.

  Raises:
    UserError: The matrices are not finite, differ in width or have not more
      than ``k`` rows.

  References:
    Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing
    Generative Models", NeurIPS 2019, equations 1 and 2.
  """
  real, synthetic = _both(real, synthetic, k)
  found = _measure(real, synthetic, k, k, strict=False, block=block)
  return found.precision, found.recall


def prdc(
  real: np.ndarray,
  synthetic: np.ndarray,
  k: int = 5,
  *,
  block: int = balls.BLOCK,
) -> Fidelity:
  """Computes precision, recall, density and coverage.

  A row is in a ball if its distance to the centre is below (``<``) the radius;
  so precision and recall differ from `precision_recall` where distances tie.

  It takes :math:`2 D (N^2 + M^2 + N M)` operations on the device, and memory
  for a few times ``block * block`` numbers beside both matrices.

  Args:
    real: float32 ``[N, D]``.
    synthetic: float32 ``[M, D]``. The number of rows matters; compare only
      between pairs of sets that have the same two.
    k: Radii reach to the k-th nearest other row.
    block: Rows that are compared with as many others at once.

  Returns:
    The :class:`Fidelity`.

  Raises:
    UserError: As `precision_recall`.

  Example::

    found = prdc(real_features, synthetic_features)
    uncovered = np.flatnonzero(~found.covered)  # numbers of real images

  References:
    Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative
    Models", ICML 2020, equations 3 to 6.
  """
  real, synthetic = _both(real, synthetic, k)
  return _measure(real, synthetic, k, k, strict=True, block=block)


def per_class(
  real: np.ndarray,
  synthetic: np.ndarray,
  real_labels: np.ndarray,
  synthetic_labels: np.ndarray,
  num_classes: int,
  k: int = 5,
  *,
  block: int = balls.BLOCK,
) -> list[dict[str, Any]]:
  """Computes `prdc` of each class among the rows of that class.

  Unlike the whole, this sees a class that the generator renders as another one.
  A set with fewer rows of a class than ``k + 1`` has the balls of a smaller k
  there, and none where it has fewer than two. Where there are real rows and no
  synthetic ones nothing is covered: coverage and recall are 0. Coverage falls
  with k and with the number of synthetic rows to real ones, so compare it
  between classes that have about the same.

  Args:
    real: float32 ``[N, D]``.
    synthetic: float32 ``[M, D]``.
    real_labels: Classes of the real rows, int ``[N]``.
    synthetic_labels: Classes of the synthetic rows, int ``[M]``.
    num_classes: Number of classes.
    k: Radii reach to the k-th nearest other row at most.
    block: Rows that are compared with as many others at once.

  Returns:
    Plain data for JSON, a dict a class: the counts ``"real"`` and
    ``"synthetic"``; ``"k"`` of the real balls and ``"synthetic_k"`` of the
    others, 0 where there are none; and ``"precision"``, ``"recall"``,
    ``"density"`` and ``"coverage"``, or None; see :class:`Fidelity`.

  Raises:
    UserError: The matrices are not finite, differ in width or from their
      labels in length, or ``k`` is not positive.
  """
  real, synthetic = _both(real, synthetic, k, rows=0)
  labels = [np.asarray(x) for x in (real_labels, synthetic_labels)]
  for name, rows, of in zip(
    ("real", "synthetic"), (real, synthetic), labels, strict=True
  ):
    if of.shape != (len(rows),):
      raise UserError(
        f"{name}_labels of shape {list(of.shape)} must be one for each of the "
        f"{len(rows)} rows of {name}."
      )
  classes = []
  for label in range(num_classes):
    x, y = (
      rows[of == label]
      for rows, of in zip((real, synthetic), labels, strict=True)
    )
    k_x, k_y = (max(0, min(k, len(rows) - 1)) for rows in (x, y))
    found = _measure(x, y, k_x, k_y, strict=True, block=block)
    classes.append(
      {
        "real": len(x),
        "synthetic": len(y),
        "k": k_x,
        "synthetic_k": k_y,
        "precision": found.precision,
        "recall": found.recall,
        "density": found.density,
        "coverage": found.coverage,
      }
    )
  return classes


def frechet_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
  r"""Computes the Frechet distance of two sets, as if they were Gaussian.

  .. math:: |\mu_1 - \mu_2|^2
    + \operatorname{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})

  in float64 on the host, with the unbiased covariances. These are not formed:
  with :math:`\Sigma_i = F_i^T F_i`, where :math:`F_i` is triangular, from a QR
  decomposition of the centred rows, the last trace is the sum of the singular
  values of :math:`F_1 F_2^T`. That is stable where a covariance is singular,
  with fewer rows than features for one, where the square root of
  :math:`\Sigma_1 \Sigma_2` turns rounding errors into their roots.

  It is biased upwards for few rows, much so where there are fewer than
  features; compare only between sets of one size. It takes about
  :math:`2 (N + M) D^2` operations and memory for some ``[5 D, D]``.

  Args:
    real: float32 ``[N, D]``.
    synthetic: float32 ``[M, D]``.

  Returns:
    The distance, in squared units of the features, at least 0.

  Raises:
    UserError: The matrices are not finite, differ in width or have fewer than
      two rows.

  References:
    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a
    Local Nash Equilibrium", NeurIPS 2017, equation 6.
  """
  real, synthetic = _both(real, synthetic, 1)
  (mean, factor), (other_mean, other) = map(_moments, (real, synthetic))
  shared = np.linalg.svd(factor @ other.T, compute_uv=False).sum()
  distance = (
    ((mean - other_mean) ** 2).sum()
    + (factor**2).sum()
    + (other**2).sum()
    - 2 * shared
  )
  return max(0.0, float(distance))


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the mean ``[D]`` and F ``[<= D, D]``: F^T F is the covariance."""
  count, width = features.shape
  mean = features.mean(0, dtype=np.float64)
  factor = np.empty((0, width))
  step = max(4 * width, 1024)
  for start in range(0, count, step):
    rows = np.concatenate([factor, features[start : start + step] - mean])
    factor = np.linalg.qr(rows, mode="r")
  return mean, factor / np.sqrt(count - 1)


def _both(
  real: np.ndarray, synthetic: np.ndarray, k: int, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  real = _checked("real", real, k, rows)
  synthetic = _checked("synthetic", synthetic, k, rows)
  if real.shape[1] != synthetic.shape[1]:
    raise UserError(
      f"synthetic has {synthetic.shape[1]} features a row and real "
      f"{real.shape[1]}; take both from one layer of one network."
    )
  return real, synthetic


def _checked(
  name: str, features: np.ndarray, k: int, rows: int | None = None
) -> np.ndarray:
  """Returns float32 features of at least ``rows``, by default k + 1, rows."""
  features = np.asarray(features, np.float32)
  if features.ndim != 2 or not features.shape[1]:
    raise UserError(
      f"{name} must be features [N, D], got {list(features.shape)}."
    )
  if k < 1:
    raise UserError(f"k={k} must be at least 1.")
  if len(features) < (k + 1 if rows is None else rows):
    raise UserError(
      f"{name} has {len(features)} rows; give at least {k + 1}, or a smaller "
      "k, for each to have as many neighbours."
    )
  if wrong := int((~(np.abs(features) < balls.LARGEST).all(1)).sum()):
    raise UserError(
      f"{name} has {wrong} of {len(features)} rows with features that are not "
      f"finite or not below {balls.LARGEST:g}; take another network or layer."
    )
  return features


def _measure(
  real: np.ndarray,
  synthetic: np.ndarray,
  k: int,
  synthetic_k: int,
  *,
  strict: bool,
  block: int,
) -> Fidelity:
  """Computes a :class:`Fidelity`; sets of which k is 0 have no balls."""
  squares = [
    balls.squared_radii(rows, of, block) if of else None
    for rows, of in ((real, k), (synthetic, synthetic_k))
  ]
  # By whose balls they are; of how many balls a row is, or rows a ball has.
  of_real, of_synthetic = (
    np.zeros((2, len(rows)), np.int64) for rows in (real, synthetic)
  )
  if len(real) and len(synthetic):
    of_real, of_synthetic = balls.count(
      real, synthetic, *squares, strict=strict, block=block
    )
  covered, realistic = of_real[0] > 0, of_synthetic[0] > 0
  measured = k and len(synthetic)
  has_recall = len(real) and (synthetic_k or not len(synthetic))
  return Fidelity(
    precision=float(realistic.mean()) if measured else None,
    recall=float((of_real[1] > 0).mean()) if has_recall else None,
    density=float(of_synthetic[0].mean() / k) if measured else None,
    coverage=float(covered.mean()) if k else None,
    covered=covered,
    realistic=realistic,
  )
