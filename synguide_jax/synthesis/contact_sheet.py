"""Pages of images to look at before a synthetic set is trusted."""

from collections.abc import Sequence
import io
import math
import os
from pathlib import Path
import re

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from synguide_jax.cache import write_whole
from synguide_jax.errors import UserError

SHOWN = 100  # Images of a class on its own sheet, at most.
_COLUMNS = 10  # Of that sheet.
_CELL = 48  # Smallest height of an enlarged image where scale is None, pixels.
_GAP = 2  # Between images, pixels.
_BACKGROUND, _INK = (255, 255, 255), (0, 0, 0)


def contact_sheets(
  images: np.ndarray,
  labels: np.ndarray,
  class_names: Sequence[str],
  folder: str | os.PathLike[str],
) -> list[Path]:
  """Writes an overview of all classes, and a PNG of each.

  The overview, ``contact_sheet.png``, has a row of 20 images a class. A class's
  own, ``contact_sheets/<label>_<name>.png``, has its first 100, ten a row.
  The overview is written last: where it is, all are.

  Args:
    images: uint8 ``[N, H, W, C]`` with one or three channels; of a large set
      the first ``SHOWN`` of each class are enough.
    labels: Class indices, ``[N]``.
    class_names: Names of the classes, in label order.
    folder: Where to write; it must exist.

  Returns:
    The files, the overview first.

  Raises:
    UserError: An argument has another type, shape or range.
  """
  images, labels = np.asarray(images), np.asarray(labels)
  _check(images, labels, class_names)
  overview = Path(folder) / "contact_sheet.png"
  sheets = Path(folder) / "contact_sheets"
  sheets.mkdir(exist_ok=True)
  digits = max(2, len(str(len(class_names) - 1)))
  paths = [overview]
  for c, name in enumerate(class_names):
    chosen = np.flatnonzero(labels == c)[:SHOWN]
    # Long enough to be told, and below what file systems allow.
    safe = re.sub(r"[^\w-]+", "_", name)[:50]
    paths.append(sheets / f"{c:0{digits}}_{safe}.png")
    contact_sheet(
      images[chosen],
      np.zeros(len(chosen), int),
      [name],
      paths[-1],
      columns=_COLUMNS,
      rows=max(1, math.ceil(len(chosen) / _COLUMNS)),
    )
  contact_sheet(images, labels, class_names, overview)
  return paths


def contact_sheet(
  images: np.ndarray,
  labels: np.ndarray,
  class_names: Sequence[str],
  path: str | os.PathLike[str],
  columns: int = 20,
  scale: int | None = None,
  rows: int = 1,
) -> None:
  """Writes a PNG with a row of images for each class, or rows, and its name.

  They show the first images of the class, in the order given, and stay empty
  where there are none: a missing class is seen.

  Args:
    images: uint8 ``[N, H, W, C]`` with one or three channels.
    labels: Class indices, ``[N]``.
    class_names: Names of the classes, in label order.
    path: File to write; its folder must exist.
    columns: Images in a row, at most.
    scale: Factor by which images are enlarged, without smoothing; by default
      the smallest that makes them at least 48 pixels high.
    rows: Rows of a class.

  Raises:
    UserError: An argument has another type, shape or range.
  """
  images, labels = np.asarray(images), np.asarray(labels)
  _check(images, labels, class_names)
  height, width = images.shape[1:3]
  if scale is None:
    scale = max(1, math.ceil(_CELL / height))
  if min(scale, columns, rows) < 1:
    raise UserError(
      f"scale ({scale}), columns ({columns}) and rows ({rows}) must all be at "
      "least 1."
    )
  cell = (width * scale, height * scale)

  font_size = min(24, max(12, cell[1] // 3))
  font = ImageFont.load_default(font_size)
  left = math.ceil(max(font.getlength(name) for name in class_names)) + 2 * _GAP
  step = (cell[0] + _GAP, max(cell[1], font_size + _GAP) + _GAP)
  sheet = Image.new(
    "RGB",
    (left + columns * step[0], _GAP + len(class_names) * rows * step[1]),
    _BACKGROUND,
  )
  draw = ImageDraw.Draw(sheet)
  for c, name in enumerate(class_names):
    top = _GAP + c * rows * step[1]
    middle = top + (rows * step[1] - _GAP) // 2
    draw.text((_GAP, middle), name, fill=_INK, font=font, anchor="lm")
    for n, i in enumerate(np.flatnonzero(labels == c)[: rows * columns]):
      pixels = images[i, :, :, 0] if images.shape[-1] == 1 else images[i]
      tile = Image.fromarray(pixels).resize(cell, Image.Resampling.NEAREST)
      row, column = divmod(n, columns)
      sheet.paste(tile, (left + column * step[0], top + row * step[1]))
  encoded = io.BytesIO()
  sheet.save(encoded, format="PNG")
  write_whole(Path(path), encoded.getvalue())


def _check(
  images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> None:
  if (
    images.dtype != np.uint8
    or images.ndim != 4
    or images.shape[-1] not in (1, 3)
  ):
    raise UserError(
      "A contact sheet needs uint8 images [N, H, W, 1 or 3], got "
      f"{images.dtype} {list(images.shape)}."
    )
  if labels.shape != images.shape[:1]:
    raise UserError(
      f"{len(images)} images need labels of shape [{len(images)}], got "
      f"{list(labels.shape)}."
    )
  if labels.size and not 0 <= labels.min() <= labels.max() < len(class_names):
    raise UserError(
      f"labels must be in [0, {len(class_names)}), the number of class_names, "
      f"got values from {labels.min()} to {labels.max()}."
    )
  if not class_names:
    raise UserError("class_names are none; give at least one.")
