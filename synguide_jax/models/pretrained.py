"""Pretrained networks: a folder with config.json and model.safetensors."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import safetensors
import safetensors.numpy

from synguide_jax import models
from synguide_jax.errors import UserError
from synguide_jax.models.base import Model, Preprocessing, Variables

_MODEL_TYPE = "synguide_jax"


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A network with its weights and the preprocessing that belongs to them.

  Attributes:
    model: The network.
    variables: Its parameters and statistics.
    image_shape: ``(H, W, C)`` of the images it was trained on; C must be kept.
  """

  model: Model
  variables: Variables
  image_shape: tuple[int, int, int]


def _shapes(tree: Variables) -> dict[str, tuple[int, ...]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _check_shapes(variables: Variables, expected: Variables, of: str) -> None:
  have, want = _shapes(variables), _shapes(expected)
  if have != want:
    wrong = sorted(dict(have.items() ^ want.items()))
    raise UserError(
      f"{of} does not fit the network; missing, unexpected or of another "
      f"shape: {', '.join(wrong[:5])}"
      + (f" and {len(wrong) - 5} more." if len(wrong) > 5 else ".")
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
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(variables))
  tensors = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  config = {
    "model_type": _MODEL_TYPE,
    "name": model.name,
    "options": model.options,
    "image_shape": image_shape,
    "preprocessing": dataclasses.asdict(model.preprocessing),
  }
  # Last, so that a folder with a config.json is complete.
  (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_pretrained(folder: Path | str) -> Pretrained:
  """Reads what `save_pretrained` wrote.

  Args:
    folder: Path of the folder.

  Returns:
    The network and its weights, as NumPy arrays.

  Raises:
    UserError: if the folder is not a checkpoint this version can read, or its
      tensors are not those of the network it names.
  """
  folder = Path(folder).expanduser()
  try:
    config = json.loads((folder / "config.json").read_text())
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    kind = config["model_type"]
  except (
    *(OSError, KeyError, TypeError, json.JSONDecodeError),
    safetensors.SafetensorError,
  ) as error:
    raise UserError(
      f"{folder} is not a folder with a readable config.json and "
      f"model.safetensors: {error}"
    ) from error
  if kind != _MODEL_TYPE:
    raise UserError(
      f"{folder}/config.json: model_type is {kind!r}; this "
      f"version reads {_MODEL_TYPE!r} checkpoints only."
    )
  preprocessing = {
    k: tuple(v) if isinstance(v, list) else v
    for k, v in config["preprocessing"].items()
  }
  options = {
    k: tuple(v) if isinstance(v, list) else v
    for k, v in config["options"].items()
  }
  model = models.create(
    config["name"], preprocessing=Preprocessing(**preprocessing), **options
  )
  variables: Variables = {}
  for name, tensor in tensors.items():
    *parents, leaf = name.split("/")
    node = variables
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = tensor
  image_shape = tuple(config["image_shape"])
  expected = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, *image_shape))
  )
  _check_shapes(variables, expected, of=f"{folder}/model.safetensors")
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
