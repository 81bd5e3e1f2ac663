"""Temperature scaling, and how far probabilities can be taken at their word."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize

from synguide_jax.results import summarise

BINS = 15
_MAX = 20.0  # largest temperature, and the inverse of the smallest

DEFINITION = (
  "The temperature divides the logits of a run; it minimises the mean cross "
  "entropy (nll, nats) of the run's validation images, between "
  f"{1 / _MAX:g} and {_MAX:g}. calibration_error is the expected calibration "
  f"error over {BINS} bins (m-1)/{BINS} < confidence <= m/{BINS}: the mean, "
  "over all images, of |accuracy - mean confidence| of the bin that the image "
  "is in; confidence is the largest probability. Before: with temperature 1."
)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
  r"""Fits the temperature T of softmax(z / T) to labels.

  It minimises the mean cross entropy, which in :math:`\beta = 1/T` is convex
  with the slope

  .. math:: \frac{1}{N} \sum_n \Big( \sum_k p_{nk}(\beta) z_{nk} - z_{n y_n}
    \Big),

  whose root between 1/20 and 20 Brent's method finds. Where the cross entropy
  falls all the way to T = 1/20, as it does if all images are classified right,
  there is no minimum, only ever more confidence; T then stays 1. Where it falls
  up to T = 20, as if the logits say nothing of the labels, T is 20.

  Args:
    logits: ``[N, K]``, N at least 1.
    labels: int ``[N]``.

  Returns:
    The temperature; NaN if a logit is not finite.

  References:
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
  """
  if not np.isfinite(logits).all():
    return float("nan")
  z = _shifted(logits)
  of_label = z[np.arange(len(z)), labels].mean(dtype=np.float64)

  def slope(log_beta):
    weights = np.exp(np.exp(log_beta).astype(z.dtype) * z)
    total = weights.sum(-1, dtype=np.float64)
    weights *= z
    expected = weights.sum(-1, dtype=np.float64) / total
    return float(expected.mean() - of_label)

  end = np.log(_MAX)
  if slope(end) <= 0:
    return 1.0
  if slope(-end) >= 0:
    return _MAX
  return float(np.exp(-scipy.optimize.brentq(slope, -end, end, xtol=1e-6)))


def measure(
  logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0
) -> dict[str, float]:
  r"""Measures how well probabilities are calibrated.

  The expected calibration error [1] over 15 bins B_m of equal width,
  :math:`(m-1)/15 < c_n \le m/15`, of the confidence c_n, the largest
  probability, is

  .. math:: \sum_m \frac{|B_m|}{N} \Big| \frac{1}{|B_m|} \sum_{n \in B_m}
    (\mathbb 1[\hat y_n = y_n] - c_n) \Big|.

  Args:
    logits: ``[N, K]``, N at least 1.
    labels: int ``[N]``.
    temperature: What logits are divided by.

  Returns:
    ``calibration_error``, in [0, 1], and ``nll``, the mean cross entropy in
    nats; both NaN where a logit or the temperature is not finite.

  References:
    [1] Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian
    Binning", AAAI 2015; as in Guo et al., ICML 2017.
  """
  if not (np.isfinite(logits).all() and np.isfinite(temperature)):
    return {"calibration_error": float("nan"), "nll": float("nan")}
  z = _shifted(logits)
  total = np.exp(z / z.dtype.type(temperature)).sum(-1, dtype=np.float64)
  of_label = z[np.arange(len(z)), labels].astype(np.float64)
  confidence = 1 / total  # since the largest logit is 0 now
  correct = z.argmax(-1) == labels
  bins = np.ceil(BINS * confidence).astype(int) - 1
  gaps = np.bincount(bins, correct - confidence, minlength=BINS)
  return {
    "calibration_error": float(np.abs(gaps).sum() / len(z)),
    "nll": float((np.log(total) - of_label / temperature).mean()),
  }


def report(
  logits: Mapping[str, np.ndarray],
  labels: Mapping[str, np.ndarray],
  kept: Sequence[bool],
  of_run: Mapping[str, np.ndarray | None] | None = None,
) -> dict[str, Any]:
  """Fits each run's temperature on validation and measures what it does.

  Args:
    logits: ``[runs, N, K]`` by set: ``"validation"``, the only one that
      temperatures are fitted on, and others.
    labels: int ``[N]`` by set.
    kept: False for runs that are excluded because they diverged.
    of_run: Which images of a set count for each run, bool ``[runs, N]``; None,
      or none given: all.

  Returns:
    For results.json: ``definition``, ``temperature``, and for each set
    ``before`` and ``after``, with the summaries (see `results.summarise`) of
    what `measure` returns.
  """
  of_run = of_run or {}
  runs = range(len(kept))

  def seen(name, run):
    mask = of_run.get(name)
    rows = slice(None) if mask is None else mask[run]
    return logits[name][run, rows], labels[name][rows]

  def summaries(name, temperatures):
    found = [measure(*seen(name, run), temperatures[run]) for run in runs]
    return {
      key: summarise([of_one[key] for of_one in found], kept)
      for key in found[0]
    }

  temperatures = [fit_temperature(*seen("validation", run)) for run in runs]
  return {
    "definition": DEFINITION,
    "temperature": summarise(temperatures, kept),
    **{
      name: {
        "before": summaries(name, [1.0 for _ in runs]),
        "after": summaries(name, temperatures),
      }
      for name in logits
    },
  }


def _shifted(logits: np.ndarray) -> np.ndarray:
  """Logits whose largest is 0, so that no exponential overflows."""
  return logits - logits.max(-1, keepdims=True)
