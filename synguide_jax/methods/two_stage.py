"""Methods that begin on synthetic images; ``adp``, which then trains on real.

Wang et al. (WACV 2024, Section 5.3) train 150 epochs on synthetic images and
then 50 epochs with real ones, instead of 200. ``adp`` descends the cross
entropy of either; ADDA, DADA and LTDA share its first stage.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import optax

from synguide_jax.errors import check_known, check_not_negative, UserError
from synguide_jax.methods import networks, optimizers, supervised
from synguide_jax.methods.base import Info, Method, Stage, Stream
from synguide_jax.state import TrainState


def lengths(
  config: Any, info: Info, first: Stream, second: Stream
) -> tuple[int, int]:
  """Steps of the two stages, as ``config.two_stage`` divides the training.

  Args:
    config: The whole config; num_steps is divided if it is set, else
      num_epochs.
    info: Sizes of the sets.
    first: The stream whose epochs the first stage's are.
    second: A stream of the second stage; its epochs are passes over the set
      ``two_stage.second_epochs_of`` in batches of this size.

  Raises:
    UserError: for a share out of (0, 1), an unknown set, or a stage without a
      step.
  """
  section = config.two_stage
  share, of = section.first_share, section.second_epochs_of
  if not 0 < share < 1:
    raise UserError(f"two_stage.first_share={share} must be in (0, 1).")
  check_known("two_stage.second_epochs_of", of, ("real", "synthetic"))
  if config.num_steps > 0:
    if config.num_steps == 1:
      raise UserError(
        f"num_steps=1 leaves one of the two stages of {config.method!r} "
        "without a step."
      )
    # At least one step each.
    steps = round(share * config.num_steps)
    steps = min(max(steps, 1), config.num_steps - 1)
    return steps, config.num_steps - steps
  supervised.check_length(config)
  over = dataclasses.replace(second, set=of)
  return (
    info.num_steps(first, epochs=share * config.num_epochs),
    info.num_steps(over, epochs=(1 - share) * config.num_epochs),
  )


def pretraining(
  config: Any,
  info: Info,
  trained: networks.Trained,
  tx: optax.GradientTransformation,
  num_steps: int,
  rate: optax.Schedule,
) -> Stage:
  """Makes the first stage: cross entropy on synthetic images."""
  streams = networks.check_streams(config, info, first_streams(config))
  forward = supervised.one_stream(trained, "synthetic")
  step = supervised.descend(
    forward, tx, {"synthetic": 1.0}, config.microbatches
  )
  return Stage("pretrain", num_steps, streams, step, learning_rate=rate)


def first_streams(config: Any) -> dict[str, Stream]:
  """The batches of the first stage."""
  return {"synthetic": Stream("synthetic", config.batch_size)}


def second_optimizer(config: Any) -> Any:
  """The config's ``optimizer`` section, with the second stage's rate.

  Raises:
    UserError: for a negative rate, or another one for a kept optimizer.
  """
  rate = config.two_stage.second_rate
  check_not_negative("two_stage.second_rate", rate)
  if rate != 1 and not config.two_stage.reset_optimizer:
    raise UserError(
      f"two_stage.second_rate={rate} needs two_stage.reset_optimizer=True."
    )
  section = config.optimizer.copy_and_resolve_references()
  section.learning_rate *= rate
  return section


def optimizers_of(
  config: Any, steps: tuple[int, int]
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
  """The optimisers of two stages that train the same parameters.

  Returns:
    Two of their own, or twice one for both, by ``two_stage.reset_optimizer``.
  """
  second = second_optimizer(config)
  if config.two_stage.reset_optimizer:
    return (
      optimizers.create(config.optimizer, steps[0]),
      optimizers.create(second, steps[1]),
    )
  return (optimizers.create(config.optimizer, sum(steps)),) * 2


def rates_of(
  config: Any, steps: tuple[int, int]
) -> tuple[optax.Schedule, optax.Schedule]:
  """The learning rates of :func:`optimizers_of`, by the step of the stage."""
  if config.two_stage.reset_optimizer:
    return (
      optimizers.schedule(config.optimizer, steps[0]),
      optimizers.schedule(second_optimizer(config), steps[1]),
    )
  rate = optimizers.schedule(config.optimizer, sum(steps))
  return rate, lambda step: rate(steps[0] + step)


def enter_with(
  config: Any, tx: optax.GradientTransformation
) -> Callable[[TrainState, jax.Array], TrainState]:
  """Makes the ``enter`` of the second of two such stages."""

  def enter(state, key):
    del key
    if config.two_stage.reset_optimizer:
      state = state.replace(opt_state=tx.init(state.params))
    return state

  return enter


def make(config: Any, info: Info) -> Method:
  """Makes ``adp``."""
  trained = networks.create_trained(config, info)
  real: Mapping[str, Stream] = networks.check_streams(
    config, info, {"real": Stream("real", config.batch_size)}
  )
  first = first_streams(config)["synthetic"]
  steps = lengths(config, info, first, real["real"])
  before, after = optimizers_of(config, steps)
  rates = rates_of(config, steps)

  def init(key, images):
    return trained.init(key, images, before), None

  return Method(
    stages=(
      pretraining(config, info, trained, before, steps[0], rates[0]),
      Stage(
        "adapt",
        steps[1],
        real,
        supervised.descend(
          supervised.one_stream(trained, "real"),
          after,
          {"real": 1.0},
          config.microbatches,
        ),
        enter_with(config, after),
        rates[1],
      ),
    ),
    init=init,
    predict=trained.predict,
    model=trained.model,
  )
