"""What published checkpoints call our tensors, and how they lay them out.

One table for each naming, from our names to theirs; it is read in both
directions, by :mod:`models.pretrained` and :mod:`models.export`. PyTorch keeps
convolutions as ``[D, C, kh, kw]`` and dense layers as ``[D, C]``; ours are
``[kh, kw, C, D]`` and ``[C, D]``.
"""

from collections.abc import Callable, Mapping
import dataclasses
import re
from typing import Any

import flax
import jax
import numpy as np

from synguide_jax.errors import UserError
from synguide_jax.models.base import Model, Variables
from synguide_jax.models.mobilenet import EfficientNet, MobileNetV2
from synguide_jax.models.resnet import ResNet
from synguide_jax.models.vit import VisionTransformer

Tensors = Mapping[str, np.ndarray]

# What our layers call their arrays, and PyTorch's theirs.
_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}
# Batches that a batch normalisation has seen, of which PyTorch makes no use
# where the momentum is fixed.
_COUNT = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Naming:
  """How one library names the tensors of one architecture.

  Attributes:
    library: "transformers", "timm" or "torchvision".
    rules: Pattern of a layer's name in our tree -> theirs, as a template of
      ``re`` or a function of the match; the first that matches all of it
      counts. ``{a,b}`` in theirs stands for several tensors which ours holds
      side by side.
    prefix: What the names begin with, except in a model published without its
      head.
    ignored: Pattern of tensors that are of no use here.
    leading_axes: Axes of length one in front of an array of ours in theirs.
  """

  library: str
  rules: Mapping[str, str | Callable[[re.Match[str]], str]]
  prefix: str = ""
  ignored: str = ""
  leading_axes: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def names(self, path: str) -> tuple[str, ...]:
    """Returns their names of our array, e.g. "stem_conv/kernel"."""
    layer, _, leaf = path.rpartition("/")
    if leaf not in _LEAVES:
      layer = path
    for pattern, theirs in self.rules.items():
      if match := re.fullmatch(pattern, layer):
        name = (
          match.expand(theirs) if isinstance(theirs, str) else theirs(match)
        )
        break
    else:
      raise UserError(f"{self.library} has no name for {path}.")
    if leaf in _LEAVES:
      name = f"{name}.{_LEAVES[leaf]}"
    if several := re.search(r"\{(.*)\}", name):
      start, end = several.span()
      return tuple(
        name[:start] + part + name[end:] for part in several[1].split(",")
      )
    return (name,)

  def to_theirs(self, path: str, array: np.ndarray) -> list[np.ndarray]:
    """Returns our array as they keep it, one for each of its names."""
    layer, _, leaf = path.rpartition("/")
    parts = np.split(array, len(self.names(path)), axis=-1)
    if leaf == "kernel":
      axes = (3, 2, 0, 1) if array.ndim == 4 else (1, 0)
      return [np.ascontiguousarray(part.transpose(axes)) for part in parts]
    leading = (1,) * self.leading_axes.get(path, 0)
    return [part.reshape(leading + part.shape) for part in parts]

  def to_ours(self, path: str, parts: list[np.ndarray]) -> np.ndarray:
    """The inverse of `to_theirs`; float16 and bfloat16 are widened."""
    leaf = path.rpartition("/")[2]
    if leaf == "kernel":
      axes = (2, 3, 1, 0) if parts[0].ndim == 4 else (1, 0)
      parts = [part.transpose(axes) for part in parts]
    leading = self.leading_axes.get(path, 0)
    parts = [part.reshape(part.shape[leading:]) for part in parts]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def of_use(tensors: Tensors, naming: Naming) -> Tensors:
  """Returns the tensors of a checkpoint that a network has, by whole names.

  Leaves out what the library keeps for other purposes, and completes the names
  of a model that was published without its head.
  """
  ignored = re.compile(rf".*{_COUNT}|{naming.ignored or _COUNT}")
  whole = any(name.startswith(naming.prefix) for name in tensors)
  return {
    name if whole else naming.prefix + name: tensor
    for name, tensor in tensors.items()
    if not ignored.fullmatch(name)
  }


def arrays_by_path(variables: Variables) -> dict[str, Any]:
  """Returns the arrays of all collections as {"stem_conv/kernel": ...}."""
  flat: dict[str, Any] = {}
  for collection in variables.values():
    flat.update(flax.traverse_util.flatten_dict(collection, sep="/"))
  return flat


