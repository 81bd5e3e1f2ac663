"""The two networks of a method: M_u, which is trained, and M_p, frozen."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from synguide_jax import models
from synguide_jax.errors import UserError
from synguide_jax.methods.base import Batch, Info, Stream
from synguide_jax.models import Model, Output, Preprocessing
from synguide_jax.models.base import Variables
from synguide_jax.models.pretrained import (
  load_pretrained,
  Pretrained,
  replace_head,
  with_options,
)
from synguide_jax.state import TrainState


@dataclasses.dataclass(frozen=True)
class Trained:
  """The network being trained, M_u.

  Attributes:
    model: The network.
    init_variables: ``(key, images) -> variables``, from scratch or from a
      checkpoint with a new head.
    pretrained: Whether it is the latter.
  """

  model: Model
  init_variables: Callable[[jax.Array, jax.Array], Variables]
  pretrained: bool

  def init(
    self, key: jax.Array, images: jax.Array, tx: optax.GradientTransformation
  ) -> TrainState:
    """Returns the state a run starts with."""
    variables = self.init_variables(key, images)
    params = variables["params"]
    return TrainState(
      params=params,
      batch_stats=variables.get("batch_stats", {}),
      opt_state=tx.init(params),
    )

  def apply(
    self,
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    key: jax.Array | None,
    *,
    train: bool = True,
    upto: str | None = None,
  ) -> Output:
    """Runs the network, by default in training mode."""
    variables = {"params": params, "batch_stats": batch_stats}
    return self.model.apply(variables, images, train=train, rng=key, upto=upto)

  def predict(
    self, state: TrainState, frozen: Any, images: jax.Array
  ) -> jax.Array:
    """A method's ``predict``: logits in evaluation mode."""
    del frozen
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return self.model.apply(variables, images, train=False).logits


def create_trained(config: Any, info: Info) -> Trained:
  """Makes M_u from the config's ``model`` section.

  Args:
    config: The whole config; ``model`` has name, dtype, image_size, mean, std,
      remat and init, which is ``"scratch"`` or the spec of a checkpoint, whose
      head is replaced and whose preprocessing is kept.
    info: Classes and image shape.

  Returns:
    The network.

  Raises:
    UserError: for an unknown model, a checkpoint of another one, or remat of a
      network without blocks.
  """
  section, channels = config.model, info.image_shape[-1]
  for field in ("mean", "std"):
    values = tuple(section[field])
    numbers = all(isinstance(value, (int, float)) for value in values)
    if not numbers or len(values) not in (1, channels):
      raise UserError(
        f"model.{field}={section[field]!r} must be 1 or {channels} "
        "numbers, for the channels of the images."
      )
  if section.init == "scratch":
    model = models.create(
      section.name,
      num_classes=info.num_classes,
      channels=channels,
      dtype=section.dtype,
      preprocessing=Preprocessing(
        tuple(section.mean), tuple(section.std), section.image_size or None
      ),
    )
    if section.remat:
      model = model.with_remat()
    return Trained(model, model.init, pretrained=False)
  checkpoint = _load(section.init, "model.init", section, channels)
  if checkpoint.model.name != section.name:
    raise UserError(
      f"model.init={section.init!r} holds a {checkpoint.model.name}, but "
      f"model.name is {section.name!r}."
    )
  return _from_checkpoint(checkpoint, info, remat=section.remat)


def create_transferred(config: Any, info: Info) -> Trained:
  """Makes M_u from M_p, the network of the config's ``pretrained`` section.

  Args:
    config: The whole config, as for :func:`create_frozen`; with weights
      ``"random"`` it is that untrained network, as a control.
    info: Classes and image shape.

  Returns:
    The network, with a new head.

  Raises:
    UserError: if there is no such checkpoint.
  """
  section = config.pretrained
  if section.weights == "random":
    model = _random_model(section, info)
    return Trained(model, model.init, pretrained=False)
  if not section.weights:
    raise UserError(
      f"Method {config.method!r} trains a pretrained network, but "
      "pretrained.weights is empty. Name a checkpoint."
    )
  checkpoint = _load(
    section.weights, "pretrained.weights", section, info.image_shape[-1]
  )
  return _from_checkpoint(checkpoint, info)


