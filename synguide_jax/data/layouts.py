"""How people lay out images: which file is in which split and class.

Each function returns a :class:`Listing`; nothing here decodes an image.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import csv
import dataclasses
import io
import json
import re
from typing import Any, NamedTuple
import zipfile

import numpy as np

from synguide_jax.data.files import Files, natural
from synguide_jax.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Folder name -> split.
_SPLITS = {
  "train": "train",
  "validation": "validation",
  "val": "validation",
  "valid": "validation",
  "test": "test",
}
_NAME_COLUMNS = ("file", "file_name", "filename")
NO_LABEL = -1


class Item(NamedTuple):
  """An image to be; ``read`` gives a file's content or an array."""

  name: str
  label: int
  read: Callable[[], bytes | np.ndarray]


@dataclasses.dataclass(frozen=True)
class Listing:
  """The images of a set.

  Attributes:
    splits: The images of each split, in order.
    class_names: In label order; empty where no image has a label.
    other_files: Number of files that are no images.
  """

  splits: Mapping[str, Sequence[Item]]
  class_names: tuple[str, ...]
  other_files: int = 0


def enumerate_names(names: Collection[str]) -> str:
  """Lists some names, in order, and how many there are if these are not all."""
  names = sorted(names, key=natural) if isinstance(names, set) else list(names)
  if not names:
    return "none"
  more = f", ... ({len(names)} in all)" if len(names) > 20 else ""
  return ", ".join(map(repr, names[:20])) + more


def folder(tree: Files) -> Listing:
  """Lists class folders, or flat files with or without a table of labels.

  In this order: a ``metadata.jsonl`` or a CSV file at the root, or one in each
  split's folder, with columns ``file`` (or ``file_name``), ``label`` and, if
  there is one, ``split``; ``<split>/<class>/<image>``; ``<class>/<image>``;
  images without folders, which have no label.

  Raises:
    UserError: none of these, an empty class, or images deeper down.
  """
  images = [n for n in tree.names if n.lower().endswith(EXTENSIONS)]
  if tables := _tables(tree):
    return _from_tables(tree, tables, images)
  if not images and not tree.folders:
    raise UserError(
      f"{tree.root} has no image (looked for {', '.join(EXTENSIONS)})."
    )
  top = [f for f in tree.folders if "/" not in f]
  if not top:
    items = [_item(tree, name, NO_LABEL) for name in images]
    return Listing({"train": items}, (), len(tree.names) - len(images))
  # Many archives hold one folder with everything in it.
  base = ""
  if len(top) == 1 and top[0] not in _SPLITS and not _flat(tree, top[0]):
    base = f"{top[0]}/"
    top = [f for f in tree.folders if f.startswith(base) and f.count("/") == 1]
  roots = {"train": base}
  # A class may be called "train", too; it holds no folders then.
  names = [f.removeprefix(base) for f in top]
  if all(n in _SPLITS and not _flat(tree, f) for n, f in zip(names, top)):  # noqa: B905
    roots = {_SPLITS[n]: f"{f}/" for n, f in zip(names, top, strict=True)}
    if len(roots) < len(top):
      raise UserError(f"{tree.root}: has both val and validation.")
  return _class_folders(tree, images, roots)


def _flat(tree: Files, folder: str) -> bool:
  """Whether a folder holds no folders."""
  return not any(f.startswith(f"{folder}/") for f in tree.folders)


def _class_folders(
  tree: Files, images: Sequence[str], roots: Mapping[str, str]
) -> Listing:
  classes = {
    split: tuple(
      f.removeprefix(root)
      for f in tree.folders
      if f.startswith(root) and "/" not in f.removeprefix(root)
    )
    for split, root in roots.items()
  }
  first, *others = classes
  for split in others:
    if classes[split] != classes[first]:
      differing = set(classes[split]) ^ set(classes[first])
      raise UserError(
        f"{tree.root}: its splits must have the same classes, but {split} and "
        f"{first} differ in {enumerate_names(differing)}."
      )
  splits, listed = {}, 0
  for split, root in roots.items():
    label_of = {name: label for label, name in enumerate(classes[split])}
    splits[split], empty = [], set(classes[split])
    for name in images:
      if not name.startswith(root):
        continue
      parts = name.removeprefix(root).split("/")
      if len(parts) > 2:
        raise UserError(
          f"{tree.root}: {name} lies too deep; images are expected as "
          "<class>/<image> or <split>/<class>/<image>."
        )
      if len(parts) == 2:
        splits[split].append(_item(tree, name, label_of[parts[0]]))
        empty.discard(parts[0])
    if empty:
      raise UserError(
        f"{tree.root}: no image in the class folders of {split}: "
        f"{enumerate_names(empty)} (looked for {', '.join(EXTENSIONS)})."
      )
    listed += len(splits[split])
  return Listing(splits, classes[first], len(tree.names) - listed)


def _item(tree: Files, name: str, label: int) -> Item:
  return Item(name, label, lambda: tree.read(name))