def to_tensors(variables: Variables, naming: Naming) -> Tensors:
  """Returns a network's weights under the names and in the layout of a library.

  Args:
    variables: The weights.
    naming: One of the network's ``namings``.

  Returns:
    Tensors by name, float32, and zero counts of batches for every batch
    normalisation.

  Raises:
    UserError: if the library has no name for one of them.
  """
  tensors: dict[str, np.ndarray] = {}
  for path, array in arrays_by_path(jax.device_get(variables)).items():
    names, parts = naming.names(path), naming.to_theirs(path, array)
    tensors.update(zip(names, parts, strict=True))
    if path.endswith("/mean"):
      count = names[0].removesuffix("running_mean") + _COUNT
      tensors[count] = np.zeros((), np.int64)
  return tensors


def tensor_shapes(
  expected: Variables, naming: Naming
) -> dict[str, tuple[int, ...]]:
  """Returns name and shape of every tensor a library keeps of a network.

  Args:
    expected: The network's weights, or their shapes.
    naming: One of its ``namings``.
  """
  shapes = {}
  for path, array in arrays_by_path(expected).items():
    stand_in = np.broadcast_to(np.float32(0), array.shape)
    for name, part in zip(
      naming.names(path), naming.to_theirs(path, stand_in), strict=True
    ):
      shapes[name] = part.shape
  return shapes


def from_tensors(
  model: Model, tensors: Tensors, naming: Naming, expected: Variables, of: str
) -> Variables:
  """Returns a library's tensors as the weights of ``model``.

  Args:
    model: The network.
    tensors: By name, all of them of use.
    naming: One of ``namings(model)``.
    expected: What `model.init` returns, or its shapes.
    of: What the tensors are of, for the message.

  Returns:
    Weights of the shapes of ``expected``, float32.

  Raises:
    UserError: if a tensor is missing, unexpected or of another shape.
  """
  wanted = tensor_shapes(expected, naming)
  problems = {
    "missing": list(wanted.keys() - tensors.keys()),
    "unexpected": list(tensors.keys() - wanted.keys()),
    "of another shape": [
      f"{name} {tensors[name].shape} instead of {shape}"
      for name, shape in wanted.items()
      if name in tensors and tensors[name].shape != shape
    ],
  }
  if any(problems.values()):
    raise UserError(
      f"{of} does not hold a {model.name} as {naming.library} names it; "
      + "; ".join(f"{what}: {few(p)}" for what, p in problems.items() if p)
      + "."
    )
  return {
    collection: flax.traverse_util.unflatten_dict(
      {
        path: naming.to_ours(path, [tensors[n] for n in naming.names(path)])
        for path in flax.traverse_util.flatten_dict(tree, sep="/")
      },
      sep="/",
    )
    for collection, tree in expected.items()
  }


def few(names: list[str], limit: int = 5) -> str:
  """Lists the first ``limit`` names, and how many more there are."""
  more = len(names) - limit
  return ", ".join(sorted(names)[:limit]) + (
    f" and {more} more" if more > 0 else ""
  )


def namings(model: Model) -> dict[str, Naming]:
  """Returns the libraries that publish this architecture, with their names."""
  module = model.module
  if isinstance(module, ResNet):
    found = [_RESNET_TORCHVISION, _RESNET_TIMM]
    if not module.small_images:
      found.append(_RESNET_TRANSFORMERS)
  elif isinstance(module, MobileNetV2):
    found = [_MOBILENET_TRANSFORMERS, _inverted_residuals_timm(module.repeats)]
  elif isinstance(module, EfficientNet):
    found = [
      _EFFICIENTNET_TRANSFORMERS,
      _inverted_residuals_timm(module.repeats),
    ]
  elif isinstance(module, VisionTransformer):
    if module.pre_norm:
      found = [_CLIP_TRANSFORMERS]
    elif module.layer_scale:
      found = [_DINOV2_TRANSFORMERS, _VIT_TIMM]
    else:
      found = [_VIT_TRANSFORMERS, _VIT_TIMM]
  else:
    found = []
  return {naming.library: naming for naming in found}


_KIND = {"conv": "convolution", "norm": "normalization"}

