"""What the hub's config.json says of a network, both ways.

transformers and timm describe an architecture by fields of their own; here they
become a name in the registry and options, and back. A field whose value would
change the numbers and that our networks do not have is an error.
"""

from collections.abc import Callable, Mapping
import dataclasses
import re
from typing import Any

from synguide_jax.errors import UserError
from synguide_jax.models import MODELS
from synguide_jax.models.base import Model
from synguide_jax.models.mobilenet import (
  EfficientNet,
  InvertedResiduals,
  MobileNetV2,
  round_channels,
)
from synguide_jax.models.resnet import ResNet
from synguide_jax.models.vit import ACTIVATIONS, VisionTransformer

Config = Mapping[str, Any]


def registered(module: type, options: dict[str, Any]) -> tuple[str, dict]:
  """Returns the registered network nearest to options, and what differs.

  Args:
    module: Class of the network.
    options: Fields of the class; those left out have its defaults.

  Returns:
    Name in the registry, and the options in which the network differs.
  """
  fields = {
    field.name: field.default
    for field in dataclasses.fields(module)
    if field.name not in ("parent", "name", "num_classes", "dtype")
  }
  wanted = {**fields, **options}

  def differing(name):
    has = {**fields, **MODELS[name].options}
    return {k: v for k, v in wanted.items() if has[k] != v}

  names = [name for name in MODELS if MODELS[name].module is module]
  name = min(names, key=lambda name: len(differing(name)))
  return name, differing(name)


def _require(config: Config, of: str, **values: Any) -> None:
  for field, value in values.items():
    if config.get(field, value) != value:
      raise UserError(
        f"{of}: {field}={config[field]!r} is not supported, only {value!r}."
      )


def from_transformers(config: Config, of: str) -> tuple[str, dict[str, Any]]:
  """Reads a transformers config.

  Args:
    config: Contents of config.json.
    of: Its name, for messages.

  Returns:
    Name in the registry, and the arguments of `models.create`.

  Raises:
    UserError: for an architecture or a field that is not supported.
  """
  kind = config["model_type"]
  if kind not in _TRANSFORMERS:
    raise UserError(
      f"{of}: model_type={kind!r} is not supported; supported: "
      f"{', '.join(sorted(_TRANSFORMERS))}."
    )
  module, read = _TRANSFORMERS[kind]
  options = read(config, of)
  name, options = registered(module, options)
  options["channels"] = _image_tower(config).get("num_channels", 3)
  return name, options


def _image_tower(config: Config) -> Config:
  """The part of CLIP's config that is of images; else the whole."""
  if "vision_config" not in config and "vision_config_dict" not in config:
    return config
  # In old files the second one overrides the first.
  return {
    **(config.get("vision_config") or {}),
    **(config.get("vision_config_dict") or {}),
  }


def _read_resnet(config, of):
  _require(
    config,
    of,
    hidden_act="relu",
    downsample_in_first_stage=False,
    downsample_in_bottleneck=False,
  )
  bottleneck = config.get("layer_type", "bottleneck") == "bottleneck"
  if not bottleneck:
    _require(config, of, layer_type="basic")
  width, blocks = config["embedding_size"], tuple(config["depths"])
  expansion = 4 if bottleneck else 1
  sizes = [expansion * width * 2**stage for stage in range(len(blocks))]
  _require(config, of, hidden_sizes=sizes)
  return {"blocks": blocks, "bottleneck": bottleneck, "width": width}


def _read_mobilenet_v2(config, of):
  _require(
    config,
    of,
    **{"depth_divisible_by": 8, "min_depth": 8, "expand_ratio": 6.0},
    **{"first_layer_is_expansion": True, "hidden_act": "relu6"},
    **{"output_stride": 32, "finegrained_output": True},
  )
  width = float(config.get("depth_multiplier", 1.0))
  _check_width(MobileNetV2, width, of, "depth_multiplier")
  return {
    "width": width,
    "padding": "same" if config.get("tf_padding", True) else "torch",
    "epsilon": config.get("layer_norm_eps", 1e-3),
  }


def _skips_alike(module: type[InvertedResiduals], width: float) -> bool:
  """Whether transformers' network is the original.

  Where a group of blocks neither changes the side nor the channels, as the
  first with width 0.25, its first block has a residual connection in the
  original and none in transformers.
  """
  channels = [32, *(group[1] for group in module.GROUPS)]
  rounded = [round_channels(c * width) for c in channels]
  return not any(
    group[3] == 1 and before == after
    for group, before, after in zip(
      module.GROUPS, rounded[:-1], rounded[1:], strict=True
    )
  )


