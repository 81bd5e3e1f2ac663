"""Which images of a labelled set to keep: index arithmetic on NumPy arrays."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from synguide_jax.errors import UserError
from synguide_jax.synthesis.classifier import Predictions

# What becomes of an image: a number in an array, and a name in reports.
FATES = ("kept", "confidence", "disagreement", "loss", "balancing")
KEPT, CONFIDENCE, DISAGREEMENT, LOSS, BALANCING = range(len(FATES))


@dataclasses.dataclass(frozen=True)
class Rules:
  """Which label an image gets, and which images are kept.

  An image keeps the label it has, and gets the most probable class where it
  has none. The filters are applied first, in the order of the fields; then, if
  wanted, images are drawn at random so that the classes balance. (The most
  confident ones would be the most alike.)

  Attributes:
    split: The source's; by default ``"train"``, or its first.
    match_classes: How the source's classes are the classifier's; see
      :func:`synguide_jax.data.classes.match`.
    class_mapping: Likewise.
    relabel: Whether the most probable class replaces the label of those that
      have one.
    threshold: The largest probability must be above this one; 0: keep all;
      None: 0.8, or 0 where the loss is limited, which then decides alone.
    agree: Whether the most probable class must be the image's own label.
    min_loss: Smallest cross entropy of the label, nats.
    max_loss: Largest cross entropy of the label, nats; None: any.
    per_class: Number of images of a class, at most; None: all.
    balance_with: Real images, with which all classes are to have the same
      number of images, as many as can be had: a workdir, for those that its run
      0 trains on; or a spec, for all of the set's split "train".
    seed: Of the draw.
  """

  split: str | None = None
  match_classes: str = "name"
  class_mapping: Sequence[str] = ()
  relabel: bool = False
  threshold: float | None = None
  agree: bool = False
  min_loss: float = 0.0
  max_loss: float | None = None
  per_class: int | None = None
  balance_with: str | None = None
  seed: int = 0

  def resolved(self) -> "Rules":
    """Returns the same rules with the threshold that holds."""
    if self.threshold is not None:
      return self
    by_loss = self.min_loss > 0 or self.max_loss is not None
    return dataclasses.replace(self, threshold=0.0 if by_loss else 0.8)

  def check(self) -> None:
    """Raises UserError for a value out of range."""
    if self.threshold is not None and not 0 <= self.threshold < 1:
      raise UserError(
        f"threshold={self.threshold} must be a probability, at least 0 (keep "
        "all) and below 1."
      )
    highest = np.inf if self.max_loss is None else self.max_loss
    if not 0 <= self.min_loss <= highest:
      raise UserError(
        f"min_loss={self.min_loss} and max_loss={self.max_loss} leave no "
        "range; give 0 <= min_loss <= max_loss, in nats."
      )
    if self.per_class is not None and self.per_class < 1:
      raise UserError(f"per_class={self.per_class} must be at least 1.")
    if self.per_class and self.balance_with:
      raise UserError(
        f"per_class={self.per_class} and balance_with={self.balance_with!r} "
        "are two ways to balance; give one of them."
      )
    if self.seed < 0:
      raise UserError(f"seed={self.seed} must not be negative.")


def select(
  predictions: Predictions, own: np.ndarray, rules: Rules
) -> np.ndarray:
  """Applies the filters.

  Args:
    predictions: Of ``N`` images.
    own: The labels they had, int32 ``[N]``; -1: none.
    rules: What is kept.

  Returns:
    What becomes of each, indices into ``FATES``, int8 ``[N]``; where several
    filters would drop an image, the first of them.
  """
  losses, rules = predictions.losses, rules.resolved()
  # In float32 on both sides: a probability of 0.8 is not above 0.8.
  kept = {CONFIDENCE: predictions.confidences > np.float32(rules.threshold)}
  if rules.agree:
    kept[DISAGREEMENT] = predictions.predicted == own
  kept[LOSS] = losses >= np.float32(rules.min_loss)
  if rules.max_loss is not None:
    kept[LOSS] &= losses <= np.float32(rules.max_loss)
  fates = np.full(len(losses), KEPT, np.int8)
  for fate, passed in kept.items():
    fates[(fates == KEPT) & ~passed] = fate
  return fates


def draw(
  fates: np.ndarray, labels: np.ndarray, limits: Sequence[int], *, seed: int
) -> np.ndarray:
  """Draws which of the images that are kept exceed the limit of their class.

  Args:
    fates: As from :func:`select`, int8 ``[N]``.
    labels: Class of each image, ``[N]``.
    limits: Number of images of a class, at most, ``[K]``.
    seed: Of the draw. With a larger limit, the same images are kept and more.

  Returns:
    New fates, int8 ``[N]``.
  """
  fates = fates.copy()
  for c, limit in enumerate(limits):
    kept = np.flatnonzero((fates == KEPT) & (labels == c))
    order = np.random.default_rng([seed, c]).permutation(kept)
    fates[order[limit:]] = BALANCING
  return fates


def balanced_counts(
  real: Sequence[int], available: Sequence[int]
) -> tuple[np.ndarray, int]:
  """How many synthetic images make all classes equally large.

  The size of a class, real plus synthetic, is the largest that every class
  reaches: ``T = min_c (real_c + available_c)``. A class with more real images
  than that gets no synthetic one and stays larger.

  Args:
    real: Real images by class, ``[K]``.
    available: Synthetic images by class, ``[K]``.

  Returns:
    The number of synthetic images by class, ``[K]``, and ``T``.
  """
  real, available = np.asarray(real), np.asarray(available)
  total = int((real + available).min())
  return np.maximum(total - real, 0), total


def count(
  fates: np.ndarray, predictions: Predictions, class_names: Sequence[str]
) -> list[dict[str, Any]]:
  """Counts by class what became of its images.

  Args:
    fates: Indices into ``FATES``, ``[N]``.
    predictions: Of the images.
    class_names: Names of the ``K`` classes.

  Returns:
    ``K`` rows, plain data: the ``class``, its ``images``, how many of them had
    which fate, and the ``mean_confidence`` of those kept, None where there is
    none.
  """
  rows = []
  for c, name in enumerate(class_names):
    here = predictions.labels == c
    sure = predictions.confidences[here & (fates == KEPT)]
    of_fate = np.bincount(fates[here], minlength=len(FATES)).tolist()
    rows.append(
      {
        "class": name,
        "images": int(here.sum()),
        **dict(zip(FATES, of_fate, strict=True)),
        "mean_confidence": float(sure.mean(dtype=np.float64))
        if len(sure)
        else None,
      }
    )
  return rows
