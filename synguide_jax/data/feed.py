"""Which images a step sees: batch = f(seed, run, stage, step).

Everything here is index arithmetic on the host. Resident and streamed images
(:mod:`synguide_jax.images`) are looked up by the same indices, and resuming
needs the position and nothing else.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from synguide_jax.errors import UserError

SETS = ("real", "synthetic", "mixed")
SAMPLERS = ("epoch", "uniform", "balanced")


@dataclasses.dataclass(frozen=True)
class Stream:
  """A source of batches.

  Attributes:
    set: ``"real"``, ``"synthetic"`` or ``"mixed"`` (their union, every image
      equally likely).
    batch_size: Images a step and run, over all devices.
    sampler: ``"epoch"``: shuffled passes, so that every image is drawn equally
      often, also by batches larger than the set; ``"uniform"``: independent
      draws with replacement; ``"balanced"``: every class equally often, by
      shuffled passes inside each class.
    views: Independent augmentations of each image.
    replacement: Probability with which an image is exchanged for a synthetic
      one of its class, drawn with replacement; it stays if there is none.
  """

  set: str
  batch_size: int
  sampler: str = "epoch"
  views: int = 1
  replacement: float = 0.0

  def __post_init__(self):
    if self.set not in SETS:
      raise UserError(f"Unknown set {self.set!r}; known: {SETS}.")
    if self.sampler not in SAMPLERS:
      raise UserError(f"Unknown sampler {self.sampler!r}; known: {SAMPLERS}.")
    if self.batch_size < 1 or self.views < 1:
      raise UserError(
        f"batch_size and views must be at least 1, got {self.batch_size} and "
        f"{self.views}."
      )
    if not 0 <= self.replacement <= 1:
      raise UserError(f"replacement={self.replacement} must be in [0, 1].")


# Keeps these draws apart from those of the shots.
_BATCHES = 2


def _rng(*key: int) -> np.random.Generator:
  seed = np.random.SeedSequence((_BATCHES, *key))
  return np.random.Generator(np.random.Philox(seed))


class _Passes:
  """An endless sequence made of shuffled passes over ``members``."""

  def __init__(self, members: np.ndarray, key: tuple[int, ...]):
    self._members, self.dtype = members, members.dtype
    # Consecutive batches fall into the same pass or its neighbour.
    self._pass = functools.lru_cache(maxsize=2)(
      lambda number: _rng(*key, number).permutation(members)
    )

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    numbers, offsets = np.divmod(positions, len(self._members))
    drawn = np.empty(len(positions), self._members.dtype)
    for number in np.unique(numbers):
      here = numbers == number
      drawn[here] = self._pass(int(number))[offsets[here]]
    return drawn


# Weights are kept to one part in so many; a round of draws has as many.
_ROUND = 1 << 16


class _Mixture:
  """An endless sequence that takes from several groups in fixed shares.

  A round takes ``quotas[g]`` images of group ``g``, in shuffled order; those of
  a group come from shuffled passes over it.
  """

  def __init__(
    self,
    groups: Sequence[np.ndarray],
    quotas: Sequence[int],
    key: tuple[int, ...],
  ):
    self._quotas = np.asarray(quotas)
    self._pattern = np.repeat(np.arange(len(groups)), quotas)
    self._key = key
    # Consecutive batches fall into the same round or its neighbour.
    self._round = functools.lru_cache(maxsize=2)(self._shuffled)
    self._passes = [
      _Passes(group, (*key, 1, number)) for number, group in enumerate(groups)
    ]

  def _shuffled(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A round's groups, and how many of its group came before each."""
    order = _rng(*self._key, 0, number).permutation(self._pattern)
    before = np.empty_like(order)
    for group in range(len(self._passes)):
      here = np.flatnonzero(order == group)
      before[here] = np.arange(len(here))
    return order, before

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    numbers, offsets = np.divmod(positions, len(self._pattern))
    which, place = np.empty((2, len(positions)), np.int64)
    for number in np.unique(numbers):
      here = numbers == number
      order, before = (part[offsets[here]] for part in self._round(int(number)))
      which[here] = order
      place[here] = number * self._quotas[order] + before
    drawn = np.empty(len(positions), self._passes[0].dtype)
    for group in np.unique(which):
      here = which == group
      drawn[here] = self._passes[group](place[here])
    return drawn


def _quotas(weights: Sequence[float]) -> np.ndarray:
  """Images of each group a round, by largest remainders; at least one."""
  exact = np.asarray(weights, np.float64) / np.sum(weights) * _ROUND
  quotas = np.maximum(np.floor(exact), 1).astype(np.int64)
  missing = _ROUND - quotas.sum()
  if missing > 0:
    quotas[np.argsort(quotas - exact, kind="stable")[:missing]] += 1
  return quotas // np.gcd.reduce(quotas)


