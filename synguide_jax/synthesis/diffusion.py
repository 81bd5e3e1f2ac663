"""A class-conditional diffusion model as a method: the built-in generator.

It learns the denoiser of :mod:`synguide_jax.synthesis.edm` from the real
images, and the trainer trains it like any other method;
:mod:`synguide_jax.synthesis.sampling` makes images with it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from synguide_jax.data.feed import Stream
from synguide_jax.errors import UserError
from synguide_jax.methods import optimizers
from synguide_jax.methods.base import Batch, Info, Method, Metrics, Stage
from synguide_jax.state import TrainState
from synguide_jax.synthesis import augmentation, edm
from synguide_jax.synthesis.networks import NETWORKS


def make_network(config: Any, info: Info) -> nn.Module:
  """Builds the network of ``config.model`` for the classes of ``info``."""
  fields = dict(config.model)
  name = fields.pop("name")
  if name not in NETWORKS:
    raise UserError(
      f"Unknown config.model.name {name!r} for a diffusion model; known: "
      f"{', '.join(sorted(NETWORKS))}."
    )
  for field in ("width", "blocks"):
    if fields.get(field, 1) < 1:
      raise UserError(f"config.model.{field}={fields[field]} must be positive.")
  conditions = augmentation.CONDITIONS if config.diffusion.augment else 0
  try:
    return NETWORKS[name](
      num_classes=info.num_classes, conditions=conditions, **fields
    )
  except TypeError as error:  # A field of another network.
    raise UserError(f"config.model, a {name}: {error}.") from error


def drop_labels(
  key: jax.Array, labels: jax.Array, rate: float, null_label: int
) -> jax.Array:
  """Replaces each label by ``null_label`` with probability ``rate``."""
  dropped = jax.random.bernoulli(key, rate, labels.shape)
  return jnp.where(dropped, null_label, labels)


class Ema(NamedTuple):
  """An exponential moving average of the parameters.

  Attributes:
    params: The average.
    count: Updates so far, int32 scalar.
  """

  params: Any
  count: jax.Array


def update_ema(ema: Ema, params: Any, decay: float) -> Ema:
  r"""Moves the average towards ``params``.

  The decay is :math:`\min(decay, (1 + t) / (10 + t))` at update :math:`t`: a
  short training averages over about its last tenth, where a constant decay
  would still be full of the initial parameters.
  """
  t = ema.count.astype(jnp.float32)
  rate = 1 - jnp.minimum(decay, (1 + t) / (10 + t))
  average = optax.incremental_update(params, ema.params, rate)
  return Ema(average, ema.count + 1)


def ema_params(state: TrainState) -> Any:
  """Returns the averaged parameters, with which images are generated."""
  return state.ema.params


def make(config: Any, info: Info) -> Method:
  """Makes the method that trains the generator; it classifies nothing.

  Args:
    config: Reads ``num_steps``, ``batch_size``, ``model``, ``optimizer``,
      ``diffusion`` and ``ema``; see `config.generator_defaults`.
    info: Classes and image shape.

  Returns:
    A method of one stage, which learns from the real images only. The state's
    ``ema`` is an :class:`Ema`.
  """
  if config.num_steps < 1:
    raise UserError(
      f"config.num_steps must be at least 1, got {config.num_steps}: a "
      "diffusion model's training has no epochs."
    )
  settings = config.diffusion.to_dict()
  for field in ("label_dropout", "augment"):
    if not 0 <= settings[field] <= 1:
      raise UserError(
        f"config.diffusion.{field}={settings[field]} must be a probability."
      )
  for field in ("sigma_data", "p_std"):
    if settings[field] <= 0:
      raise UserError(
        f"config.diffusion.{field}={settings[field]} must be positive."
      )
  if not 0 <= config.ema < 1:
    raise UserError(f"config.ema={config.ema} must be at least 0 and below 1.")
  network = make_network(config, info)
  optimizer = optimizers.create(config.optimizer, config.num_steps)
  ema_decay = config.ema

  def init(key: jax.Array, images: jax.Array) -> tuple[TrainState, Any]:
    number = images.shape[0]
    params = network.init(
      key, images, jnp.zeros(number), jnp.zeros(number, jnp.int32)
    )["params"]
    # A copy, since a buffer that is twice in the state cannot be donated.
    ema = Ema(jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))
    return TrainState(params, {}, optimizer.init(params), ema=ema), None

  def step(
    state: TrainState,
    frozen: Any,
    batches: Mapping[str, Batch],
    key: jax.Array,
    progress: jax.Array,
  ) -> tuple[TrainState, Metrics]:
    del frozen, progress
    loss, grads = jax.value_and_grad(_loss)(
      state.params, network, settings, batches["real"], key
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(
      params=params,
      opt_state=opt_state,
      ema=update_ema(state.ema, params, ema_decay),
    )
    return state, {"loss": loss}

  stage = Stage(
    "train",
    num_steps=config.num_steps,
    streams={"real": Stream("real", config.batch_size)},
    step=step,
    learning_rate=optimizers.schedule(config.optimizer, config.num_steps),
  )
  return Method(stages=(stage,), init=init, predict=None)


def _loss(
  params: Any,
  network: nn.Module,
  settings: Mapping[str, Any],
  batch: Batch,
  key: jax.Array,
) -> jax.Array:
  """The denoising loss at noise levels, labels and changes drawn at random."""
  sigma_key, noise_key, label_key, dropout_key = jax.random.split(key, 4)
  images, conditions = 2 * batch.images - 1, None
  if settings["augment"]:
    # A fifth key that leaves the others as they are without it.
    augment_key = jax.random.fold_in(key, 5)
    images, conditions = augmentation.augment(
      augment_key, images, settings["augment"]
    )
  labels = drop_labels(
    label_key, batch.labels, settings["label_dropout"], network.num_classes
  )
  sigma = edm.training_sigma(
    sigma_key, labels.shape, settings["p_mean"], settings["p_std"]
  )
  denoise = edm.denoiser(
    network,
    params,
    sigma_data=settings["sigma_data"],
    augmentation=conditions,
    dropout_key=dropout_key,
  )
  noise = jax.random.normal(noise_key, images.shape)
  return edm.denoising_loss(
    denoise, images, labels, sigma, noise, settings["sigma_data"]
  )
