"""Dumps of samples: arrays of images in one file."""

from collections.abc import Mapping, Sequence
import io
from typing import Any

import numpy as np

from synguide_jax.data.files import Files
from synguide_jax.data.layouts import (
  enumerate_names,
  Item,
  Listing,
  NO_LABEL,
  numbered,
)
from synguide_jax.errors import UserError


def npz(tree: Files) -> Listing:
  """Lists a dump of samples, as StyleGAN, LSGM, EDM and others write it.

  The images are ``images``, ``samples`` or ``arr_0``: uint8, or floats in
  [-1, 1], ``[N, H, W, C]``, ``[N, C, H, W]`` or ``[N, H, W]``. The labels, if
  any, are ``labels`` or ``arr_1``: indices ``[N]``, or one-hot ``[N, K]``;
  their names, if any, ``class_names``.

  Raises:
    UserError: it is none, or values are out of range.
  """
  path, (name,) = tree.root, tree.names
  try:
    with np.load(io.BytesIO(tree.read(name))) as archive:
      arrays = {key: archive[key] for key in archive.files}
  except TypeError as error:  # of an .npy file np.load gives an array
    raise UserError(f"{path} is an .npy file; save it with np.savez.") from (
      error
    )
  except Exception as error:  # of many types for a damaged file
    raise UserError(
      f"{path} is not a readable .npz file of plain arrays: {error}. Write it "
      "with np.savez."
    ) from error
  images = _first(arrays, ("images", "samples", "arr_0"))
  if images is None:
    raise UserError(
      f"{path} has no array 'images', 'samples' or 'arr_0', but "
      f"{enumerate_names(set(arrays))}."
    )
  images = _to_uint8(path, _channels_last(path, images))
  labels = _first(arrays, ("labels", "arr_1"))
  names: tuple[str, ...] = ()
  if labels is None:
    labels = np.full(len(images), NO_LABEL)
  else:
    labels, count = _indices(path, labels, len(images))
    names = np.asarray(arrays.get("class_names", numbered([count - 1])))
    names = tuple(names.astype(np.str_).ravel().tolist())
    if labels.max() >= len(names):
      raise UserError(
        f"{path} has labels up to {labels.max()}, but {len(names)} class_names."
      )
  items = [
    Item(f"{i:06}", int(label), lambda image=image: image)
    for i, (image, label) in enumerate(zip(images, labels, strict=True))
  ]
  return Listing({"train": items}, names)


def _first(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> Any:
  return next((arrays[name] for name in names if name in arrays), None)


def _channels_last(path: str, images: np.ndarray) -> np.ndarray:
  if images.ndim == 3:
    return images[..., None]
  if images.ndim == 4 and images.shape[-1] in (1, 3):
    return images
  if images.ndim == 4 and images.shape[1] in (1, 3):
    return images.transpose(0, 2, 3, 1)
  raise UserError(
    f"{path}: images must be [N, H, W, C] or [N, C, H, W] with 1 or 3 "
    f"channels, got {list(images.shape)}."
  )


def _to_uint8(path: str, images: np.ndarray) -> np.ndarray:
  if not images.size:
    raise UserError(f"{path} has no image.")
  if images.dtype == np.uint8:
    return images
  if not np.issubdtype(images.dtype, np.floating):
    raise UserError(
      f"{path}: images must be uint8, or floats in [-1, 1], got {images.dtype}."
    )
  low, high = float(images.min()), float(images.max())
  if not (-1 <= low and high <= 1):  # also NaN
    raise UserError(
      f"{path}: float images must lie in [-1, 1], got {low:g} to {high:g}."
    )
  if low >= 0:
    raise UserError(
      f"{path}: float images must lie in [-1, 1], but none is negative ({low:g}"
      f" to {high:g}). If these lie in [0, 1], save 2 * images - 1."
    )
  return np.round((images.astype(np.float32) + 1) * 127.5).astype(np.uint8)


def _indices(
  path: str, labels: np.ndarray, count: int
) -> tuple[np.ndarray, int]:
  """Returns class indices, and how many classes there are."""
  classes = 0
  if labels.ndim == 2 and labels.shape[1] > 1:
    one_hot = (labels.sum(1) == 1).all() and np.isin(labels, (0, 1)).all()
    if one_hot:
      labels, classes = labels.argmax(1), labels.shape[1]
  labels = labels.reshape(count, -1) if labels.size == count else labels
  if labels.ndim == 2 and labels.shape[1] == 1:
    labels = labels[:, 0]
  if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
    raise UserError(
      f"{path}: labels must be class indices [{count}], or one-hot, got "
      f"{labels.dtype} {list(labels.shape)}."
    )
  if labels.min() < 0:
    raise UserError(f"{path}: labels must not be negative, got {labels.min()}.")
  return labels, classes or int(labels.max()) + 1