class Sampler:
  """Draws a stream's indices for one run; a pure function of the step.

  Args:
    stream: What to draw.
    members: Indices to draw from, ``[N]``.
    labels: Label of each member, ``[N]``.
    key: Non-negative integers that identify seed, run, stage and stream.
    weights: Weight of each member, ``[N]``, the same for all of a source, whose
      images are drawn in proportion to the sum; None: all alike. A
      ``"balanced"`` stream has no use for them.
  """

  def __init__(
    self,
    stream: Stream,
    members: np.ndarray,
    labels: np.ndarray,
    key: tuple[int, ...],
    weights: np.ndarray | None = None,
  ):
    if len(members) == 0:
      raise UserError(f"The {stream.set!r} set has no image to draw from.")
    self._stream, self._members, self._key = stream, members, key
    self._share = None if weights is None else weights / weights.sum()
    if stream.sampler == "balanced":
      groups = [members[labels == c] for c in np.unique(labels)]
      self._sequence = _Mixture(groups, [1] * len(groups), key)
    elif weights is None or np.ptp(weights) == 0:
      self._sequence = _Passes(members, key)
    else:
      values = np.unique(weights)
      groups = [members[weights == value] for value in values]
      totals = [value * len(g) for value, g in zip(values, groups, strict=True)]
      self._sequence = _Mixture(groups, _quotas(totals), key)

  def __call__(self, step: int) -> np.ndarray:
    """Returns the indices of the batch of ``step``, int32 ``[batch_size]``."""
    size = self._stream.batch_size
    if self._stream.sampler == "uniform":
      count, rng = len(self._members), _rng(*self._key, step)
      if self._share is None:
        return self._members[rng.integers(count, size=size)]
      return self._members[rng.choice(count, size, p=self._share)]
    return self._sequence(np.arange(step * size, (step + 1) * size))


class _Replacing:
  """Exchanges some of the images that are drawn for others of their class.

  Args:
    draw: Draws the images.
    probability: Of each image to be exchanged.
    members: Indices of those it is exchanged for, ``[N]``; an image of a class
      without any stays.
    labels: Label of every image, in ``members`` or not.
    key: As of :class:`Sampler`.
    weights: Weight of each member, ``[N]``, to which its chance among those of
      its class is proportional; None: all alike.
  """

  def __init__(
    self,
    draw: Sampler,
    probability: float,
    members: np.ndarray,
    labels: np.ndarray,
    key: tuple[int, ...],
    weights: np.ndarray | None = None,
  ):
    self._draw, self._probability = draw, probability
    self._labels, self._key = labels, key
    order = np.argsort(labels[members], kind="stable")
    self._members = members[order]
    # A class is a stretch of members, and of the sum of their weights.
    self._classes = labels[self._members]
    weights = np.ones(len(members)) if weights is None else weights[order]
    self._sums = np.concatenate([[0.0], np.cumsum(weights)])

  def __call__(self, step: int) -> np.ndarray:
    """Returns the indices of the batch of ``step``, int32 ``[batch_size]``."""
    drawn = self._draw(step)
    # 2: the draws of a mixture have keys with 0 and 1 at this place.
    which, where = _rng(*self._key, 2, step).random((2, len(drawn)))
    first, end = (
      np.searchsorted(self._classes, self._labels[drawn], side)
      for side in ("left", "right")
    )
    here = (which < self._probability) & (first < end)
    first, end = first[here], end[here]
    low, high = self._sums[first], self._sums[end]
    point = low + where[here] * (high - low)
    place = np.searchsorted(self._sums, point, "right") - 1
    # Rounded up, the point may be the beginning of the next class.
    drawn[here] = self._members[np.minimum(place, end - 1)]
    return drawn


class Feed:
  """Draws the batches of all runs. Pickled, it is the indices and labels.

  Args:
    members: Indices into the images that each run may train on, by set:
      ``members[set][r]`` is an int32 array.
    labels: Label of every image.
    seed: Seed of the experiment.
    runs: Numbers of the runs; a run draws the same alone and in company.
    weights: Weight of every image, see :class:`Sampler`.
  """

  def __init__(
    self,
    members: Mapping[str, Sequence[np.ndarray]],
    labels: np.ndarray,
    *,
    seed: int,
    runs: Sequence[int],
    weights: np.ndarray | None = None,
  ):
    self._members, self._labels, self._weights = members, labels, weights
    self._seed, self._runs = seed, tuple(runs)
    self._cache: dict[Any, Sampler | _Replacing] = {}

  def __getstate__(self) -> dict[str, Any]:
    return {**vars(self), "_cache": {}}

  def _members_of(self, set_name: str, r: int) -> np.ndarray:
    if set_name != "mixed":
      return np.asarray(self._members[set_name][r], np.int32)
    both = [self._members_of(name, r) for name in ("real", "synthetic")]
    return np.concatenate(both)

  def _weights_of(self, members: np.ndarray) -> np.ndarray | None:
    return None if self._weights is None else self._weights[members]

  def _sampler(
    self, stage: int, number: int, stream: Stream, r: int
  ) -> Sampler | _Replacing:
    place = stage, number, r
    if place not in self._cache:
      members = self._members_of(stream.set, r)
      key = (self._seed, self._runs[r], stage, number)
      sampler = Sampler(
        stream, members, self._labels[members], key, self._weights_of(members)
      )
      if stream.replacement:
        others = self._members_of("synthetic", r)
        sampler = _Replacing(
          sampler,
          stream.replacement,
          others,
          self._labels,
          key,
          self._weights_of(others),
        )
      self._cache[place] = sampler
    return self._cache[place]

  def __call__(
    self, stage: int, streams: Mapping[str, Stream], step: int
  ) -> dict[str, np.ndarray]:
    """Returns int32 indices ``[runs, batch_size]`` by stream name."""
    return {
      name: np.stack(
        [
          self._sampler(stage, number, stream, r)(step)
          for r in range(len(self._runs))
        ]
      )
      for number, (name, stream) in enumerate(sorted(streams.items()))
    }
