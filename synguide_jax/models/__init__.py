"""Networks by name, all with the same face (see :mod:`models.base`)."""

from collections.abc import Callable
from typing import Any

from synguide_jax.errors import UserError
from synguide_jax.models.base import Model, Output, pool, Preprocessing
from synguide_jax.models.cifar_resnet import CifarResNet
from synguide_jax.models.small_cnn import SmallCNN

__all__ = ["MODELS", "Model", "Output", "Preprocessing", "create", "pool"]

# Name -> (constructor, names of the stages).
MODELS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
  "small_cnn": (SmallCNN, ("stage1", "stage2", "stage3")),
  "cifar_resnet18": (CifarResNet, ("stage1", "stage2", "stage3", "stage4")),
}


def create(
  name: str,
  *,
  num_classes: int,
  preprocessing: Preprocessing | None = None,
  **options: Any,
) -> Model:
  """Makes a network.

  Args:
    name: One of ``MODELS``.
    num_classes: Number of logits.
    preprocessing: What is done to images in [0, 1]; by default they are mapped
      to [-1, 1].
    **options: Fields of the network's class.

  Returns:
    A :class:`Model`.

  Raises:
    UserError: for an unknown name or option.
  """
  if name not in MODELS:
    raise UserError(
      f"Unknown model {name!r}; known models: {', '.join(sorted(MODELS))}."
    )
  constructor, stages = MODELS[name]
  try:
    module = constructor(num_classes=num_classes, **options)
  except TypeError as error:
    raise UserError(f"Model {name!r}: {error}.") from error
  return Model(
    name=name,
    options={"num_classes": num_classes, **options},
    stages=stages,
    preprocessing=preprocessing or Preprocessing(),
    module=module,
  )
