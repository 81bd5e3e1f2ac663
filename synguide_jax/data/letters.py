"""Rendered letters: a set to pretrain on that needs no network.

Grey images of 8x8 pixels, A-Z and a-z, drawn with the DejaVu fonts that come
with matplotlib. They relate to the digits as ImageNet does to a small set of
photographs: other classes, but the same kind of strokes.
"""

from collections.abc import Iterator
import functools
import math
from pathlib import Path
import string

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from synguide_jax.cache import fingerprint
from synguide_jax.data import prepared

NAME = "synguide_letters"
VERSION = 1
CLASS_NAMES = tuple(string.ascii_uppercase + string.ascii_lowercase)
NUM_IMAGES = 12_000

_SIZE = 8  # pixels of the final image
_OVERSAMPLING = 5  # pixels drawn for one of them, along each axis
_CANVAS = 96  # pixels of a cached glyph's image
_CAP_HEIGHT = 40.0  # pixels of a capital letter on the canvas
_MAX_STROKE = 2  # pixels added around a glyph's outline


def examples(
  num_images: int = NUM_IMAGES, seed: int = 0
) -> Iterator[tuple[np.ndarray, int]]:
  """Yields images, uint8 ``[8, 8, 1]``, bright on black, and their labels.

  Image i shows letter i modulo 52 and depends on nothing but the seed and i.
  """
  for i in range(num_images):
    label = i % len(CLASS_NAMES)
    rng = np.random.default_rng((seed, i))
    yield _draw(CLASS_NAMES[label], rng), label


def prepare() -> Path:
  """Stores the set, unless it is there already; returns its folder."""
  settings = {"version": VERSION, "num_images": NUM_IMAGES, "seed": 0}
  return prepared.prepare(
    NAME,
    fingerprint(settings),
    examples,
    CLASS_NAMES,
    provenance={
      "origin": "rendered with the DejaVu fonts of matplotlib",
      "fonts": [path.name for path in _fonts()],
      "pillow": PIL.__version__,
      **settings,
    },
  )


@functools.cache
def _fonts() -> tuple[Path, ...]:
  import matplotlib

  folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
  # The two Display fonts hold mathematical symbols only.
  return tuple(
    path
    for path in sorted(folder.glob("DejaVu*.ttf"))
    if "Display" not in path.name
  )


@functools.cache
def _font(path: Path) -> ImageFont.FreeTypeFont:
  # Basic layout, since whether Raqm is there depends on the installation.
  def load(size):
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)

  left, top, right, bottom = load(100).getbbox("H")
  return load(100 * _CAP_HEIGHT / (bottom - top))


@functools.cache
def _glyph(
  path: Path, letter: str, stroke: int
) -> tuple[Image.Image, int, int]:
  """Returns a letter in the middle of a canvas, its width and its height."""
  font = _font(path)
  left, top, right, bottom = font.getbbox(letter, stroke_width=stroke)
  image = Image.new("L", (_CANVAS, _CANVAS))
  ImageDraw.Draw(image).text(
    (_CANVAS / 2 - (left + right) / 2, _CANVAS / 2 - (top + bottom) / 2),
    letter,
    fill=255,
    font=font,
    stroke_width=stroke,
  )
  return image, right - left, bottom - top


def _draw(letter: str, rng: np.random.Generator) -> np.ndarray:
  path = _fonts()[rng.integers(len(_fonts()))]
  # Bold fonts are as heavy as the digits are without any extra stroke.
  heaviest = 0 if "Bold" in path.name else _MAX_STROKE
  stroke = int(rng.integers(heaviest + 1))
  angle = math.radians(np.clip(rng.normal(scale=8), -20, 20))
  shear = rng.uniform(-0.2, 0.2)
  stretch = math.exp(rng.uniform(-0.12, 0.12))
  shift = rng.uniform(-0.4, 0.4, size=2) * _OVERSAMPLING
  fill = rng.uniform(0.88, 1.04)
  blur = rng.uniform(0, 0.3) * _OVERSAMPLING
  gamma = rng.uniform(0.6, 0.9)

  glyph, width, height = _glyph(path, letter, stroke)
  # Half way between one scale for all letters and one for each, so that most
  # of the pixels are used and an "o" is still smaller than an "O".
  scale = 1 / math.sqrt(_CAP_HEIGHT * height)
  # The digits are taller than wide.
  scale = min(scale, 1 / height, 0.85 / width) * fill * _SIZE * _OVERSAMPLING
  # PIL wants the map from the drawn image to the canvas, so it is the inverse
  # of rotation x shear x scale; both have their origin in the middle.
  cos, sin = math.cos(angle), math.sin(angle)
  x_scale, y_scale = scale * stretch, scale / stretch
  forward = np.array([[cos, -sin], [sin, cos]]) @ [
    [x_scale, shear * y_scale],
    [0, y_scale],
  ]
  inverse = np.linalg.inv(forward)
  side = _SIZE * _OVERSAMPLING
  offset = _CANVAS / 2 - inverse @ (side / 2 + shift)
  image = glyph.transform(
    (side, side),
    Image.Transform.AFFINE,
    (*inverse[0], offset[0], *inverse[1], offset[1]),
    Image.Resampling.BILINEAR,
  )
  image = image.filter(ImageFilter.BoxBlur(blur)).reduce(_OVERSAMPLING)
  pixels = np.asarray(image, np.float32)
  # A pen leaves dark strokes however thin: brighten, and use the full range.
  pixels = (pixels / pixels.max()) ** gamma
  return np.round(255 * pixels).astype(np.uint8)[..., None]
