"""How many real images synthetic ones are worth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synguide_jax.errors import UserError

_PERCENT = 95  # of the resamplings are in the interval
_AT_ONCE = 1 << 22  # numbers in memory

Runs = Sequence[Sequence[float | None]]


def worth(
  shots: Sequence[int],
  real: Runs,
  with_synthetic: Runs,
  *,
  at: int,
  draws: int = 2000,
  seed: int = 0,
) -> dict[str, Any]:
  r"""Converts what synthetic images add into real images a class.

  With :math:`a(s)` the accuracy that s real images a class reach alone and g
  what the synthetic images add to that of ``at``, this is the s for which

  .. math:: a(s) = a(\mathrm{at}) + g;

  where the curve is level, the nearest to ``at`` of those. The curve is the
  means over runs, made monotone by least squares and interpolated linearly in
  :math:`\log s`; g is the mean difference over the same runs. The curve is not
  extrapolated: an accuracy outside of it gives its end, and says so.

  The interval is that of a bootstrap over runs. Runs share their real images
  over all columns, so the same runs are drawn for each of them. It does not
  know of the noise of the test images, which all runs share.

  Args:
    shots: Real images a class, S ascending numbers.
    real: Accuracies without synthetic images, ``[S, runs]``; None for runs that
      diverged, which are left out of all.
    with_synthetic: Likewise with synthetic images.
    at: The number of ``shots`` that the synthetic images are added to.
    draws: Resamplings of the runs.
    seed: Of these.

  Returns:
    Plain data for JSON: ``"shots"``, which is ``at``; ``"equivalent"``, real
    images a class that reach the same alone, those ``at`` included; ``"low"``
    and ``"high"``, the 2.5th and the 97.5th percentile, None for fewer than two
    runs; ``"beyond"``, whether no number of ``shots`` reached it, so that
    ``"equivalent"`` is a lower bound; ``"below"``, whether the smallest is more
    than enough, so that it is an upper bound; ``"most"``, the largest of
    ``shots``; ``"n"``, the runs that count, and ``"draws"``. Without any such
    run ``"equivalent"`` is None.

  Raises:
    UserError: The numbers of shots, or of runs, do not fit together.

  Example::

    found = worth([5, 10, 20], real, with_synthetic, at=10)
    print(sentence(found | {"method": "balanced"}, num_images=2000))

  References:
    The least squares fit is the max-min formula of Barlow et al., "Statistical
    Inference under Order Restrictions", 1972; the interval is the percentile
    method of Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.
  """
  curve, gained = _paired(shots, real, with_synthetic, at, draws)
  count = curve.shape[1]
  found = {
    "shots": int(at),
    "equivalent": None,
    "low": None,
    "high": None,
    "beyond": False,
    "below": False,
    "most": int(shots[-1]),
    "n": count,
    "draws": int(draws),
  }
  if not count:
    return found
  # The measured runs are the first row, resamplings of them the others.
  rng = np.random.default_rng(seed)
  rows = np.vstack([np.arange(count), rng.integers(count, size=(draws, count))])
  step = max(1, _AT_ONCE // (count * len(shots)))
  parts = np.array_split(rows, -(-len(rows) // step))
  means = np.vstack([curve[:, part].mean(-1).T for part in parts])
  curves, here = _monotone(means), list(shots).index(at)
  gains = np.concatenate([gained[part].mean(-1) for part in parts])
  goals = curves[:, here] + gains
  equivalents = _inverse(np.log(shots), curves, goals, here)
  found["equivalent"] = float(equivalents[0])
  found["beyond"] = bool(goals[0] > curves[0, -1])
  found["below"] = bool(goals[0] < curves[0, 0])
  if count > 1:
    tails = (100 - _PERCENT) / 2
    low, high = np.percentile(equivalents[1:], [tails, 100 - tails])
    found |= {"low": float(low), "high": float(high)}
  return found


def _paired(
  shots: Sequence[int], real: Runs, with_synthetic: Runs, at: int, draws: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns accuracies ``[S, runs]`` and gains ``[runs]`` at ``at``."""
  if not len(shots) or shots[0] < 1 or np.any(np.diff(shots) <= 0):
    raise UserError(
      f"shots={list(shots)} must be positive and ascending; sort them."
    )
  if at not in shots:
    raise UserError(f"at={at} is none of shots={list(shots)}; take one.")
  if draws < 1:
    raise UserError(f"draws={draws} must be at least 1.")
  lengths = {len(runs) for runs in (*real, *with_synthetic)}
  if len(lengths) != 1 or {len(real), len(with_synthetic)} != {len(shots)}:
    raise UserError(
      f"real has accuracies of {len(real)} and with_synthetic of "
      f"{len(with_synthetic)} of {len(shots)} shots, with {sorted(lengths)} "
      "runs; give the same runs of all shots, None for those that diverged."
    )
  curve = np.array(real, np.float64)
  here = list(shots).index(at)
  gained = np.array(with_synthetic[here], np.float64) - curve[here]
  kept = np.isfinite(curve).all(0) & np.isfinite(gained)
  return curve[:, kept], gained[kept]


