"""Cross entropy on real and synthetic images: the plain baselines.

With CE_s the mean cross entropy of stream s, each minimises sum_s w_s CE_s:

  real      CE_real
  fake      CE_synthetic
  aug       CE_mixed, the union of both sets, every image equally likely
  balanced  CE_real + CE_synthetic, half of the batch each
  weighted  w CE_real + (1 - w) CE_synthetic, w = ``weighted.real_weight``, as
            in DataDream (Kim et al., ECCV 2024); or CE of real images of which
            each is exchanged, with ``weighted.replacement_probability``, for a
            synthetic one of its class, as in DA-Fusion (Trabucco et al., ICLR
            2024) and Diff-Mix (Wang et al., CVPR 2024)

``balanced`` and ``weighted`` run two forward passes, real first, each
normalised by its own batch statistics, as Real Guidance does; ``balanced`` is
Real Guidance without the projection.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from synguide_jax.errors import check_known, UserError
from synguide_jax.methods import networks, optimizers
from synguide_jax.methods.base import (
  Info,
  Method,
  Stage,
  StepFn,
  Stream,
)


def half_streams(config: Any, info: Info) -> dict[str, Stream]:
  """One real and one synthetic stream of half the batch each."""
  if config.batch_size % 2:
    raise UserError(
      f"batch_size={config.batch_size} must be even: method "
      f"{config.method!r} splits it between real and synthetic images."
    )
  streams = {
    name: Stream(name, config.batch_size // 2) for name in ("real", "synthetic")
  }
  return check_streams(config, info, streams)


def check_streams(
  config: Any, info: Info, streams: dict[str, Stream]
) -> dict[str, Stream]:
  """Returns ``streams``; raises UserError if a set they need is missing."""
  for stream in streams.values():
    needed = ("real", "synthetic") if stream.set == "mixed" else (stream.set,)
    for name in needed:
      if not info.size(name):
        empty = f"data.{name} is empty"
        if name == "real" and config.data.real:
          empty = f"there are none: data.shots={config.data.shots}"
        raise UserError(
          f"Method {config.method!r} needs {name} training images, but {empty}."
        )
  return streams


def num_steps(config: Any, info: Info, stream: Stream) -> int:
  """Length of training: ``num_steps``, or ``num_epochs`` of ``stream``."""
  if config.num_steps > 0:
    return config.num_steps
  if config.num_epochs <= 0:
    raise UserError(
      f"num_steps={config.num_steps} and num_epochs={config.num_epochs}: one "
      "of them must be positive."
    )
  return info.num_steps(stream, epochs=config.num_epochs)


def _streams_and_weights(
  config: Any, info: Info
) -> tuple[dict[str, Stream], dict[str, float]]:
  """Returns the batches of a step and the weights of their cross entropies."""
  if config.method == "balanced":
    return half_streams(config, info), {"real": 1.0, "synthetic": 1.0}
  if config.method == "weighted":
    if config.weighted.replacement_probability:
      return _replacement(config, info), {"replaced": 1.0}
    weight = config.weighted.real_weight
    if not 0 <= weight <= 1:
      raise UserError(f"weighted.real_weight={weight} must be in [0, 1].")
    weights = {"real": weight, "synthetic": 1 - weight}
    return half_streams(config, info), weights
  name = {"real": "real", "fake": "synthetic", "aug": "mixed"}[config.method]
  streams = {name: Stream(name, config.batch_size)}
  return check_streams(config, info, streams), {name: 1.0}


def _replacement(config: Any, info: Info) -> dict[str, Stream]:
  probability = config.weighted.replacement_probability
  if not 0 <= probability <= 1:
    raise UserError(
      f"weighted.replacement_probability={probability} must be in [0, 1]."
    )
  check_streams(config, info, {"mixed": Stream("mixed", config.batch_size)})
  stream = Stream("real", config.batch_size, replacement=probability)
  return {"replaced": stream}


def updates_statistics(config: Any) -> Callable[[str], bool]:
  """Returns which of a step's streams update the running statistics.

  Raises:
    UserError: for an unknown ``config.running_statistics``.
  """
  kept = config.running_statistics
  check_known("running_statistics", kept, ("both", "real"))
  return lambda name: kept == "both" or name != "synthetic"


def descend(
  trained: networks.Trained,
  tx: optax.GradientTransformation,
  weights: Mapping[str, float],
  *,
  train: bool = True,
  updates: Callable[[str], bool] = lambda name: True,
) -> StepFn:
  """Makes the step that descends a weighted sum of cross entropies.

  Args:
    trained: The network.
    tx: The optimiser.
    weights: Weight of each stream's mean cross entropy, in the order of the
      forward passes.
    train: Whether the network is in training mode.
    updates: Which streams update the running statistics.
  """

  def loss_fn(params, batch_stats, batches, key):
    loss, metrics = 0.0, {}
    keys = jax.random.split(key, len(weights))
    for stream_key, (name, weight) in zip(keys, weights.items(), strict=True):
      output = trained.apply(
        params, batch_stats, batches[name].images, stream_key, train=train
      )
      if updates(name):
        batch_stats = output.batch_stats
      loss += weight * networks.cross_entropy(output.logits, batches[name])
      metrics[f"{name}_accuracy"] = networks.accuracy(
        output.logits, batches[name]
      )
    return loss, (batch_stats, {"loss": loss, **metrics})

  def step(state, frozen, batches, key, progress):
    del frozen, progress
    grads, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(
      state.params, state.batch_stats, batches, key
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(
      params=params, batch_stats=batch_stats, opt_state=opt_state
    )
    return state, metrics

  return step


def make(config: Any, info: Info) -> Method:
  """Makes ``real``, ``fake``, ``aug``, ``balanced`` or ``weighted``."""
  streams, weights = _streams_and_weights(config, info)
  # An epoch is one pass over the synthetic images where there are any.
  steps = num_steps(config, info, list(streams.values())[-1])
  trained = networks.create_trained(config, info)
  tx = optimizers.create(config.optimizer, steps)
  step = descend(trained, tx, weights, updates=updates_statistics(config))

  def init(key, images):
    return trained.init(key, images, tx), None

  return Method(
    stages=(Stage("train", steps, streams, step),),
    init=init,
    predict=trained.predict,
    model=trained.model,
  )
