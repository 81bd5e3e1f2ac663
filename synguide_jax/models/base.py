"""The face every network shows: `init` and `apply`, both pure.

Nothing outside this folder knows how a network is written.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from synguide_jax.errors import UserError

Variables = dict[str, Any]

# Of images that are resized, by their names in jax.image.resize.
INTERPOLATIONS = ("nearest", "bilinear", "cubic", "lanczos3")


@flax.struct.dataclass
class Output:
  """What a network makes of a batch.

  Attributes:
    logits: Unnormalised log probabilities, float32 ``[N, num_classes]``; None
      if the network was stopped before its head.
    features: The stages' maps by name, unpooled, ``[N, H, W, C]`` (or tokens
      ``[N, T, C]``), and "embedding", the vector ``[N, C]`` its head sees.
    batch_stats: Running statistics after this batch.
  """

  logits: jax.Array | None
  features: dict[str, jax.Array]
  batch_stats: Variables


def pool(features: jax.Array) -> jax.Array:
  """Averages a map ``[N, ..., C]`` over its positions: float32 ``[N, C]``.

  An embedding ``[N, C]`` is returned as it is.
  """
  axes = tuple(range(1, features.ndim - 1))
  return features.astype(jnp.float32).mean(axes)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """What a network expects of its input; it travels with the weights.

  Attributes:
    mean: Subtracted per channel, in units of [0, 1] images.
    std: Divided by per channel, likewise.
    size: Side in pixels that images are resized to, or None to keep theirs.
    interpolation: One of ``INTERPOLATIONS``, antialiased when it shrinks, as
      Pillow does.
    channel_order: "RGB" or "BGR".
  """

  mean: tuple[float, ...] = (0.5,)
  std: tuple[float, ...] = (0.5,)
  size: int | None = None
  interpolation: str = "bilinear"
  channel_order: str = "RGB"

  def __post_init__(self):
    numbers = (int, float)
    for field in ("mean", "std"):
      values = getattr(self, field)
      if not values or not all(isinstance(value, numbers) for value in values):
        raise UserError(f"preprocessing: {field}={values!r} must be numbers.")
    if not all(self.std):
      raise UserError(f"preprocessing: std={self.std!r} must not be 0.")
    whole = type(self.size) is int and self.size > 0
    if self.size is not None and not whole:
      raise UserError(f"preprocessing: size={self.size!r} must be positive.")
    if self.interpolation not in INTERPOLATIONS:
      raise UserError(
        f"preprocessing: interpolation={self.interpolation!r} must be one of "
        f"{', '.join(INTERPOLATIONS)}."
      )
    if self.channel_order not in ("RGB", "BGR"):
      raise UserError(
        f"preprocessing: channel_order={self.channel_order!r} must be RGB or "
        "BGR."
      )

  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps images in [0, 1] to the network's input."""
    if self.size is not None:
      # The width and then the height, with nothing beyond black and white in
      # between: cubic interpolation overshoots, and Pillow clips it so.
      for axis in (-2, -3):
        shape = list(images.shape)
        shape[axis] = self.size
        if tuple(shape) != images.shape:
          images = jax.image.resize(images, shape, self.interpolation)
          images = jnp.clip(images, 0, 1)
    if self.channel_order == "BGR":
      images = images[..., ::-1]
    mean, std = (jnp.asarray(v, images.dtype) for v in (self.mean, self.std))
    return (images - mean) / std


IMAGENET = Preprocessing(
  mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=224
)


@dataclasses.dataclass(frozen=True)
class Architecture:
  """What a name in the registry stands for.

  Attributes:
    module: The network's class; its property ``stages`` names its feature
      maps, from input to output.
    options: Fields of the class in which the name differs from its defaults.
    preprocessing: What its published weights expect, where nothing else is
      said.
  """

  module: type[nn.Module]
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  preprocessing: Preprocessing = Preprocessing()


@dataclasses.dataclass(frozen=True)
class Model:
  """A network as a pair of pure functions over images in [0, 1].

  Attributes:
    name: Registered name.
    options: What the network was made with, plain data.
    preprocessing: Applied to the images first.
    module: The network itself.
  """

  name: str
  options: dict[str, Any]
  preprocessing: Preprocessing
  module: Any

  @property
  def stages(self) -> tuple[str, ...]:
    """Names of its feature maps, from input to output."""
    return self.module.stages

  def init(self, key: jax.Array, images: jax.Array) -> Variables:
    """Returns ``{"params": ..., "batch_stats": ...}`` (the latter if any)."""
    return self.module.init(key, self._prepared(images), train=False)

  def apply(
    self,
    variables: Variables,
    images: jax.Array,
    *,
    train: bool,
    rng: jax.Array | None = None,
    upto: str | None = None,
  ) -> Output:
    """Runs the network.

    Args:
      variables: As returned by :meth:`init`.
      images: In [0, 1], ``[N, H, W, C]``.
      train: Whether normalisation uses and updates the batch's statistics, and
        dropout is on.
      rng: Key for dropout; needed in training where the network has any.
      upto: Name of the last stage to compute; nothing behind it is.

    Returns:
      An :class:`Output`.

    Raises:
      UserError: for images of other channels or a stage that there is not.
    """
    if upto is not None:
      self.stage(upto)
    (logits, features), updated = self.module.apply(
      variables,
      self._prepared(images),
      train=train,
      upto=upto,
      mutable=["batch_stats"] if train else [],
      rngs=None if rng is None else {"dropout": rng},
    )
    kept = variables.get("batch_stats", {})
    if logits is not None:
      logits = logits.astype(jnp.float32)
    return Output(logits, features, updated.get("batch_stats", kept))

  def with_remat(self) -> "Model":
    """Returns the network with its blocks computed again where it is trained.

    The values are the same, and so are the variables and the options: what is
    saved of it does not tell.

    Raises:
      UserError: for a network that has no blocks.
    """
    if not hasattr(self.module, "remat"):
      raise UserError(
        f"model.remat=True: {self.name} has no blocks to compute again; set it "
        "to False, or lower the memory with microbatches."
      )
    return dataclasses.replace(self, module=self.module.clone(remat=True))

  def _prepared(self, images: jax.Array) -> jax.Array:
    channels = self.options["channels"]
    if images.shape[-1] != channels:
      raise UserError(
        f"{self.name} was made for images with {channels} channels; these have "
        f"{images.shape[-1]}."
      )
    return self.preprocessing(images)

  def stage(self, name: str) -> str:
    """Returns ``name`` if it is a stage of the network, else raises."""
    if name not in self.stages:
      raise UserError(
        f"{self.name} has no feature layer {name!r}; it has "
        f"{', '.join(self.stages)}."
      )
    return name
