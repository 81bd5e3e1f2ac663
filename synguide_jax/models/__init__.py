"""Networks by name, all with the same face (see :mod:`models.base`)."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from synguide_jax.errors import UserError
from synguide_jax.models.base import (
  Architecture,
  IMAGENET,
  Model,
  Output,
  pool,
  Preprocessing,
)
from synguide_jax.models.mobilenet import EfficientNet, MobileNetV2
from synguide_jax.models.resnet import ResNet
from synguide_jax.models.small_cnn import SmallCNN
from synguide_jax.models.vit import VisionTransformer
from synguide_jax.models.wide_resnet import WideResNet

__all__ = ["MODELS", "Model", "Output", "Preprocessing", "create", "pool"]

_CIFAR = Preprocessing(
  (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), size=32
)
_HALF = Preprocessing((0.5,) * 3, (0.5,) * 3, size=224)
_DINOV2 = dataclasses.replace(IMAGENET, interpolation="cubic")
_CLIP = Preprocessing(
  mean=(0.48145466, 0.4578275, 0.40821073),
  std=(0.26862954, 0.26130258, 0.27577711),
  size=224,
  interpolation="cubic",
)


def _resnet(blocks, bottleneck, **options) -> Architecture:
  return Architecture(
    ResNet,
    {"blocks": blocks, "bottleneck": bottleneck, **options},
    _CIFAR if options.get("small_images") else IMAGENET,
  )


def _vit(preprocessing, **options) -> Architecture:
  return Architecture(VisionTransformer, options, preprocessing)


def _dinov2(**options) -> Architecture:
  return _vit(
    _DINOV2,
    patch_size=14,
    image_size=518,
    layer_scale=True,
    embedding="class_mean",
    **options,
  )


_SMALL_VIT = {"width": 384, "heads": 6, "mlp_width": 1536}

MODELS: dict[str, Architecture] = {
  "small_cnn": Architecture(SmallCNN),
  # torchvision's.
  "resnet18": _resnet((2, 2, 2, 2), False),
  "resnet34": _resnet((3, 4, 6, 3), False),
  "resnet50": _resnet((3, 4, 6, 3), True),
  "resnet101": _resnet((3, 4, 23, 3), True),
  # For 32 px: kuangliu/pytorch-cifar's, and bearpaw/pytorch-classification's
  # "depth 50", whose last map has 256 channels. The ResNet-20 of He et al. but
  # for its shortcuts, where the shape changes 1x1 convolutions (their option
  # B) instead of zeros.
  "cifar_resnet18": _resnet((2, 2, 2, 2), False, small_images=True),
  "cifar_resnet50": _resnet((3, 4, 6, 3), True, small_images=True),
  "cifar_resnet20": _resnet((3, 3, 3), False, small_images=True, width=16),
  "cifar_resnet_narrow50": _resnet(
    (8, 8, 8), True, small_images=True, width=16
  ),
  "wide_resnet28_10": Architecture(WideResNet, {}, _CIFAR),
  # With TensorFlow's padding: padding="same", epsilon=1e-3.
  "mobilenet_v2": Architecture(MobileNetV2, {}, _HALF),
  "efficientnet_b0": Architecture(EfficientNet, {}, IMAGENET),
  "vit_small_patch16": _vit(_HALF, **_SMALL_VIT),
  "vit_base_patch16": _vit(_HALF),
  # Frozen networks that users reach for.
  "dinov2_vit_small_patch14": _dinov2(**_SMALL_VIT),
  "dinov2_vit_base_patch14": _dinov2(),
  "clip_vit_base_patch16": _vit(
    _CLIP, epsilon=1e-5, activation="quick_gelu", pre_norm=True, projection=512
  ),
}


def create(
  name: str,
  *,
  num_classes: int,
  channels: int = 3,
  dtype: str = "float32",
  preprocessing: Preprocessing | None = None,
  **options: Any,
) -> Model:
  """Makes a network.

  Args:
    name: One of ``MODELS``.
    num_classes: Number of logits; 0: no head, logits are None.
    channels: Of the images, 1 or 3.
    dtype: Type to compute in, "float32" or "bfloat16"; parameters, statistics,
      pooled features and logits are float32.
    preprocessing: What is done to images in [0, 1]; by default they are mapped
      to [-1, 1].
    **options: Fields of the network's class.

  Returns:
    A :class:`Model`.

  Raises:
    UserError: for an unknown name, option or type, or a preprocessing of other
      images.
  """
  if name not in MODELS:
    raise UserError(
      f"Unknown model {name!r}; known models: {', '.join(sorted(MODELS))}."
    )
  if dtype not in ("float32", "bfloat16"):
    raise UserError(f"dtype={dtype!r} must be 'float32' or 'bfloat16'.")
  if channels not in (1, 3):
    raise UserError(f"channels={channels!r} must be 1 or 3.")
  preprocessing = preprocessing or Preprocessing()
  for field in ("mean", "std"):
    count = len(getattr(preprocessing, field))
    if count not in (1, channels):
      raise UserError(
        f"{name}: the preprocessing has {count} values of {field}, but images "
        f"have {channels} channels."
      )
  architecture = MODELS[name]
  try:
    module = architecture.module(
      num_classes=num_classes,
      dtype=jnp.dtype(dtype),
      **{**architecture.options, **options},
    )
  except TypeError as error:
    raise UserError(f"Model {name!r}: {error}.") from error
  return Model(
    name=name,
    options={
      "num_classes": num_classes,
      "channels": channels,
      "dtype": dtype,
      **options,
    },
    preprocessing=preprocessing,
    module=module,
  )
