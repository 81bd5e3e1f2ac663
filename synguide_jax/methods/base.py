"""The contract between a method and the trainer.

A method is data plus pure functions, never a loop of its own::

  make(config, info) -> Method

The trainer draws the batches a stage asks for, augments them on the device,
and calls ``step`` once per step for every run (vmapped over the run axis, or
mapped); nothing here knows about runs, devices, checkpoints or files.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import flax.struct
import jax

from synguide_jax.data.feed import Stream
from synguide_jax.models.base import Model
from synguide_jax.state import TrainState

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class Batch:
  """One stream's share of a step.

  Attributes:
    images: Augmented images in [0, 1], float32 ``[B, H, W, C]``; with
      ``Stream.views > 1`` it is ``[views, B, H, W, C]``.
    labels: Class indices, int32 ``[B]``.
    real: True where the image is real, False where it is synthetic, ``[B]``.
  """

  images: jax.Array
  labels: jax.Array
  real: jax.Array


@dataclasses.dataclass(frozen=True)
class Info:
  """What may be known of the data before training.

  Attributes:
    class_names: Names of the classes, in label order.
    image_shape: ``(H, W, C)`` of the images a step receives.
    class_counts: Images per class, by set: ``"real"`` (a run's training images,
      in cross-validation the first run's) and, if there is one,
      ``"synthetic"``.
  """

  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]
  class_counts: Mapping[str, tuple[int, ...]]

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  def size(self, set_name: str) -> int:
    """Number of images of a set; ``"mixed"`` is the union of both."""
    if set_name == "mixed":
      return self.size("real") + self.size("synthetic")
    return sum(self.class_counts.get(set_name, ()))

  def num_steps(self, stream: Stream, *, epochs: float) -> int:
    """Steps that show each image of ``stream``'s set ``epochs`` times."""
    return max(1, math.ceil(epochs * self.size(stream.set) / stream.batch_size))


StepFn = Callable[
  [TrainState, Any, Mapping[str, Batch], jax.Array, jax.Array],
  tuple[TrainState, Metrics],
]


def _keep(state: TrainState, key: jax.Array) -> TrainState:
  del key
  return state


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stretch of training with one kind of step.

  Attributes:
    name: Shown in progress lines and errors.
    num_steps: Length in steps (see :meth:`Info.num_steps` for epochs).
    streams: The batches a step receives, by name.
    step: ``(state, frozen, batches, key, progress) -> (state, metrics)``, pure.
      ``progress`` is the share of this stage that is done, a float32 scalar in
      [0, 1). ``metrics`` are float scalars and contain ``"loss"``, by which a
      diverged run is recognised.
    enter: ``(state, key) -> state``, called once as the stage begins.
    learning_rate: The optimiser's by the step of the stage, from 0 on, to be
      logged; None: it is not.
  """

  name: str
  num_steps: int
  streams: Mapping[str, Stream]
  step: StepFn
  enter: Callable[[TrainState, jax.Array], TrainState] = _keep
  learning_rate: Callable[[int], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Method:
  """A way to train.

  Attributes:
    stages: Run one after the other.
    init: ``(key, images) -> (state, frozen)`` for one run, ``images`` being a
      batch of the shape that steps receive. Runs under jit.
    predict: ``(state, frozen, images) -> logits [B, num_classes]`` for images
      in [0, 1], or None for a method that classifies nothing (a generator).
      It receives ``state.for_prediction()``.
    model: The network whose ``params`` and ``batch_stats`` the state holds, for
      saving it by itself; None if there is more to the method than that.
    frozen_per_run: Whether ``frozen`` depends on the key, so that every run
      has its own; otherwise all runs share one copy.
  """

  stages: tuple[Stage, ...]
  init: Callable[[jax.Array, jax.Array], tuple[TrainState, Any]]
  predict: Callable[[TrainState, Any, jax.Array], jax.Array] | None
  model: Model | None = None
  frozen_per_run: bool = False