_RESNET_TORCHVISION = Naming(
  "torchvision",
  {
    "stem_conv": "conv1",
    "stem_norm": "bn1",
    r"stage(\d)_block(\d+)/conv(\d)": r"layer\1.\2.conv\3",
    r"stage(\d)_block(\d+)/norm(\d)": r"layer\1.\2.bn\3",
    r"stage(\d)_block(\d+)/shortcut_conv": r"layer\1.\2.downsample.0",
    r"stage(\d)_block(\d+)/shortcut_norm": r"layer\1.\2.downsample.1",
    "head": "fc",
  },
)
_RESNET_TIMM = dataclasses.replace(_RESNET_TORCHVISION, library="timm")
_RESNET_TRANSFORMERS = Naming(
  "transformers",
  {
    "stem_(conv|norm)": lambda m: f"resnet.embedder.embedder.{_KIND[m[1]]}",
    r"stage(\d)_block(\d+)/(conv|norm)(\d)": lambda m: (
      f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}"
      f".layer.{int(m[4]) - 1}.{_KIND[m[3]]}"
    ),
    r"stage(\d)_block(\d+)/shortcut_(conv|norm)": lambda m: (
      f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}"
      f".shortcut.{_KIND[m[3]]}"
    ),
    "head": "classifier.1",
  },
  prefix="resnet.",
)

_MOBILENET_PARTS = {
  "expand": "expand_1x1",
  "depthwise": "conv_3x3",
  "project": "reduce_1x1",
}


def _mobilenet_block(match: re.Match[str]) -> str:
  number, part, kind = match.groups()
  # The first block is a part of their stem.
  block = "conv_stem" if number == "0" else f"layer.{int(number) - 1}"
  return f"mobilenet_v2.{block}.{_MOBILENET_PARTS[part]}.{_KIND[kind]}"


_MOBILENET_TRANSFORMERS = Naming(
  "transformers",
  {
    "stem_(conv|norm)": lambda m: (
      f"mobilenet_v2.conv_stem.first_conv.{_KIND[m[1]]}"
    ),
    r"block(\d+)/(\w+)_(conv|norm)": _mobilenet_block,
    "final_(conv|norm)": lambda m: f"mobilenet_v2.conv_1x1.{_KIND[m[1]]}",
    "head": "classifier",
  },
  prefix="mobilenet_v2.",
)

_EFFICIENTNET_TRANSFORMERS = Naming(
  "transformers",
  {
    "stem_conv": "efficientnet.embeddings.convolution",
    "stem_norm": "efficientnet.embeddings.batchnorm",
    r"block(\d+)/expand_conv": (
      r"efficientnet.encoder.blocks.\1.expansion.expand_conv"
    ),
    r"block(\d+)/expand_norm": (
      r"efficientnet.encoder.blocks.\1.expansion.expand_bn"
    ),
    r"block(\d+)/(depthwise_(conv|norm))": (
      r"efficientnet.encoder.blocks.\1.depthwise_conv.\2"
    ),
    r"block(\d+)/squeeze_(reduce|expand)": (
      r"efficientnet.encoder.blocks.\1.squeeze_excite.\2"
    ),
    r"block(\d+)/project_conv": (
      r"efficientnet.encoder.blocks.\1.projection.project_conv"
    ),
    r"block(\d+)/project_norm": (
      r"efficientnet.encoder.blocks.\1.projection.project_bn"
    ),
    "final_conv": "efficientnet.encoder.top_conv",
    "final_norm": "efficientnet.encoder.top_bn",
    "head": "classifier",
  },
  prefix="efficientnet.",
)


def _inverted_residuals_timm(repeats: tuple[int, ...]) -> Naming:
  """timm counts blocks in groups, and normalisations in blocks."""
  places = [(g, i) for g, blocks in enumerate(repeats) for i in range(blocks)]

  def block(match):
    group, index = places[int(match[1])]
    # The blocks of the first group do not expand.
    first = group == 0
    part = {
      "expand_conv": "conv_pw",
      "expand_norm": "bn1",
      "depthwise_conv": "conv_dw",
      "depthwise_norm": "bn1" if first else "bn2",
      "squeeze_reduce": "se.conv_reduce",
      "squeeze_expand": "se.conv_expand",
      "project_conv": "conv_pw" if first else "conv_pwl",
      "project_norm": "bn2" if first else "bn3",
    }[match[2]]
    return f"blocks.{group}.{index}.{part}"

  return Naming(
    "timm",
    {
      "stem_conv": "conv_stem",
      "stem_norm": "bn1",
      r"block(\d+)/(\w+)": block,
      "final_conv": "conv_head",
      "final_norm": "bn2",
      "head": "classifier",
    },
  )


