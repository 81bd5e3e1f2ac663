"""Classifiers for others to load: PyTorch, or anything that runs StableHLO."""

from collections.abc import Callable, Sequence
import dataclasses
import json
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import safetensors.numpy

from synguide_jax.errors import UserError
from synguide_jax.models import hub, processors
from synguide_jax.models.namings import namings, to_tensors
from synguide_jax.models.pretrained import Pretrained, save_pretrained

# What an exported program may run on.
PLATFORMS = ("cpu", "cuda", "tpu")


def _named(classifier: Pretrained, library: str) -> dict:
  naming = namings(classifier.model).get(library)
  if naming is None:
    raise UserError(f"{library} has no network like {classifier.model.name}.")
  return to_tensors(classifier.variables, naming)


def _write_json(path: Path, contents: dict) -> None:
  path.write_text(json.dumps(contents, indent=2) + "\n")


def _transformers_configs(
  classifier: Pretrained, class_names: Sequence[str]
) -> tuple[dict, dict]:
  """Returns config.json and preprocessor_config.json."""
  model = classifier.model
  config = hub.to_transformers(model, tuple(class_names))
  preprocessor = processors.to_transformers(
    model.preprocessing, model.options["channels"], classifier.image_shape[0]
  )
  return config, preprocessor


def to_transformers(
  classifier: Pretrained, folder: Path, class_names: Sequence[str]
) -> None:
  """Writes a folder for ``AutoModelForImageClassification.from_pretrained``.

  Args:
    classifier: The network and its weights.
    folder: Gets config.json, preprocessor_config.json and model.safetensors;
      made if it is missing.
    class_names: Names of the logits, in order.

  Raises:
    UserError: if transformers has no such network.
  """
  config, preprocessor = _transformers_configs(classifier, class_names)
  tensors = _named(classifier, "transformers")
  folder.mkdir(parents=True, exist_ok=True)
  # transformers asks for the framework.
  safetensors.numpy.save_file(
    tensors, folder / "model.safetensors", metadata={"format": "pt"}
  )
  _write_json(folder / "config.json", config)
  _write_json(folder / "preprocessor_config.json", preprocessor)


def to_torchvision(
  classifier: Pretrained, folder: Path, class_names: Sequence[str]
) -> None:
  """Writes a ResNet's state dict with torchvision's names.

  In PyTorch, with ``safetensors.torch.load_file(folder / "model.safetensors")``
  for ``torchvision.models.resnet50(num_classes=...).load_state_dict``; the
  networks for small images have another stem (``conv1`` of 3x3 with stride 1,
  no ``maxpool``).

  Args:
    classifier: The network and its weights.
    folder: Gets model.safetensors; its metadata are the names of the classes
      and the preprocessing, as JSON. Made if it is missing.
    class_names: Names of the logits, in order.

  Raises:
    UserError: if torchvision has no such network.
  """
  tensors = _named(classifier, "torchvision")
  preprocessing = dataclasses.asdict(classifier.model.preprocessing)
  folder.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(
    tensors,
    folder / "model.safetensors",
    metadata={
      "format": "pt",
      "class_names": json.dumps(list(class_names)),
      "preprocessing": json.dumps(preprocessing),
    },
  )


def to_synguide_jax(
  classifier: Pretrained, folder: Path, class_names: Sequence[str]
) -> None:
  """Writes what `load_pretrained` reads, for any network of ours."""
  save_pretrained(
    folder,
    classifier.model,
    classifier.variables,
    classifier.image_shape,
    class_names,
  )


def to_stablehlo(
  classifier: Pretrained, folder: Path, class_names: Sequence[str]
) -> None:
  """Writes a program from images to logits that holds its weights.

  Read again with ``jax.export.deserialize``, without any code of ours:

    program = jax.export.deserialize(bytearray(path.read_bytes()))
    logits = program.call(images)

  Args:
    classifier: The network and its weights.
    folder: Gets classifier.stablehlo (float32 images in [0, 1], ``[b, H, W,
      C]`` for any b, to float32 logits ``[b, num_classes]``; for CPU, CUDA and
      TPU) and config.json, which says so. Made if it is missing.
    class_names: Names of the logits, in order.
  """
  variables = jax.tree.map(jnp.asarray, classifier.variables)
  (batch,) = jax.export.symbolic_shape("b")
  images = jax.ShapeDtypeStruct((batch, *classifier.image_shape), jnp.float32)

  @jax.jit
  def logits(images):
    return classifier.model.apply(variables, images, train=False).logits

  program = jax.export.export(logits, platforms=PLATFORMS)(images)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "classifier.stablehlo").write_bytes(program.serialize())
  _write_json(
    folder / "config.json",
    {
      "input": {
        "shape": ["b", *classifier.image_shape],
        "dtype": "float32",
        "range": [0, 1],
      },
      "output": {"shape": ["b", len(class_names)], "dtype": "float32"},
      "class_names": list(class_names),
      "platforms": PLATFORMS,
    },
  )


Writer = Callable[[Pretrained, Path, Sequence[str]], None]
FORMATS: dict[str, Writer] = {
  "transformers": to_transformers,
  "torchvision": to_torchvision,
  "synguide_jax": to_synguide_jax,
  "stablehlo": to_stablehlo,
}


def default_formats(classifier: Pretrained) -> tuple[str, ...]:
  """The most widely read format of weights that has the network; StableHLO."""
  try:
    _transformers_configs(classifier, ())
    weights = "transformers"
  except UserError:
    known = namings(classifier.model)
    weights = "torchvision" if "torchvision" in known else "synguide_jax"
  return weights, "stablehlo"
