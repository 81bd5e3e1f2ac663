"""Images that are part of a page: strips of small ones, and figures."""

import base64
from collections.abc import Sequence
import functools
import io
from pathlib import Path
import re

from markupsafe import Markup
from PIL import Image

from synguide_jax.analysis.figure_parts import INK, PAPER
from synguide_jax.errors import UserError

_CELL, _GAP = 48, 2  # of a strip, pixels
_ALL = 8192  # images that are kept, read once for several strips


def strip(workdir: Path, rows: Sequence[Sequence[str]]) -> str:
  """Joins images to one, so that a page has few.

  Args:
    workdir: The folder that files are relative to.
    rows: Files, a row each, from above.

  Returns:
    A data URI: a PNG, or a WebP where one is larger than 48 pixels. Images are
    fitted into squares of that size, small ones enlarged without smoothing.

  Raises:
    UserError: A file cannot be read.
  """
  tiles = [[_tile(workdir / name) for name in row] for row in rows]
  step = _CELL + _GAP
  width = max(map(len, rows)) * step - _GAP
  # What no image fills shows the page.
  sheet = Image.new("RGBA", (width, len(rows) * step - _GAP))
  for y, row in enumerate(tiles):
    for x, tile in enumerate(row):
      left, top = ((_CELL - size) // 2 for size in tile.size)
      sheet.paste(tile, (x * step + left, y * step + top))
  small = all(tile.info["small"] for row in tiles for tile in row)
  kind, options = ("png", {}) if small else ("webp", {"quality": 85})
  encoded = io.BytesIO()
  sheet.save(encoded, kind, **options)
  text = base64.b64encode(encoded.getvalue()).decode()
  return f"data:image/{kind};base64,{text}"


@functools.lru_cache(maxsize=_ALL)
def _tile(path: Path) -> Image.Image:
  try:
    with Image.open(path) as image:
      tile = image.convert("RGB")
  except OSError as e:
    raise UserError(
      f"{path}: an image that analysis.json names cannot be read ({e}); run "
      "analyze again."
    ) from e
  longest = max(tile.size)
  if small := longest <= _CELL:
    scale = _CELL // longest
    size = tuple(scale * length for length in tile.size)
    tile = tile.resize(size, Image.Resampling.NEAREST)
  else:
    tile.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
  tile.info["small"] = small
  return tile


def inline(svg: Path, alt: str) -> Markup:
  """Makes a figure part of a page, in its ink and on its paper.

  Args:
    svg: What `figures.draw` wrote.
    alt: What it shows, for who does not see it.
  """
  text = svg.read_text(encoding="utf-8")
  text = text[text.index("<svg") :]
  text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
  text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
  text = text.replace(INK, "currentColor").replace(PAPER, "none")
  # Names are of the whole page.
  text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{svg.stem}-", text)
  box = re.search(r'viewBox="[^"]*"', text).group()
  head = Markup('<svg role="img" aria-label="{}" ').format(alt)
  return head + Markup(f"{box}>" + text[text.index(">") + 1 :])