def _check_width(module, width, of, field):
  if not _skips_alike(module, width):
    raise UserError(f"{of}: {field}={width} is not supported.")


def _read_efficientnet(config, of):
  groups = EfficientNet.GROUPS
  _require(
    config,
    of,
    **{"depth_divisor": 8, "depthwise_padding": [], "pooling_type": "mean"},
    **{"hidden_act": "swish", "squeeze_expansion_ratio": 0.25},
    expand_ratios=[group[0] for group in groups],
    out_channels=[group[1] for group in groups],
    num_block_repeats=[group[2] for group in groups],
    strides=[group[3] for group in groups],
    kernel_sizes=[group[4] for group in groups],
  )
  width = float(config["width_coefficient"])
  _check_width(EfficientNet, width, of, "width_coefficient")
  return {
    "width": width,
    "depth": float(config["depth_coefficient"]),
    "padding": "keras",
    "epsilon": config.get("batch_norm_eps", 1e-3),
    "dropout": config.get("dropout_rate", 0.2),
    "drop_path": config.get("drop_connect_rate", 0.2),
  }


def _read_vit(config, of, **defaults):
  config = {**defaults, **config}
  _require(config, of, qkv_bias=True)
  if config["hidden_act"] not in ACTIVATIONS:
    raise UserError(
      f"{of}: hidden_act={config['hidden_act']!r} is not supported, only "
      f"{', '.join(ACTIVATIONS)}."
    )
  return {
    "width": config["hidden_size"],
    "depth": config["num_hidden_layers"],
    "heads": config["num_attention_heads"],
    "mlp_width": config["intermediate_size"],
    "patch_size": config["patch_size"],
    "image_size": config["image_size"],
    "activation": config["hidden_act"],
    "epsilon": config["layer_norm_eps"],
  }


def _read_dinov2(config, of):
  _require(config, of, use_swiglu_ffn=False)
  width = config["hidden_size"] * config.get("mlp_ratio", 4)
  return {
    **_read_vit(config, of, intermediate_size=width),
    "layer_scale": True,
    "embedding": "class_mean",
  }


