"""Pretrained networks, from the hub, a folder or a file.

A spec is one of

* ``hf:<repository>[@revision]``: a model of the Hugging Face hub, out of its
  cache as it is there, or downloaded; with HF_HUB_OFFLINE=1 the cache alone.
  A newer copy of a cached branch is got with `hf download <repository>`.
* a folder as the hub has them: config.json and model.safetensors (or
  pytorch_model.bin), of transformers, timm or `save_pretrained`; with
  preprocessor_config.json, from transformers.
* a file of a ResNet: .safetensors, or a state dict of PyTorch (.pth, .pt,
  .bin), read without unpickling anything but tensors. Which ResNet it is of is
  found from the names and shapes of its tensors.
"""

from collections.abc import Mapping, Sequence
import contextlib
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
from synguide_jax.models import hub, hub_files, processors
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
from synguide_jax.models.resnet import ResNet
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
    """Returns the network with a new, untrained head.

    Args:
      num_classes: Number of logits.
      key: What it is drawn from.
    """
    model = with_options(self.model, num_classes=num_classes)
    images = jnp.zeros((1, *self.image_shape))
    fresh = jax.jit(model.init)(key, images)
    return dataclasses.replace(
      self, model=model, variables=replace_head(self.variables, fresh)
    )


def with_options(model: Model, **options: Any) -> Model:
  """Returns a network with some of its options changed.

  Args:
    model: The network.
    **options: Arguments of `models.create`.

  Raises:
    UserError: as `models.create`.
  """
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
    path = hub_files.fetch(spec)
  else:
    path = Path(spec).expanduser()
  if path.name == _SAFETENSORS and (path.parent / "config.json").is_file():
    path = path.parent
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


def _load_folder(folder: Path) -> Pretrained:
  config_file = folder / "config.json"
  config = read_json(config_file)
  names = (_SAFETENSORS, "pytorch_model.bin")
  weights = next((folder / n for n in names if (folder / n).is_file()), None)
  if weights is None:
    raise UserError(f"{folder} has no {_SAFETENSORS}.")
  tensors = read_tensors(weights)
  if config.get("model_type") == _MODEL_TYPE:
    with _reading(config_file):
      model, image_shape = _own_model(config)
      expected = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, *image_shape))
      )
    variables = flax.traverse_util.unflatten_dict(tensors, sep="/")
    _check_shapes(variables, expected, of=str(weights))
    return Pretrained(model, variables, image_shape)
  with _reading(config_file):
    library, name, options = _published(config, str(config_file))
    naming = namings(models.create(name, num_classes=0, **options))[library]
    tensors = of_use(tensors, naming)
    found = _num_classes(naming, tensors)
    _check_head(config, found, f"{weights}", f"{config_file}")
    if library == "timm":
      preprocessing = processors.from_timm(config["pretrained_cfg"])
  if library == "transformers":
    preprocessing = _preprocessing(folder, name, options["channels"])
  model = models.create(
    name, num_classes=found, preprocessing=preprocessing, **options
  )
  with _reading(config_file):
    expected = _expected(model)
  return _assemble(model, tensors, naming, expected, str(weights))


@contextlib.contextmanager
def _reading(path: Path):
  """Turns what a garbled file causes into an error that names it."""
  try:
    yield
  except (
    *(KeyError, IndexError, TypeError, ValueError),
    *(AttributeError, ArithmeticError),
  ) as error:
    if isinstance(error, UserError):
      raise
    reason = " ".join(str(error).split())
    raise UserError(
      f"{path} lacks or garbles a field: {type(error).__name__}: {reason}."
    ) from error


def _published(
  config: Mapping[str, Any], of: str
) -> tuple[str, str, dict[str, Any]]:
  """Returns the library, the registered name and the options."""
  if "model_type" in config:
    return "transformers", *hub.from_transformers(config, of)
  if "architecture" in config:
    return "timm", *hub.from_timm(config, of)
  raise UserError(
    f"{of} has neither model_type (transformers, synguide_jax) nor "
    "architecture (timm)."
  )


