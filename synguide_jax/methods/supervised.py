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

from collections.abc import Mapping
from typing import Any

import jax
import optax

from synguide_jax.errors import UserError
from synguide_jax.methods import networks, optimizers, two_streams
from synguide_jax.methods.base import (
  Info,
  Method,
  Stage,
  StepFn,
  Stream,
)
from synguide_jax.methods.microbatches import accumulate
from synguide_jax.methods.two_streams import Forward


def check_length(config: Any) -> None:
  """Raises UserError if the config has no training of any length."""
  if config.num_steps <= 0 and config.num_epochs <= 0:
    raise UserError(
      f"num_steps={config.num_steps} and num_epochs={config.num_epochs}: one "
      "of them must be positive."
    )


def num_steps(config: Any, info: Info, stream: Stream) -> int:
  """Length of training: ``num_steps``, or ``num_epochs`` of ``stream``."""
  check_length(config)
  if config.num_steps > 0:
    return config.num_steps
  return info.num_steps(stream, epochs=config.num_epochs)


def _streams_and_weights(
  config: Any, info: Info
) -> tuple[dict[str, Stream], dict[str, float]]:
  """Returns the batches of a step and the weights of their cross entropies."""
  if config.method == "balanced":
    return two_streams.streams(config, info), {"real": 1.0, "synthetic": 1.0}
  if config.method == "weighted":
    if config.weighted.replacement_probability:
      return _replacement(config, info), {"replaced": 1.0}
    weight = config.weighted.real_weight
    if not 0 <= weight <= 1:
      raise UserError(f"weighted.real_weight={weight} must be in [0, 1].")
    weights = {"real": weight, "synthetic": 1 - weight}
    return two_streams.streams(config, info), weights
  name = {"real": "real", "fake": "synthetic", "aug": "mixed"}[config.method]
  streams = {name: Stream(name, config.batch_size)}
  return networks.check_streams(config, info, streams), {name: 1.0}


def _replacement(config: Any, info: Info) -> dict[str, Stream]:
  probability = config.weighted.replacement_probability
  if not 0 <= probability <= 1:
    raise UserError(
      f"weighted.replacement_probability={probability} must be in [0, 1]."
    )
  networks.check_streams(
    config, info, {"mixed": Stream("mixed", config.batch_size)}
  )
  stream = Stream("real", config.batch_size, replacement=probability)
  return {"replaced": stream}


def one_stream(
  trained: networks.Trained, name: str, *, train: bool = True
) -> Forward:
  """Makes the forward pass of one batch.

  Args:
    trained: The network.
    name: The stream's name.
    train: Whether the network is in training mode.
  """

  def forward(params, batch_stats, batches, key):
    (key,) = jax.random.split(key, 1)
    output = trained.apply(
      params, batch_stats, batches[name].images, key, train=train
    )
    return {name: output}, output.batch_stats

  return forward


def descend(
  forward: Forward,
  tx: optax.GradientTransformation,
  weights: Mapping[str, float],
  parts: int = 1,
) -> StepFn:
  """Makes the step that descends a weighted sum of cross entropies.

  Args:
    forward: The forward pass of all streams.
    tx: The optimiser.
    weights: Weight of each stream's mean cross entropy.
    parts: Microbatches.
  """

  def loss_fn(params, batch_stats, batches, key):
    outputs, batch_stats = forward(params, batch_stats, batches, key)
    loss, metrics = 0.0, {}
    for name, weight in weights.items():
      logits = outputs[name].logits
      of_stream = networks.cross_entropy(logits, batches[name])
      loss += weight * of_stream
      if len(weights) > 1:
        metrics[f"{name}_loss"] = of_stream
      metrics[f"{name}_accuracy"] = networks.accuracy(logits, batches[name])
    return loss, (batch_stats, {"loss": loss, **metrics})

  grad_fn = accumulate(jax.grad(loss_fn, has_aux=True), parts)

  def step(state, frozen, batches, key, progress):
    del frozen, progress
    grads, (batch_stats, metrics) = grad_fn(
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
  rate = optimizers.schedule(config.optimizer, steps)
  if len(streams) == 2:
    forward = two_streams.forward(trained, config)
  else:
    forward = one_stream(trained, *streams)

  step = descend(forward, tx, weights, config.microbatches)

  def init(key, images):
    return trained.init(key, images, tx), None

  return Method(
    stages=(Stage("train", steps, streams, step, learning_rate=rate),),
    init=init,
    predict=trained.predict,
    model=trained.model,
  )
