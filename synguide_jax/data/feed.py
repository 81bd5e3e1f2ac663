"""Which images a step sees: batch = f(seed, run, stage, step).

Everything here is index arithmetic on the host. Both feeds (resident arrays
today, a stream for what does not fit) look the indices up, so they show the
same images, and resuming needs the position and nothing else.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools

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
  """

  set: str
  batch_size: int
  sampler: str = "epoch"
  views: int = 1

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


# Keeps these draws apart from those of the shots.
_BATCHES = 2


def _rng(*key: int) -> np.random.Generator:
  seed = np.random.SeedSequence((_BATCHES, *key))
  return np.random.Generator(np.random.Philox(seed))


class _Passes:
  """An endless sequence made of shuffled passes over ``members``."""

  def __init__(self, members: np.ndarray, key: tuple[int, ...]):
    self._members = members
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


class Sampler:
  """Draws a stream's indices for one run; a pure function of the step.

  Args:
    stream: What to draw.
    members: Indices to draw from, ``[N]``.
    labels: Label of each member, ``[N]``.
    key: Non-negative integers that identify seed, run, stage and stream.
  """

  def __init__(
    self,
    stream: Stream,
    members: np.ndarray,
    labels: np.ndarray,
    key: tuple[int, ...],
  ):
    if len(members) == 0:
      raise UserError(f"The {stream.set!r} set has no image to draw from.")
    self._stream, self._members, self._key = stream, members, key
    if stream.sampler == "epoch":
      self._passes = [_Passes(members, key)]
    elif stream.sampler == "balanced":
      classes = np.unique(labels)
      self._order = _Passes(np.arange(len(classes)), (*key, 0))
      self._passes = [
        _Passes(members[labels == c], (*key, 1, int(c))) for c in classes
      ]

  def __call__(self, step: int) -> np.ndarray:
    """Returns the indices of the batch of ``step``, int32 ``[batch_size]``."""
    size = self._stream.batch_size
    positions = np.arange(step * size, (step + 1) * size)
    if self._stream.sampler == "uniform":
      choice = _rng(*self._key, step).integers(len(self._members), size=size)
      return self._members[choice]
    if self._stream.sampler == "epoch":
      return self._passes[0](positions)
    # Balanced: the n-th round over the classes takes each class's n-th image.
    rounds, which = positions // len(self._passes), self._order(positions)
    drawn = np.empty(size, self._members.dtype)
    for c, passes in enumerate(self._passes):
      drawn[which == c] = passes(rounds[which == c])
    return drawn


class Feed:
  """Draws the batches of all runs.

  Args:
    members: Indices into the stored images that each run may train on, by set:
      ``members[set][r]`` is an int32 array.
    labels: Label of every stored image.
    seed: Seed of the experiment.
    runs: Numbers of the runs; a run draws the same alone and in company.
  """

  def __init__(
    self,
    members: Mapping[str, Sequence[np.ndarray]],
    labels: np.ndarray,
    *,
    seed: int,
    runs: Sequence[int],
  ):
    self._members, self._labels = members, labels
    self._seed, self._runs = seed, tuple(runs)

  def _members_of(self, set_name: str, r: int) -> np.ndarray:
    if set_name != "mixed":
      return np.asarray(self._members[set_name][r], np.int32)
    both = [self._members_of(name, r) for name in ("real", "synthetic")]
    return np.concatenate(both)

  @functools.cache  # noqa: B019 (a feed lives as long as its training)
  def _samplers(self, stage: int, number: int, stream: Stream) -> list[Sampler]:
    samplers = []
    for r, run in enumerate(self._runs):
      members = self._members_of(stream.set, r)
      key = (self._seed, run, stage, number)
      samplers.append(Sampler(stream, members, self._labels[members], key))
    return samplers

  def __call__(
    self, stage: int, streams: Mapping[str, Stream], step: int
  ) -> dict[str, np.ndarray]:
    """Returns int32 indices ``[runs, batch_size]`` by stream name."""
    return {
      name: np.stack([s(step) for s in self._samplers(stage, number, stream)])
      for number, (name, stream) in enumerate(sorted(streams.items()))
    }