def _read_clip(config, of):
  # The whole of CLIP, or only its image tower. Files leave out what is as in
  # transformers' defaults.
  tower = _image_tower(config)
  projection = config.get("projection_dim", 512)
  if config.get("architectures") == ["CLIPVisionModel"]:
    projection = 0
  read = _read_vit(
    {k: v for k, v in tower.items() if v is not None},
    of,
    **{"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 32},
    **{"num_attention_heads": 12, "intermediate_size": 3072},
    **{"image_size": 224, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
  )
  return {**read, "pre_norm": True, "projection": projection}


_TRANSFORMERS: dict[str, tuple[type, Callable[[Config, str], dict]]] = {
  "resnet": (ResNet, _read_resnet),
  "mobilenet_v2": (MobileNetV2, _read_mobilenet_v2),
  "efficientnet": (EfficientNet, _read_efficientnet),
  "vit": (VisionTransformer, _read_vit),
  "dinov2": (VisionTransformer, _read_dinov2),
  "clip": (VisionTransformer, _read_clip),
  "clip_vision_model": (VisionTransformer, _read_clip),
}

# timm's names of architectures -> our name and options, as a function of the
# match.
_TIMM: dict[str, Callable[[re.Match[str]], tuple[str, dict[str, Any]]]] = {
  r"resnet(18|34|50|101)": lambda m: (m[0], {}),
  r"mobilenetv2_(\d{3})": lambda m: (
    "mobilenet_v2",
    {"width": int(m[1]) / 100} if m[1] != "100" else {},
  ),
  "efficientnet_b0": lambda m: ("efficientnet_b0", {}),
  "tf_efficientnet_b0": lambda m: (
    "efficientnet_b0",
    {"padding": "same", "epsilon": 1e-3},
  ),
  r"vit_(small|base)_patch16_(\d+)": lambda m: (
    f"vit_{m[1]}_patch16",
    {"image_size": int(m[2])} if m[2] != "224" else {},
  ),
  r"vit_(small|base)_patch14_dinov2": lambda m: (
    f"dinov2_vit_{m[1]}_patch14",
    {"embedding": "class"},
  ),
}


def from_timm(config: Config, of: str) -> tuple[str, dict[str, Any]]:
  """Reads a timm config.

  Args:
    config: Contents of config.json.
    of: Its name, for messages.

  Returns:
    Name in the registry, and the arguments of `models.create`.

  Raises:
    UserError: for an architecture or a field that is not supported.
  """
  architecture = config["architecture"]
  pooled = "token" if architecture.startswith("vit") else "avg"
  _require(config, of, model_args={}, global_pool=pooled)
  for pattern, ours in _TIMM.items():
    if match := re.fullmatch(pattern, architecture):
      name, options = ours(match)
      channels = config.get("pretrained_cfg", {}).get("input_size", (3,))[0]
      return name, {**options, "channels": channels}
  raise UserError(
    f"{of}: architecture={architecture!r} is not supported; supported: "
    f"{', '.join(_TIMM)}."
  )


def to_transformers(model: Model, class_names: tuple[str, ...]) -> dict:
  """Returns the config.json with which transformers builds ``model``.

  Args:
    model: A classifier.
    class_names: Of its logits, in order.

  Returns:
    The config; `from_transformers` is its inverse.

  Raises:
    UserError: if transformers has no such network.
  """
  write = _WRITERS.get(type(model.module))
  found = write(model.module) if write else None
  if found is None:
    raise UserError(f"transformers has no network like this {model.name}.")
  kind, architecture, fields = found
  return {
    "architectures": [f"{architecture}ForImageClassification"],
    "model_type": kind,
    **fields,
    "num_channels": model.options["channels"],
    "id2label": {str(i): name for i, name in enumerate(class_names)},
    "label2id": {name: i for i, name in enumerate(class_names)},
  }


# Each returns model_type, name of the class and the fields of a network, or
# None if transformers has no such variant.
_Written = tuple[str, str, dict[str, Any]] | None


def _write_resnet(module: ResNet) -> _Written:
  if module.small_images:
    return None
  expansion = 4 if module.bottleneck else 1
  stages = range(len(module.blocks))
  return (
    "resnet",
    "ResNet",
    {
      "layer_type": "bottleneck" if module.bottleneck else "basic",
      "embedding_size": module.width,
      "depths": list(module.blocks),
      "hidden_sizes": [expansion * module.width * 2**s for s in stages],
      "hidden_act": "relu",
      "downsample_in_first_stage": False,
      "downsample_in_bottleneck": False,
    },
  )


def _write_mobilenet_v2(module: MobileNetV2) -> _Written:
  if module.padding == "keras" or not _skips_alike(MobileNetV2, module.width):
    return None
  return (
    "mobilenet_v2",
    "MobileNetV2",
    {
      "depth_multiplier": module.width,
      "tf_padding": module.padding == "same",
      "layer_norm_eps": module.epsilon,
      "hidden_act": "relu6",
    },
  )


def _write_efficientnet(module: EfficientNet) -> _Written:
  if module.padding != "keras" or not _skips_alike(EfficientNet, module.width):
    return None
  return (
    "efficientnet",
    "EfficientNet",
    {
      "width_coefficient": module.width,
      "depth_coefficient": module.depth,
      "hidden_dim": module.final,
      "batch_norm_eps": module.epsilon,
      "dropout_rate": module.dropout,
      "drop_connect_rate": module.drop_path,
    },
  )


def _write_vit(module: VisionTransformer) -> _Written:
  fields = {
    "hidden_size": module.width,
    "num_hidden_layers": module.depth,
    "num_attention_heads": module.heads,
    "patch_size": module.patch_size,
    "image_size": module.image_size,
    "hidden_act": module.activation,
    "layer_norm_eps": module.epsilon,
  }
  kind = (module.pre_norm, module.layer_scale, module.embedding)
  if kind == (False, False, "class"):
    fields["intermediate_size"] = module.mlp_width
    return "vit", "ViT", fields
  ratio, rest = divmod(module.mlp_width, module.width)
  if kind == (False, True, "class_mean") and not rest:
    # What masked patches become in DINOv2's own training is not kept.
    fields |= {"mlp_ratio": ratio, "use_mask_token": False}
    return "dinov2", "Dinov2", fields
  return None


_WRITERS: dict[type, Callable[[Any], _Written]] = {
  ResNet: _write_resnet,
  MobileNetV2: _write_mobilenet_v2,
  EfficientNet: _write_efficientnet,
  VisionTransformer: _write_vit,
}