def _check_head(
  config: Mapping[str, Any], found: int, weights: str, config_file: str
) -> None:
  """Raises UserError if the head is not what the config says.

  transformers' config of a network that has no head may have labels.
  """
  said = config.get("num_classes", len(config.get("id2label", ())) or found)
  architectures = config.get("architectures") or ()
  classifies = any(a.endswith("ForImageClassification") for a in architectures)
  if not found and (classifies or config.get("num_classes")):
    raise UserError(
      f"{weights} has no head, but {config_file} says it has one."
    )
  if found and found != said:
    raise UserError(
      f"{weights} has a head for {found} classes, but {config_file} says "
      f"{said}."
    )


def _preprocessing(folder: Path, name: str, channels: int) -> Preprocessing:
  file = folder / "preprocessor_config.json"
  if not file.is_file():
    return _default_preprocessing(name, channels, str(folder))
  with _reading(file):
    return processors.from_transformers(read_json(file), str(file))


def _default_preprocessing(name: str, channels: int, of: str) -> Preprocessing:
  default = models.MODELS[name].preprocessing
  if channels == 1:
    # Of grey images, those of the channels on average.
    default = dataclasses.replace(
      default,
      mean=(sum(default.mean) / len(default.mean),),
      std=(sum(default.std) / len(default.std),),
    )
  logging.warning(
    "%s does not say how its images were prepared; taking what is usual for "
    "%s: %s px, %s, mean %s, std %s",
    *(of, name, default.size, default.interpolation),
    *(default.mean, default.std),
  )
  return default


def _load_file(path: Path) -> Pretrained:
  """Takes the ResNet with which the file has most tensors in common.

  Of other networks there are variants, of padding and epsilon, that their
  tensors do not tell.
  """
  contents = read_tensors(path)
  best: tuple[float, Any] = (0.0, None)
  for name, architecture in models.MODELS.items():
    if architecture.module is not ResNet:
      continue
    for naming in namings(models.create(name, num_classes=0)).values():
      tensors = of_use(contents, naming)
      (first,) = naming.names("stem_conv/kernel")
      if naming.library == "timm" or first not in tensors:
        continue  # timm's names are torchvision's.
      channels = tensors[first].shape[1] if tensors[first].ndim == 4 else 3
      model = models.create(
        name, num_classes=_num_classes(naming, tensors), channels=channels
      )
      expected = _expected(model)
      wanted = set(tensor_shapes(expected, naming).items())
      found = {(name, tensor.shape) for name, tensor in tensors.items()}
      overlap = len(wanted & found) / len(wanted | found)
      if overlap > best[0]:
        best = overlap, (model, naming, tensors, expected)
  if best[1] is None:
    raise UserError(
      f"{path} holds no ResNet that its tensors would tell; it begins with "
      f"{few(list(contents))}. Other networks need a folder with their "
      "config.json."
    )
  model, naming, tensors, expected = best[1]
  preprocessing = _default_preprocessing(
    model.name, model.options["channels"], str(path)
  )
  model = with_options(model, preprocessing=preprocessing)
  return _assemble(model, tensors, naming, expected, str(path))


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
  model: Model,
  tensors: Tensors,
  naming: Naming,
  expected: Variables,
  of: str,
) -> Pretrained:
  variables = from_tensors(model, tensors, naming, expected, of)
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
  class_names: Sequence[str] = (),
) -> None:
  """Writes ``model`` and its ``variables`` where `load_pretrained` finds them.

  Args:
    folder: Made if it is missing.
    model: The network.
    variables: Its parameters and statistics, float32.
    image_shape: ``(H, W, C)`` of the images it was trained on.
    class_names: Of its logits, in order, where they are known.
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
    "id2label": {str(i): name for i, name in enumerate(class_names)},
  }
  # Last, so that a folder with a config.json is complete.
  (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _own_model(
  config: Mapping[str, Any],
) -> tuple[Model, tuple[int, int, int]]:
  """Returns what `save_pretrained` wrote of a network, and its image shape."""
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
  return model, tuple(config["image_shape"])


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
