"""What ASG and CSG share: a network under a new head, beside a frozen one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from synguide_jax.errors import check_known, UserError
from synguide_jax.methods import networks, optimizers
from synguide_jax.methods.base import Info
from synguide_jax.models import Model, Output
from synguide_jax.models.base import Variables
from synguide_jax.models.mlp import MLP
from synguide_jax.models.pretrained import with_options
from synguide_jax.state import TrainState


@dataclasses.dataclass(frozen=True)
class Classifier:
  """M_u under a new head, with batch normalisation as configured.

  Attributes:
    trained: The network.
    train: Whether it is trained in training mode, with batch statistics and
      dropout; otherwise with the running statistics, which stay as they are.
    mlp: The head, in the place of the network's own; None: that one.
    width: Length of the embedding, which it sees.
  """

  trained: networks.Trained
  train: bool
  mlp: MLP | None
  width: int

  @property
  def model(self) -> Model | None:
    """The network, if there is nothing more to the classifier."""
    return None if self.mlp else self.trained.model

  def init(self, key: jax.Array, images: jax.Array) -> Variables:
    """Returns the network's variables, the head's among the parameters."""
    variables = self.trained.init_variables(key, images)
    if self.mlp is None:
      return variables
    vector = jnp.zeros((1, self.width))
    head = self.mlp.init(jax.random.fold_in(key, 2), vector)
    return {**variables, "params": {**variables["params"], "head": head}}

  def apply(
    self,
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    key: jax.Array | None,
    *,
    train: bool | None = None,
  ) -> Output:
    """Runs the network and the head, by default in the mode of training."""
    train = self.train if train is None else train
    upto = "embedding" if self.mlp else None
    output = self.trained.apply(
      params, batch_stats, images, key, train=train, upto=upto
    )
    if self.mlp is None:
      return output
    embedding = output.features["embedding"]
    return output.replace(logits=self.mlp.apply(params["head"], embedding))

  def predict(
    self, state: TrainState, frozen: Any, images: jax.Array
  ) -> jax.Array:
    """A method's ``predict``: logits in evaluation mode."""
    del frozen
    return self.apply(
      state.params, state.batch_stats, images, None, train=False
    ).logits


def create_classifier(
  config: Any, info: Info, trained: networks.Trained
) -> Classifier:
  """Makes the classifier from the section of the config's method.

  Args:
    config: The whole config; the section has batch_norm, head and head_width.
    info: Classes and image shape.
    trained: The network.

  Raises:
    UserError: for a bad value.
  """
  name, section = config.method, config[config.method]
  modes = {"frozen": False, "train": True, "auto": not trained.pretrained}
  check_known(f"{name}.batch_norm", section.batch_norm, modes)
  check_known(f"{name}.head", section.head, ("mlp", "linear"))
  if section.head_width < 1:
    raise UserError(f"{name}.head_width={section.head_width} must be positive.")
  mlp = None
  if section.head == "mlp":
    mlp = MLP((section.head_width, info.num_classes))
  width = feature_shapes(trained.model, info)["embedding"][-1]
  return Classifier(trained, modes[section.batch_norm], mlp, width)


def create_optimizer(
  config: Any, num_steps: int, trained: networks.Trained
) -> optax.GradientTransformation:
  """Makes the optimiser of ``{"network": params, ...}``, the rest being heads.

  The backbone has its rate from the section of the config's method, heads 1.
  """
  name = config.method
  rate = networks.backbone_rate(
    config[name].backbone_rate, f"{name}.backbone_rate", trained
  )

  def groups(params):
    heads = {part: "head" for part in params}
    return {**heads, "network": networks.groups(params["network"])}

  rates = {"head": 1.0, "backbone": rate}
  return optimizers.create_grouped(config.optimizer, num_steps, rates, groups)


def feature_shapes(model: Model, info: Info) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of a network's features of one image."""

  def features(key):
    image = jnp.zeros((1, *info.image_shape))
    return model.apply(model.init(key, image), image, train=False).features

  shapes = jax.eval_shape(features, jax.random.key(0))
  return {name: feature.shape for name, feature in shapes.items()}


def same_architecture(trained: Model, frozen: Model) -> bool:
  """Whether two networks differ, if at all, in classes and type alone."""
  one, other = (
    with_options(model, num_classes=1, dtype="float32").module
    for model in (trained, frozen)
  )
  return trained.name == frozen.name and one == other


def describe(model: Model) -> str:
  """Names a network and the options it was made with, for errors."""
  left_out = ("num_classes", "dtype", "channels")
  options = [f"{k}={v}" for k, v in model.options.items() if k not in left_out]
  return f"{model.name} ({', '.join(options)})" if options else model.name


def linear(params: Any, features: jax.Array) -> jax.Array:
  """Applies a network's ``head``, a dense layer, to ``[N, C]``."""
  return features @ params["kernel"] + params["bias"]
