"""Pretrained networks, from the hub, a folder or a file.

A spec is one of

* ``hf:<repository>[@revision]``: a model of the Hugging Face hub, through its
  cache; with HF_HUB_OFFLINE=1 the cache alone.
* a folder as the hub has them: config.json and model.safetensors (or
  pytorch_model.bin), of transformers, timm or `save_pretrained`; with
  preprocessor_config.json, from transformers.
* a file: .safetensors, or a state dict of PyTorch (.pth, .pt, .bin), read
  without unpickling anything but tensors. Which network it is of is found from
  the names and shapes of its tensors.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from absl import logging
import flax
import jax
import jax.numpy as jnp
import safetensors.numpy

from synguide_jax import models
from synguide_jax.errors import UserError
from synguide_jax.models import hub
from synguide_jax.models.base import Model, Preprocessing, Variables
from synguide_jax.models.namings import (
  few,
  from_tensors,
  Naming,
  namings,
  of_use,
  tensor_shapes,
  Tensors,
)
from synguide_jax.models.weight_files import read_json, read_tensors

_MODEL_TYPE = "synguide_jax"
_SAFETENSORS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A network with its weights; its preprocessing belongs to them.

  Attributes:
    model: The network.
    variables: Its parameters and statistics, float32.
    image_shape: ``(H, W, C)`` of the images it was trained on; C must be kept.
  """

  model: Model
  variables: Variables
  image_shape: tuple[int, int, int]

  def with_head(self, num_classes: int, key: jax.Array) -> "Pretrained":
    """Returns the network with a new, untrained head."""
    model = with_options(self.model, num_classes=num_classes)
    images = jnp.zeros((1, *self.image_shape))
    fresh = jax.jit(model.init)(key, images)
    return dataclasses.replace(
      self, model=model, variables=replace_head(self.variables, fresh)
    )


def with_options(model: Model, **options: Any) -> Model:
  """Returns ``model`` with other options; arguments as of `models.create`."""
  return models.create(
    model.name,
    **{
      "preprocessing": model.preprocessing,
      **model.options,
      **options,
    },
  )


def load_pretrained(
  spec: Path | str, *, dtype: str = "float32", image_size: int | None = None
) -> Pretrained:
  """Loads a network with its weights and its preprocessing.

  Args:
    spec: ``hf:<repository>``, a folder or a file; see this module.
    dtype: Type to compute in, "float32" or "bfloat16".
    image_size: Side that images are resized to, pixels; by default what the
      checkpoint says. A smaller one is faster.

  Returns:
    The network, its weights as NumPy arrays in float32. It has the
    checkpoint's head, if that has one; see `Pretrained.with_head`.

  Raises:
    UserError: if there is no such checkpoint, it is not of a supported
      architecture, or a tensor is missing, unexpected or wrongly shaped.

  Example::

    checkpoint = load_pretrained("hf:microsoft/resnet-50")
    output = checkpoint.model.apply(
      checkpoint.variables, images, train=False, upto="stage3"
    )
    output.features["stage3"]  # [N, 14, 14, 1024]
  """
  spec = str(spec)
  if spec.startswith("hf:"):
    path = _download(spec)
  else:
    path = Path(spec).expanduser()
  if path.is_dir():
    found = _load_folder(path)
  elif path.is_file():
    found = _load_file(path)
  else:
    raise UserError(f"{spec} is neither a folder nor a file of weights.")
  preprocessing = found.model.preprocessing
  if image_size is not None:
    preprocessing = dataclasses.replace(preprocessing, size=image_size)
  model = with_options(found.model, dtype=dtype, preprocessing=preprocessing)
  return dataclasses.replace(found, model=model)