def _from_checkpoint(
  checkpoint: Pretrained, info: Info, *, remat: bool = False
) -> Trained:
  model = with_options(checkpoint.model, num_classes=info.num_classes)
  if remat:
    model = model.with_remat()

  def init_variables(key, images):
    fresh = model.init(key, images)
    return replace_head(checkpoint.variables, fresh)

  return Trained(model, init_variables, pretrained=True)


def _load(spec: str, field: str, section: Any, channels: int) -> Pretrained:
  checkpoint = load_pretrained(
    spec, dtype=section.dtype, image_size=section.image_size or None
  )
  if checkpoint.image_shape[-1] != channels:
    raise UserError(
      f"{field}={spec!r} was trained on images with "
      f"{checkpoint.image_shape[-1]} channels, but data.channels is {channels}."
    )
  return checkpoint


@dataclasses.dataclass(frozen=True)
class Frozen:
  """The frozen pretrained network, M_p.

  Attributes:
    model: The network, with its own head.
    init: ``(key, images) -> variables``.
    per_run: Whether ``init`` uses the key.
  """

  model: Model
  init: Callable[[jax.Array, jax.Array], Variables]
  per_run: bool

  def features(
    self, variables: Variables, images: jax.Array, layer: str
  ) -> jax.Array:
    """Returns a stage's pooled map ``[N, E]``; nothing behind it is run."""
    output = self.model.apply(variables, images, train=False, upto=layer)
    return models.pool(output.features[layer])


def create_frozen(config: Any, info: Info) -> Frozen:
  """Makes M_p from the config's ``pretrained`` section.

  Args:
    config: The whole config; ``pretrained`` has weights, which is the spec of
      a checkpoint or ``"random"`` (an untrained network of
      ``pretrained.random_model``, another one for each run), dtype,
      and image_size.
    info: Classes and image shape.

  Returns:
    The network.

  Raises:
    UserError: if there is no such checkpoint.
  """
  section = config.pretrained
  if section.weights == "random":
    model = _random_model(section, info)
    init, per_run = model.init, True
  elif section.weights:
    checkpoint = _load(
      section.weights, "pretrained.weights", section, info.image_shape[-1]
    )
    model, per_run = checkpoint.model, False

    def init(key, images):
      del key, images
      return jax.tree.map(jnp.asarray, checkpoint.variables)

  else:
    hint = ""
    if config.method == "guided":
      hint = (
        ", or switch it off with guidance.pg_real=False and "
        "guidance.pg_synthetic=False"
      )
    raise UserError(
      f"Method {config.method!r} needs a pretrained network, but "
      f"pretrained.weights is empty. Name a checkpoint{hint}."
    )
  return Frozen(model, init, per_run)


def _random_model(section: Any, info: Info) -> Model:
  return models.create(
    section.random_model,
    num_classes=info.num_classes,
    channels=info.image_shape[-1],
    dtype=section.dtype,
    preprocessing=Preprocessing(size=section.image_size or None),
  )


def groups(params: Any) -> dict[str, str]:
  """Names the groups of a network's parameters: its ``head``, ``backbone``."""
  return {name: "head" if name == "head" else "backbone" for name in params}


def backbone_rate(rate: float, field: str, trained: Trained) -> float:
  """Returns a learning rate's factor; -1: 0.1 for a checkpoint, else 1.

  Raises:
    UserError: for any other negative one, naming the field.
  """
  if rate == -1:
    return 0.1 if trained.pretrained else 1.0
  if rate < 0:
    raise UserError(f"{field}={rate} must not be negative, or -1.")
  return rate


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
        # Some of its forms do without.
        hint = ""
        if config.method == "guided" and name == "real":
          hint = (
            " Or switch off guidance.rg and guidance.pg_real, and guide "
            "synthetic images alone."
          )
        elif config.method in ("linear_probe", "finetune"):
          hint = " See transfer.train_on."
        raise UserError(
          f"Method {config.method!r} needs {name} training images, but {empty}."
          f"{hint}"
        )
  return streams


def cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
  """Mean softmax cross entropy of a batch, in nats."""
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
  return losses.mean()


def accuracy(logits: jax.Array, batch: Batch) -> jax.Array:
  """Share of a batch whose largest logit is the label's."""
  return (logits.argmax(-1) == batch.labels).mean(dtype=jnp.float32)
