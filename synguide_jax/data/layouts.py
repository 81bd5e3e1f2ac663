"""How people lay out image files: which is in which split and class.

Each function returns a :class:`Listing`; nothing here decodes an image.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import csv
import dataclasses
import io
import json
import posixpath
import re
from typing import Any, NamedTuple

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
    unlisted: Number of images that a table of labels leaves out.
  """

  splits: Mapping[str, Sequence[Item]]
  class_names: tuple[str, ...]
  other_files: int = 0
  unlisted: int = 0


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
    UserError: none of these, an empty class, images deeper down, or splits
      without class folders.
  """
  images = [n for n in tree.names if n.lower().endswith(EXTENSIONS)]
  top = [f for f in tree.folders if "/" not in f]
  # Many archives hold one folder with everything in it.
  wrapping = f"{top[0]}/" if len(top) == 1 else ""
  for base in dict.fromkeys(("", wrapping)):
    if tables := _tables(tree, base):
      return _from_tables(tree, tables, images)
  if not images and not tree.folders:
    raise UserError(
      f"{tree.root} has no image (looked for {', '.join(EXTENSIONS)})."
    )
  if not top:
    return _unlabelled(tree, images)
  base = ""
  if wrapping and top[0] not in _SPLITS and not _flat(tree, top[0]):
    base = wrapping
    top = [f for f in tree.folders if f.startswith(base) and f.count("/") == 1]
  return _class_folders(tree, images, _split_roots(tree, base, top))


def _split_roots(tree: Files, base: str, top: Sequence[str]) -> dict[str, str]:
  """Where the class folders of each split are."""
  names = [f.removeprefix(base) for f in top]
  flat = [f for f in top if _flat(tree, f)]
  # A class may be called "train", too: beside others, or alone.
  if not all(name in _SPLITS for name in names) or len(flat) == len(top) == 1:
    return {"train": base}
  if flat:
    raise UserError(
      f"{tree.root}: no class folders in {enumerate_names(flat)}; images are "
      "expected as <split>/<class>/<image>, or with a table of labels."
    )
  roots = {_SPLITS[n]: f"{f}/" for n, f in zip(names, top, strict=True)}
  if len(roots) < len(top):
    raise UserError(f"{tree.root}: has both val and validation.")
  return roots


def _unlabelled(tree: Files, images: Sequence[str]) -> Listing:
  items = [_item(tree, name, NO_LABEL) for name in images]
  return Listing({"train": items}, (), len(tree.names) - len(items))


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
  splits, stray = {}, set(images)
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
        stray.remove(name)
        empty.discard(parts[0])
    if empty:
      raise UserError(
        f"{tree.root}: no image in the class folders of {split}: "
        f"{enumerate_names(empty)} (looked for {', '.join(EXTENSIONS)})."
      )
  if stray:
    raise UserError(
      f"{tree.root} has images beside its class folders, {len(stray)} in all, "
      f"such as {min(stray)}; put them in one, or add a metadata.jsonl."
    )
  return Listing(splits, classes[first], len(tree.names) - len(images))


def _item(tree: Files, name: str, label: int) -> Item:
  return Item(name, label, lambda: tree.read(name))


def _tables(tree: Files, base: str) -> dict[str, list[dict[str, Any]]]:
  """The rows of the tables of labels in a folder or its splits, by name."""
  found = {}
  for name in tree.names:
    below, _, file = name.removeprefix(base).rpartition("/")
    if not name.startswith(base) or (below and below not in _SPLITS):
      continue
    if file == "metadata.jsonl":
      rows = _json_lines(tree, name)
    elif file.lower().endswith(".csv"):
      rows = _csv_rows(tree, name)
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
    found[name] = rows
  depths = {name.count("/") for name in found}
  if len({posixpath.dirname(name) for name in found}) < len(found) or (
    len(depths) > 1
  ):
    raise UserError(
      f"{tree.root} has several tables of labels, {enumerate_names(found)}; "
      "keep one, or one in each split."
    )
  return found


def _text(tree: Files, name: str) -> str:
  try:
    return tree.read(name).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{tree.root}: {name} is not UTF-8: {error}.") from error


def _csv_rows(tree: Files, name: str) -> list[dict[str, Any]]:
  text = io.StringIO(_text(tree, name), newline="")
  try:
    return list(csv.DictReader(text, skipinitialspace=True))
  except csv.Error as error:
    raise UserError(f"{tree.root}: {name} is no CSV file: {error}.") from error


def _json_lines(tree: Files, name: str) -> list[dict[str, Any]]:
  rows = []
  for number, line in enumerate(_text(tree, name).split("\n"), start=1):
    if not line.strip():
      continue
    try:
      rows.append(dict(json.loads(line).items()))
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
  for table, rows in tables.items():
    below = table[: table.rfind("/") + 1]
    folder_split = posixpath.basename(below.rstrip("/"))
    if folder_split not in _SPLITS:
      folder_split = "train"
    for number, row in enumerate(rows, start=1):
      column = next((c for c in _NAME_COLUMNS if row.get(c)), None)
      where = f"{tree.root}: row {number} of {table}"
      if column is None or row.get("label") in (None, ""):
        raise UserError(f"{where} lacks a file or a label.")
      name = f"{below}{row[column]}"
      if name not in known:
        fault = "not there"
        if name in tree.names:
          fault = f"no image (known: {', '.join(EXTENSIONS)})"
        raise UserError(f"{where} names {name}, which is {fault}.")
      if name in seen:
        raise UserError(f"{where} names {name} a second time.")
      seen.add(name)
      split = str(row.get("split") or folder_split)
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
  other = len(tree.names) - len(images)
  return Listing(splits, class_names, other, len(images) - len(seen))


def stylegan(tree: Files) -> Listing:
  """Lists what StyleGAN2, StyleGAN3, StyleGAN-XL and Projected GAN use.

  That is images in any folders and a ``dataset.json`` whose ``labels`` are
  pairs of file and class index, or null; or what their sampling scripts
  leave: ``seedNNNN.png``, without labels.

  Raises:
    UserError: neither, or a label that is no class index.
  """
  images = [n for n in tree.names if n.lower().endswith(EXTENSIONS)]
  # It may lie in a folder that holds everything.
  tables = [n for n in tree.names if re.fullmatch("([^/]+/)?dataset.json", n)]
  if not tables:
    strange = [n for n in images if not re.search(r"seed\d+\.\w+$", n)]
    if strange or not images:
      raise UserError(
        f"{tree.root} has neither a dataset.json nor images seedNNNN.png only"
        f"{f', but {strange[0]}' if strange else ''}."
      )
    return _unlabelled(tree, images)
  table = min(tables, key=len)
  labels = _labels_by_name(tree, table)
  if labels is None and images:
    return _unlabelled(tree, images)
  below = table.removesuffix("dataset.json")
  labels = {f"{below}{name}": label for name, label in (labels or {}).items()}
  if missing := set(images) - set(labels):
    raise UserError(
      f"{tree.root}: {table} has no label for {enumerate_names(missing)}."
    )
  if missing := set(labels) - set(images):
    raise UserError(
      f"{tree.root}: {table} names {enumerate_names(missing)}, which is not "
      "there."
    )
  if not images:
    raise UserError(f"{tree.root} has no image.")
  for name, label in labels.items():
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
      raise UserError(
        f"{tree.root}: {table} gives {name} the label {label!r}, which is no "
        "class index."
      )
  items = [_item(tree, name, labels[name]) for name in images]
  other = len(tree.names) - len(images)
  return Listing({"train": items}, numbered(labels.values()), other)


def _labels_by_name(tree: Files, table: str) -> dict[str, Any] | None:
  text = _text(tree, table)
  try:
    pairs = json.loads(text)["labels"]
    return None if pairs is None else dict(pairs)
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{tree.root}: {table} has no 'labels' of the form [[file, class index], "
      f"...], or null: {error!r}."
    ) from error


def numbered(labels: Collection[int]) -> tuple[str, ...]:
  """Names of classes that have none: their indices."""
  return tuple(str(i) for i in range(max(labels) + 1))