def _tables(tree: Files) -> dict[str, list[dict[str, str]]]:
  """The rows of the tables of labels, by the folder they lie in."""
  found = {}
  for name in tree.names:
    below, _, file = name.rpartition("/")
    if below and below not in _SPLITS:
      continue
    if file == "metadata.jsonl":
      rows = _json_lines(tree, name)
    elif file.lower().endswith(".csv"):
      text = _text(tree, name)
      rows = list(csv.DictReader(io.StringIO(text, newline="")))
    else:
      continue
    columns = set(rows[0]) if rows else set()
    if "label" not in columns or not columns & set(_NAME_COLUMNS):
      if file == "metadata.jsonl":
        raise UserError(
          f"{tree.root}: {name} must have 'file_name' and 'label' on each "
          f"line, got {enumerate_names(columns)}."
        )
      continue
    if below in found:
      raise UserError(
        f"{tree.root}: {name} is the second table with labels there; keep one."
      )
    found[below] = rows
  if "" in found and len(found) > 1:
    raise UserError(
      f"{tree.root} has tables of labels at its root and in its splits; keep "
      "one kind."
    )
  return found


def _text(tree: Files, name: str) -> str:
  try:
    return tree.read(name).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{tree.root}: {name} is not UTF-8: {error}.") from error


def _json_lines(tree: Files, name: str) -> list[dict[str, Any]]:
  rows = []
  for number, line in enumerate(_text(tree, name).splitlines(), start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      rows.append({key: value for key, value in row.items()})
    except (ValueError, AttributeError) as error:
      raise UserError(
        f"{tree.root}: line {number} of {name} is no JSON object: {error}."
      ) from error
  return rows


def _from_tables(
  tree: Files,
  tables: Mapping[str, Sequence[Mapping[str, Any]]],
  images: Sequence[str],
) -> Listing:
  known, seen, rows_of = set(images), set(), []
  for below, rows in tables.items():
    for number, row in enumerate(rows, start=1):
      column = next((c for c in _NAME_COLUMNS if row.get(c)), None)
      where = f"{tree.root}: row {number} of the table of labels"
      if column is None or row.get("label") in (None, ""):
        raise UserError(f"{where} lacks a file or a label.")
      name = f"{below}/{row[column]}" if below else str(row[column])
      if name not in known:
        raise UserError(f"{where} names {name}, which is not there.")
      if name in seen:
        raise UserError(f"{where} names {name} a second time.")
      seen.add(name)
      split = str(row.get("split") or below or "train")
      if split not in _SPLITS:
        raise UserError(
          f"{where} has split {split!r}; known: {', '.join(_SPLITS)}."
        )
      rows_of.append((_SPLITS[split], name, str(row["label"])))
  class_names = tuple(sorted({label for *_, label in rows_of}, key=natural))
  splits: dict[str, list[Item]] = {}
  for split, name, label in sorted(rows_of, key=lambda row: natural(row[1])):
    item = _item(tree, name, class_names.index(label))
    splits.setdefault(split, []).append(item)
  return Listing(splits, class_names, len(tree.names) - len(seen))


def stylegan(tree: Files) -> Listing:
  """Lists the form that StyleGAN2, StyleGAN3, StyleGAN-XL and Projected GAN use.

  That is images in any folders and a ``dataset.json`` whose ``labels`` are
  pairs of file and class index, or null; or what their sampling scripts
  leave: ``seedNNNN.png``, without labels.

  Raises:
    UserError: neither, or a label that is no class index.
  """
  images = [n for n in tree.names if n.lower().endswith(EXTENSIONS)]
  other = len(tree.names) - len(images)
  if "dataset.json" not in tree.names:
    strange = [n for n in images if not re.search(r"seed\d+\.\w+$", n)]
    if strange or not images:
      raise UserError(
        f"{tree.root} has neither a dataset.json nor images seedNNNN.png only"
        f"{f', but {strange[0]}' if strange else ''}."
      )
    return Listing({"train": [_item(tree, n, NO_LABEL) for n in images]}, ())
  try:
    pairs = json.loads(_text(tree, "dataset.json"))["labels"]
    labels = None if pairs is None else dict(pairs)
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{tree.root}: dataset.json has no 'labels' of the form [[file, class "
      f"index], ...]: {error!r}."
    ) from error
  if labels is None:
    items = [_item(tree, n, NO_LABEL) for n in images]
    return Listing({"train": items}, (), other)
  if missing := set(images) - set(labels):
    raise UserError(
      f"{tree.root}: dataset.json has no label for {enumerate_names(missing)}."
    )
  for name in images:
    label = labels[name]
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
      raise UserError(
        f"{tree.root}: dataset.json gives {name} the label {label!r}, which is "
        "no class index."
      )
  items = [_item(tree, name, labels[name]) for name in images]
  return Listing({"train": items}, _numbered(labels.values()), other)


def _numbered(labels: Collection[int]) -> tuple[str, ...]:
  return tuple(str(i) for i in range(max(labels) + 1))


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
  except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
    raise UserError(f"{path} is not a readable .npz file: {error}.") from error
  except TypeError as error:  # of an .npy file np.load gives an array
    raise UserError(f"{path} is an .npy file; save it with np.savez.") from (
      error
    )
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
    labels = _indices(path, labels, len(images))
    names = tuple(map(str, arrays.get("class_names", _numbered(labels))))
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


def _indices(path: str, labels: np.ndarray, count: int) -> np.ndarray:
  if labels.ndim == 2 and labels.shape[1] > 1:
    one_hot = (labels.sum(1) == 1).all() and np.isin(labels, (0, 1)).all()
    labels = labels.argmax(1) if one_hot else labels
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
  return labels

