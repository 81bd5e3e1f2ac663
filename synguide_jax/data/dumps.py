"""Dumps of samples: arrays of images in one file."""

import functools
import io
from typing import BinaryIO

import numpy as np

from synguide_jax.data.files import Files, is_remote
from synguide_jax.data.layouts import (
  enumerate_names,
  Item,
  Listing,
  NO_LABEL,
  numbered,
)
from synguide_jax.errors import UserError

# What we read, and under which names.
_ARRAYS = {
  "images": ("images", "samples", "arr_0"),
  "labels": ("labels", "arr_1"),
  "class_names": ("class_names",),
}


def npz(tree: Files) -> Listing:
  """Lists a dump of samples, as StyleGAN, LSGM, EDM and others write it.

  The images are ``images``, ``samples`` or ``arr_0``: uint8, or floats in
  [-1, 1], ``[N, H, W, C]``, ``[N, C, H, W]`` or ``[N, H, W]``. The labels, if
  any, are ``labels`` or ``arr_1``: indices ``[N]``, or one-hot ``[N, K]``;
  their names, if any, ``class_names``.

  Raises:
    UserError: it is none, or values are out of range.
  """
  path, arrays = tree.root, _load(tree)
  images = _channels_last(path, arrays["images"])
  _check_values(path, images)
  labels = arrays.get("labels")
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
    # One at a time, as floats take four times the memory.
    Item(f"{i:06}", int(label), functools.partial(_to_uint8, image))
    for i, (image, label) in enumerate(zip(images, labels, strict=True))
  ]
  return Listing({"train": items}, names)


def _load(tree: Files) -> dict[str, np.ndarray]:
  """Reads those of ``_ARRAYS`` that are there."""
  path, (name,) = tree.root, tree.names
  try:
    with _opened(tree, name) as file, np.load(file) as archive:
      known, arrays = archive.files, {}
      for key, names in _ARRAYS.items():
        if found := [n for n in names if n in known]:
          arrays[key] = archive[found[0]]
  except TypeError as error:  # of an .npy file np.load gives an array
    raise UserError(f"{path} is an .npy file; save it with np.savez.") from (
      error
    )
  except Exception as error:  # of many types for a damaged file
    raise UserError(
      f"{path} is not a readable .npz file of plain arrays: {error}. Write it "
      "with np.savez."
    ) from error
  if "images" not in arrays:
    raise UserError(
      f"{path} has no array 'images', 'samples' or 'arr_0', but "
      f"{enumerate_names(set(known))}."
    )
  return arrays


def _opened(tree: Files, name: str) -> BinaryIO:
  # Local files can be large; remote ones are read at once, not back and forth.
  if is_remote(tree.root):
    return io.BytesIO(tree.read(name))
  return open(tree.root, "rb")


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


def _check_values(path: str, images: np.ndarray) -> None:
  if not images.size:
    raise UserError(f"{path} has no image.")
  if images.dtype == np.uint8:
    return
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


def _to_uint8(image: np.ndarray) -> np.ndarray:
  if image.dtype == np.uint8:
    return image
  return np.round((image.astype(np.float32) + 1) * 127.5).astype(np.uint8)


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