def _download(spec: str) -> Path:
  # Not needed for local checkpoints, and slow to import.
  import huggingface_hub

  repository, _, revision = spec.removeprefix("hf:").partition("@")

  def download(*patterns):
    return Path(
      huggingface_hub.snapshot_download(
        repository,
        revision=revision or None,
        allow_patterns=["config.json", "preprocessor_config.json", *patterns],
      )
    )

  try:
    folder = download(_SAFETENSORS)
    if not (folder / _SAFETENSORS).is_file():
      folder = download("pytorch_model.bin")
    return folder
  except (OSError, ValueError) as error:
    # What huggingface_hub raises: no such repository or revision, no access,
    # no network and nothing in the cache, a garbled name.
    reason = " ".join(str(error).split())
    raise UserError(
      f"{spec} can be had neither from the Hugging Face hub nor from its "
      f"cache: {reason} Download it on a machine that has access (hf download "
      f"{repository}) and copy the cache, or name a local folder."
    ) from error


def _load_folder(folder: Path) -> Pretrained:
  config_file = folder / "config.json"
  config = read_json(config_file)
  weights = next(
    (
      folder / name
      for name in (_SAFETENSORS, "pytorch_model.bin")
      if (folder / name).is_file()
    ),
    None,
  )
  if weights is None:
    raise UserError(f"{folder} has no {_SAFETENSORS}.")
  tensors = read_tensors(weights)
  if config.get("model_type") == _MODEL_TYPE:
    return _load_own(config, tensors, config_file, weights)
  if "model_type" in config:
    library = "transformers"
    name, options = hub.from_transformers(config, str(config_file))
    preprocessing = _preprocessing(folder, name)
  elif "architecture" in config:
    library = "timm"
    name, options = hub.from_timm(config, str(config_file))
    preprocessing = hub.preprocessing_from_timm(
      config.get("pretrained_cfg"), str(config_file)
    )
  else:
    raise UserError(
      f"{config_file} has neither model_type (transformers, synguide_jax) nor "
      "architecture (timm)."
    )

  naming = namings(models.create(name, num_classes=0, **options))[library]
  tensors = of_use(tensors, naming)
  found = _num_classes(naming, tensors)
  said = config.get("num_classes", len(config.get("id2label", ())) or found)
  if found and found != said:
    raise UserError(
      f"{weights} has a head for {found} classes, but {config_file} says "
      f"{said}."
    )
  model = models.create(
    name, num_classes=found, preprocessing=preprocessing, **options
  )
  return _assemble(model, tensors, naming, str(weights))


def _preprocessing(folder: Path, name: str) -> Preprocessing:
  file = folder / "preprocessor_config.json"
  if file.is_file():
    return hub.preprocessing_from_transformers(read_json(file), str(file))
  return _default_preprocessing(name, str(folder))


def _default_preprocessing(name: str, of: str) -> Preprocessing:
  default = models.MODELS[name].preprocessing
  logging.warning(
    "%s does not say how its images were prepared; taking what is usual for "
    "%s: %s px, %s, mean %s, std %s",
    *(of, name, default.size, default.interpolation),
    *(default.mean, default.std),
  )
  return default


def _load_file(path: Path) -> Pretrained:
  """Takes the network with which the file has most tensors in common."""
  contents = read_tensors(path)
  best: tuple[float, Any] = (0.0, None)
  for name in models.MODELS:
    for naming in namings(models.create(name, num_classes=0)).values():
      tensors = of_use(contents, naming)
      model = _sized(name, naming, tensors)
      if model is None:
        continue
      wanted = set(tensor_shapes(_expected(model), naming).items())
      found = {(name, tensor.shape) for name, tensor in tensors.items()}
      overlap = len(wanted & found) / len(wanted | found)
      if overlap > best[0]:
        best = overlap, (model, naming, tensors)
  if best[1] is None:
    raise UserError(
      f"{path} holds no network that is known by its tensors; it begins with "
      f"{few(list(contents))}."
    )
  model, naming, tensors = best[1]
  model = dataclasses.replace(
    model, preprocessing=_default_preprocessing(model.name, str(path))
  )
  return _assemble(model, tensors, naming, str(path))