_TOKEN_AXES = {"class_token": 2, "positions": 1}

_VIT_TIMM = Naming(
  "timm",
  {
    "class_token": "cls_token",
    "positions": "pos_embed",
    "patches": "patch_embed.proj",
    r"block(\d+)/norm(\d)": r"blocks.\1.norm\2",
    r"block(\d+)/qkv": r"blocks.\1.attn.qkv",
    r"block(\d+)/out": r"blocks.\1.attn.proj",
    r"block(\d+)/mlp_in": r"blocks.\1.mlp.fc1",
    r"block(\d+)/mlp_out": r"blocks.\1.mlp.fc2",
    r"block(\d+)/layer_scale(\d)": r"blocks.\1.ls\2.gamma",
    "final_norm": "norm",
    "head": "head",
  },
  leading_axes=_TOKEN_AXES,
)
_VIT_TRANSFORMERS = Naming(
  "transformers",
  {
    "class_token": "vit.embeddings.cls_token",
    "positions": "vit.embeddings.position_embeddings",
    "patches": "vit.embeddings.patch_embeddings.projection",
    r"block(\d+)/norm1": r"vit.encoder.layer.\1.layernorm_before",
    r"block(\d+)/norm2": r"vit.encoder.layer.\1.layernorm_after",
    r"block(\d+)/qkv": (
      r"vit.encoder.layer.\1.attention.attention.{query,key,value}"
    ),
    r"block(\d+)/out": r"vit.encoder.layer.\1.attention.output.dense",
    r"block(\d+)/mlp_in": r"vit.encoder.layer.\1.intermediate.dense",
    r"block(\d+)/mlp_out": r"vit.encoder.layer.\1.output.dense",
    "final_norm": "vit.layernorm",
    "head": "classifier",
  },
  prefix="vit.",
  # Of the model without a head.
  ignored=r"(vit\.)?(pooler\..*|embeddings\.mask_token)",
  leading_axes=_TOKEN_AXES,
)
_DINOV2_TRANSFORMERS = Naming(
  "transformers",
  {
    "class_token": "dinov2.embeddings.cls_token",
    "positions": "dinov2.embeddings.position_embeddings",
    "patches": "dinov2.embeddings.patch_embeddings.projection",
    r"block(\d+)/norm(\d)": r"dinov2.encoder.layer.\1.norm\2",
    r"block(\d+)/qkv": (
      r"dinov2.encoder.layer.\1.attention.attention.{query,key,value}"
    ),
    r"block(\d+)/out": r"dinov2.encoder.layer.\1.attention.output.dense",
    r"block(\d+)/mlp_in": r"dinov2.encoder.layer.\1.mlp.fc1",
    r"block(\d+)/mlp_out": r"dinov2.encoder.layer.\1.mlp.fc2",
    r"block(\d+)/layer_scale(\d)": (
      r"dinov2.encoder.layer.\1.layer_scale\2.lambda1"
    ),
    "final_norm": "dinov2.layernorm",
    "head": "classifier",
  },
  prefix="dinov2.",
  ignored=r"(dinov2\.)?embeddings\.mask_token",
  leading_axes=_TOKEN_AXES,
)
_CLIP_TRANSFORMERS = Naming(
  "transformers",
  {
    "class_token": "vision_model.embeddings.class_embedding",
    "positions": "vision_model.embeddings.position_embedding.weight",
    "patches": "vision_model.embeddings.patch_embedding",
    "pre_norm": "vision_model.pre_layrnorm",
    r"block(\d+)/norm(\d)": r"vision_model.encoder.layers.\1.layer_norm\2",
    r"block(\d+)/qkv": (
      r"vision_model.encoder.layers.\1.self_attn.{q_proj,k_proj,v_proj}"
    ),
    r"block(\d+)/out": r"vision_model.encoder.layers.\1.self_attn.out_proj",
    r"block(\d+)/mlp_in": r"vision_model.encoder.layers.\1.mlp.fc1",
    r"block(\d+)/mlp_out": r"vision_model.encoder.layers.\1.mlp.fc2",
    "final_norm": "vision_model.post_layernorm",
    "projection": "visual_projection",
  },
  prefix="vision_model.",
  # The tower for text, and what compares the two.
  ignored=(
    r"text_model\..*|text_projection\..*|logit_scale"
    r"|(vision_model\.)?embeddings\.position_ids"
  ),
)
