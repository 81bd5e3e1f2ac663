"""The package's own step on random images, for the benchmarks of its cost."""

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from synguide_jax import config as config_lib
from synguide_jax.data.experiment_data import ExperimentData
from synguide_jax.data.feed import Feed
from synguide_jax.images import Steps
from synguide_jax.program import Program

# What makes the package's step one of the four that are compared. "plain" is
# cross entropy on the union of both sets.
VARIANTS = {
  "plain": {"method": "aug"},
  "PG": {"method": "guided", "guidance.rg": False},
  "RG": {
    "method": "guided",
    "guidance.pg_real": False,
    "guidance.pg_synthetic": False,
  },
  "PG+RG": {"method": "guided"},
}
FEATURE_LAYER = "stage3"
# Pixels around an image before it is cropped, where images are augmented.
PADDING = 4


@dataclasses.dataclass(frozen=True)
class Shape:
  """What a step is of.

  Attributes:
    network: Registered name, of M_u and of M_p, which is random.
    side: Of the images, pixels.
    batch: Images a step.
    dtype: Type both networks compute in.
    num_classes: Classes.
    num_images: Images of each set.
    augment: Whether they are cropped and flipped.
  """

  network: str
  side: int
  batch: int
  dtype: str = "float32"
  num_classes: int = 10
  num_images: int = 2048
  augment: bool = False

  @property
  def channels(self) -> int:
    """The digits are grey."""
    return 1 if self.network == "small_cnn" else 3


class RandomPixels:
  """Random images with the face of `synguide_jax.data.pixels.Pixels`."""

  def __init__(self, *shape: int):
    self.shape, self.nbytes = shape, int(np.prod(shape))

  def __len__(self) -> int:
    return self.shape[0]

  def read(self) -> np.ndarray:
    """Returns all of them, the same at every call."""
    return np.random.default_rng(0).integers(0, 256, self.shape, np.uint8)

  read_all = read


def random_data(shape: Shape, num_runs: int = 1) -> ExperimentData:
  """Makes as many real as synthetic images, which all runs train on."""
  count = shape.num_images
  numbers = np.arange(2 * count, dtype=np.int32)
  return ExperimentData(
    pixels=RandomPixels(2 * count, shape.side, shape.side, shape.channels),
    labels=numbers % shape.num_classes,
    real=numbers < count,
    class_names=tuple(map(str, range(shape.num_classes))),
    indices={"pool": numbers[:count], "synthetic": numbers[count:]},
    members={
      "real": [numbers[:count]] * num_runs,
      "synthetic": [numbers[count:]] * num_runs,
    },
    tested_by=None,
    weights=None,
    provenance={},
    hashes=np.zeros(2 * count, np.uint64),
    warnings=(),
  )


def make_config(
  shape: Shape, variant: str, overrides: dict[str, Any] | None = None
) -> Any:
  """Returns the config of a step, with the defaults of a user's."""
  return config_lib.override(
    config_lib.classifier_defaults(),
    {
      "num_runs": 1,
      "num_steps": 10**9,
      "batch_size": shape.batch,
      "data.image_size": shape.side,
      "data.channels": shape.channels,
      "data.feed": "resident",
      "data.padding": PADDING if shape.augment else 0,
      "data.flip": shape.augment,
      "model.name": shape.network,
      "model.dtype": shape.dtype,
      "pretrained.weights": "random",
      "pretrained.random_model": shape.network,
      "pretrained.dtype": shape.dtype,
      "pretrained.feature_layer": FEATURE_LAYER,
      "guidance.feature_layer": FEATURE_LAYER,
      **VARIANTS[variant],
      **(overrides or {}),
    },
  )


class Training:
  """A training under way.

  Args:
    config: The experiment's config.
    data: Its images.
    devices: Devices to use; by default the first.

  Attributes:
    program: The package's program.
    carry: What steps carry.
    frozen: The frozen network.
  """

  def __init__(
    self,
    config: Any,
    data: ExperimentData,
    devices: Sequence[jax.Device] | None = None,
  ):
    runs = tuple(range(config.num_runs))
    self.program = Program(config, data, runs, devices or jax.devices()[:1])
    self._feed = Feed(data.members, data.labels, seed=config.seed, runs=runs)
    carry, self.frozen = self.program.init()
    self.carry, _ = self.program.enter(0, carry, self.frozen)
    self._step = self.program.step(0, self.frozen)
    self._number = self._end = 0
    self._batches = self.program.batches(
      self._feed, 0, 0, lambda step: step == self._end
    )

  def batches(self) -> Iterator[Steps]:
    """Yields what the steps draw, from the first one on."""
    return self.program.batches(self._feed, 0, 0)

  def advance(self, steps: int) -> None:
    """Trains for so many steps; returns when they are done."""
    self._end = self._number + steps
    while self._number < self._end:
      several = next(self._batches)
      self.carry = self._step(self.carry, several, self._number)
      self._number += several.count
    jax.block_until_ready(self.carry)
