"""Reads tensors and fields from files that need not be trusted."""

from collections.abc import Mapping
import hashlib
import json
from pathlib import Path
from typing import Any

import flax
import numpy as np
import safetensors
import safetensors.numpy

from synguide_jax.errors import UserError

_TORCH_SUFFIXES = (".pth", ".pt", ".bin")


def read_json(path: Path) -> dict[str, Any]:
  """Returns the fields of a JSON file.

  Raises:
    UserError: if it cannot be read or holds something else.
  """
  try:
    contents = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read: {error}") from error
  if not isinstance(contents, dict):
    raise UserError(f"{path} does not hold fields by name.")
  return contents


def read_tensors(path: Path) -> dict[str, np.ndarray]:
  """Returns the tensors of a .safetensors file or a PyTorch state dict.

  A state dict (.pth, .pt, .bin) is read by PyTorch with weights_only=True, so
  that nothing in it is executed.

  Args:
    path: The file.

  Returns:
    Tensors by name.

  Raises:
    UserError: if it is damaged or something else, or needs PyTorch where that
      is not installed.
  """
  if path.suffix in _TORCH_SUFFIXES:
    return _read_torch(path)
  try:
    # bfloat16 is a type of NumPy once JAX is imported.
    return safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(
      f"{path} is not a whole safetensors file: {error}"
    ) from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
  try:
    import torch
  except ImportError as error:
    raise UserError(
      f"Reading {path} needs PyTorch, which is not installed; install it (pip "
      "install torch), or convert the file to .safetensors."
    ) from error
  try:
    state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model", "net"):
      if isinstance(state.get(wrapper), dict):
        state = state[wrapper]
    return {
      # What torch.nn.DataParallel puts in front.
      name.removeprefix("module."): _to_numpy(tensor.detach())
      for name, tensor in state.items()
    }
  except Exception as error:  # Whatever a hostile or damaged file causes.
    raise UserError(
      f"{path} is not a state dict that PyTorch reads with weights_only=True: "
      f"{error}"
    ) from error


def _to_numpy(tensor: Any) -> np.ndarray:
  """Of a PyTorch tensor; NumPy alone has no bfloat16."""
  return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def checksum(variables: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of weights by name, in hexadecimal digits."""
  weights = flax.traverse_util.flatten_dict(variables, sep="/")
  found = hashlib.sha256()
  for name in sorted(weights):
    array = np.asarray(weights[name])
    found.update(f"{name} {array.dtype} {array.shape}".encode())
    found.update(np.ascontiguousarray(array).tobytes())
  return found.hexdigest()