def _monotone(values: np.ndarray) -> np.ndarray:
  """Fits rows that do not fall to those of ``[N, S]``, by least squares."""
  width = values.shape[1]
  sums = np.pad(values.cumsum(1), ((0, 0), (1, 0)))
  # The highest start and the lowest end of the mean over a stretch around it.
  fitted = np.full(values.shape, -np.inf)
  for start in range(width):
    lengths = np.arange(1, width - start + 1)
    means = (sums[:, start + 1 :] - sums[:, [start]]) / lengths
    lowest = np.minimum.accumulate(means[:, ::-1], axis=1)[:, ::-1]
    fitted[:, start:] = np.maximum(fitted[:, start:], lowest)
  return np.maximum.accumulate(fitted, axis=1)  # against rounding


def _inverse(
  x: np.ndarray, curves: np.ndarray, goals: np.ndarray, here: int
) -> np.ndarray:
  """Returns e to the x, nearest to ``x[here]``, where curves reach goals."""
  first = _first_reaching(x, curves, goals)
  last = -_first_reaching(-x[::-1], -curves[:, ::-1], -goals)
  # The two differ where a curve is level only, up to rounding.
  return np.exp(np.clip(x[here], first, np.maximum(first, last))).round(9)


def _first_reaching(
  x: np.ndarray, curves: np.ndarray, goals: np.ndarray
) -> np.ndarray:
  """Returns the smallest x at which monotone ``[N, S]`` reach ``[N]``."""
  right = (curves < goals[:, None]).sum(1)
  outside = (right == 0) | (right == len(x))
  after = np.clip(right, 0, len(x) - 1)
  before = np.maximum(after - 1, 0)
  rows = np.arange(len(curves))
  low, high = curves[rows, before], curves[rows, after]
  # Inside, the one is below the goal and the other is not.
  share = (goals - low) / np.where(outside, 1, high - low)
  share = np.where(outside, 1, share)
  return x[before] + share * (x[after] - x[before])


def saturation(
  images: Sequence[int], accuracies: Runs
) -> dict[str, Any] | None:
  """Finds how many synthetic images are as good as any number of them.

  That is the smallest number whose mean accuracy is no more than one standard
  error below the best mean; the error is that of the difference between the
  two, over runs that share their real images.

  Args:
    images: Numbers of synthetic images, K ascending numbers.
    accuracies: ``[K, runs]``; None for runs that diverged, which are left out
      of all.

  Returns:
    Plain data for JSON: ``"images"`` and the mean ``"accuracy"`` with so many;
    ``"best"``, the number with the highest mean; ``"rising"``, whether it takes
    the largest number, so that more may give more; ``"n"``, the runs that
    count. None if there are none. For one run the error is taken as 0.

  Raises:
    UserError: The numbers of images, or of runs, do not fit together.

  References:
    The rule of one standard error is that of Breiman et al., "Classification
    and Regression Trees", 1984, section 3.4.3.
  """
  if len({len(runs) for runs in accuracies}) != 1 or len(images) != len(
    accuracies
  ):
    raise UserError(
      f"accuracies of {len(accuracies)} numbers of images must be of the "
      f"{len(images)} in images={list(images)}, with the same runs each."
    )
  if np.any(np.diff(images) <= 0):
    raise UserError(f"images={list(images)} must be ascending; sort them.")
  values = np.array(accuracies, np.float64)
  values = values[:, np.isfinite(values).all(0)]
  count = values.shape[1]
  if not count:
    return None
  means = values.mean(1)
  best = int(means.argmax())
  short = values[best] - values
  errors = short.std(1, ddof=1) / np.sqrt(count) if count > 1 else 0
  first = int(np.flatnonzero(short.mean(1) <= errors)[0])
  return {
    "images": int(images[first]),
    "accuracy": float(means[first]),
    "best": int(images[best]),
    "rising": first == len(images) - 1,
    "n": count,
  }


def sentence(worth: Mapping[str, Any], num_images: int) -> str:
  """Says what `worth` found, for a person.

  Args:
    worth: What it returned, and ``"method"``, what trained with both.
    num_images: The number of synthetic images.
  """
  images, at = f"these {num_images:,} images", worth["shots"]
  used = f"used with {at:,} of them by {worth['method']}"
  if worth["equivalent"] is None:
    return (
      f"what {images} are worth in real ones, {used}, is not known: all runs "
      "diverged"
    )
  if (gain := worth["equivalent"] - at) < 0:
    about = "at most" if worth["below"] else "about"
    return (
      f"{images} do harm: {at:,} real ones a class with them, by "
      f"{worth['method']}, are worth {about} {_count(worth['equivalent'])} "
      f"without ({_interval(worth, 0)})"
    )
  about = "at least" if worth["beyond"] else "about"
  return (
    f"{images} are worth {about} {_count(gain)} real ones a class "
    f"({_interval(worth, at)}), {used}"
  )


def _interval(worth: Mapping[str, Any], less: int) -> str:
  """Says how sure an equivalent, less a number of images, is."""
  if worth["low"] is None:
    return f"of {worth['n']:,} run, so without an interval"
  low, high = (_count(worth[name] - less) for name in ("low", "high"))
  # The last number of shots that was measured stands for all above.
  is_open = worth["high"] >= worth["most"]
  return (
    f"{low} {'or more' if is_open else f'to {high}'}, {_PERCENT}% of "
    f"{worth['draws']:,} resamplings of {worth['n']:,} runs"
  )


def _count(number: float) -> str:
  """Writes a number of images: whole ones, or tenths of few."""
  text = f"{number:,.1f}" if abs(number) < 3 else f"{number:,.0f}"
  text = text.removesuffix(".0")
  return "0" if text == "-0" else text