def _sized(name: str, naming: Naming, tensors: Tensors) -> Model | None:
  """Returns the network for the file's classes and channels, if it may be."""
  vit = "positions" in naming.rules
  (first,) = naming.names("patches/kernel" if vit else "stem_conv/kernel")
  if first not in tensors or tensors[first].ndim != 4:
    return None
  return models.create(
    name,
    num_classes=_num_classes(naming, tensors),
    channels=tensors[first].shape[1],
  )


def _num_classes(naming: Naming, tensors: Tensors) -> int:
  if "head" not in naming.rules:
    return 0
  (name,) = naming.names("head/kernel")
  return tensors[name].shape[0] if name in tensors else 0


def _expected(model: Model) -> Variables:
  """Shapes of the weights; they do not depend on the size of the images."""
  side = model.preprocessing.size or 224
  images = jnp.zeros((1, side, side, model.options["channels"]))
  return jax.eval_shape(model.init, jax.random.key(0), images)


def _assemble(
  model: Model, tensors: Tensors, naming: Naming, of: str
) -> Pretrained:
  variables = from_tensors(model, tensors, naming, _expected(model), of)
  side = model.preprocessing.size or 224
  return Pretrained(model, variables, (side, side, model.options["channels"]))


def _flatten(variables: Variables) -> dict[str, Any]:
  return flax.traverse_util.flatten_dict(variables, sep="/")


def _check_shapes(variables: Variables, expected: Variables, of: str) -> None:
  have, want = (
    {path: leaf.shape for path, leaf in _flatten(tree).items()}
    for tree in (variables, expected)
  )
  if have != want:
    wrong = sorted(dict(have.items() ^ want.items()))
    raise UserError(
      f"{of} does not fit the network; missing, unexpected or of another "
      f"shape: {few(wrong)}."
    )


def save_pretrained(
  folder: Path,
  model: Model,
  variables: Variables,
  image_shape: tuple[int, int, int],
) -> None:
  """Writes ``model`` and its ``variables`` where `load_pretrained` finds them.

  Args:
    folder: Made if it is missing.
    model: The network.
    variables: Its parameters and statistics, float32.
    image_shape: ``(H, W, C)`` of the images it was trained on.
  """
  folder.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(
    _flatten(jax.device_get(variables)), folder / _SAFETENSORS
  )
  config = {
    "model_type": _MODEL_TYPE,
    "name": model.name,
    "options": model.options,
    "image_shape": image_shape,
    "preprocessing": dataclasses.asdict(model.preprocessing),
  }
  # Last, so that a folder with a config.json is complete.
  (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _load_own(
  config: dict[str, Any], tensors: Tensors, config_file: Path, weights: Path
) -> Pretrained:
  try:
    preprocessing, options = (
      {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config[field].items()
      }
      for field in ("preprocessing", "options")
    )
    model = models.create(
      config["name"], preprocessing=Preprocessing(**preprocessing), **options
    )
    image_shape = tuple(config["image_shape"])
  except (KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{config_file} lacks or garbles {error}.") from error
  expected = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, *image_shape))
  )
  variables = flax.traverse_util.unflatten_dict(tensors, sep="/")
  _check_shapes(variables, expected, of=str(weights))
  return Pretrained(model, variables, image_shape)


def replace_head(variables: Variables, fresh: Variables) -> Variables:
  """Returns ``variables`` with the classification head of ``fresh``.

  Args:
    variables: Pretrained weights.
    fresh: Newly initialised ones of the same network with another head.

  Returns:
    Weights of the shapes of ``fresh``; only the parameters named ``head`` are
    taken from it.

  Raises:
    UserError: if any other tensor is missing, unexpected or of another shape.
  """
  merged = {
    collection: {**variables.get(collection, {})} for collection in fresh
  }
  merged["params"]["head"] = fresh["params"]["head"]

  _check_shapes(merged, fresh, of="The checkpoint")
  return merged
