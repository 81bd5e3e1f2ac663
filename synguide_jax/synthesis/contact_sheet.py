"""A page of images to look at before a synthetic set is trusted."""

from collections.abc import Sequence
import math
import os

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from synguide_jax.errors import UserError

_CELL = 48  # Smallest height of an enlarged image where scale is None, pixels.
_GAP = 2  # Between images, pixels.
_BACKGROUND, _INK = (255, 255, 255), (0, 0, 0)


def contact_sheet(
  images: np.ndarray,
  labels: np.ndarray,
  class_names: Sequence[str],
  path: str | os.PathLike[str],
  per_class: int = 20,
  scale: int | None = None,
) -> None:
  """Writes a PNG with one row of images for each class, and its name.

  A row shows the first images of its class, in the order given, and stays
  empty where there are none: a missing class is seen.

  Args:
    images: uint8 ``[N, H, W, C]`` with one or three channels.
    labels: Class indices, ``[N]``.
    class_names: Names of the classes, in label order.
    path: File to write; its folder must exist.
    per_class: Images in a row, at most.
    scale: Factor by which images are enlarged, without smoothing; by default
      the smallest that makes them at least 48 pixels high.

  Raises:
    ValueError: If an argument has another type, shape or range.
  """
  images, labels = np.asarray(images), np.asarray(labels)
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
  height, width = images.shape[1:3]
  if scale is None:
    scale = max(1, math.ceil(_CELL / height))
  if scale < 1 or per_class < 1 or not class_names:
    raise UserError(
      f"scale ({scale}), per_class ({per_class}) and the number of class_names "
      f"({len(class_names)}) must be at least 1."
    )
  cell = (width * scale, height * scale)

  font_size = min(24, max(12, cell[1] // 3))
  font = ImageFont.load_default(font_size)
  left = math.ceil(max(font.getlength(name) for name in class_names)) + 2 * _GAP
  row_height = max(cell[1], font_size + _GAP) + _GAP
  sheet = Image.new(
    "RGB",
    (
      left + per_class * (cell[0] + _GAP),
      _GAP + len(class_names) * row_height,
    ),
    _BACKGROUND,
  )
  draw = ImageDraw.Draw(sheet)
  for c, name in enumerate(class_names):
    top = _GAP + c * row_height
    middle = top + (row_height - _GAP) // 2
    draw.text((_GAP, middle), name, fill=_INK, font=font, anchor="lm")
    for n, i in enumerate(np.flatnonzero(labels == c)[:per_class]):
      pixels = images[i, :, :, 0] if images.shape[-1] == 1 else images[i]
      tile = Image.fromarray(pixels).resize(cell, Image.Resampling.NEAREST)
      sheet.paste(tile, (left + n * (cell[0] + _GAP), top))
  sheet.save(path, format="PNG")
