"""Image files to arrays: what is converted, and what is noted of a file."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
import contextlib
import hashlib
import io
import itertools
import math
import os
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import ExifTags, features, Image, ImageOps, UnidentifiedImageError

T, R = TypeVar("T"), TypeVar("R")

# Kept as they are where nothing has to be converted; TensorFlow reads them too.
_KEPT = ("JPEG", "PNG", "BMP")
_ARRAY = "array"  # format of what was in no file
LOSSLESS = ("PNG", "BMP", _ARRAY)
# Where Pillow looks for transparency and rotation of an image without alpha.
_METADATA = {"transparency", "exif", "Raw profile type exif", "xmp"}
_METADATA |= {"XML:com.adobe.xmp"}
# Of what :func:`decode` makes of a file. To be raised when that changes.
_VERSION = 1
_CHUNK = 32  # images that a thread is given at a time


class Facts(NamedTuple):
  """What is known of an image without looking at it again.

  Attributes:
    hash: Of its pixels and shape; a grey image in RGB counts as grey.
    format: Of the file it came in, such as ``"JPEG"``; ``"array"``: none.
    width: Pixels.
    height: Pixels.
    grey: Whether it has one channel.
    quantization: Mean of a JPEG file's luminance quantisation table, else 0.
  """

  hash: int
  format: str
  width: int
  height: int
  grey: bool
  quantization: float


class Canonical(NamedTuple):
  """An image as sets store it: 8 bits, grey or RGB, upright, opaque.

  Attributes:
    encoded: The file's own content, or a PNG where that had to be converted.
    facts: See :class:`Facts`.
    remarks: What was converted.
    constant: Whether all its pixels are the same.
  """

  encoded: bytes
  facts: Facts
  remarks: tuple[str, ...]
  constant: bool


def canonical(image: bytes | np.ndarray) -> Canonical:
  """Converts an image to what sets store.

  Args:
    image: The content of an image file, or uint8 ``[H, W, 1 or 3]``.

  Returns:
    See :class:`Canonical`.

  Raises:
    ValueError: it is no image, truncated, or a decompression bomb.
  """
  if isinstance(image, np.ndarray):
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    im, remarks = Image.fromarray(squeezed), []
    name, quantization, encoded = _ARRAY, 0.0, None
  else:
    with _opened(image) as im:
      # Phones put further pictures behind the first one of a JPEG file.
      name = "JPEG" if im.format == "MPO" else im.format
      tables = getattr(im, "quantization", None)
      quantization = float(np.mean(tables[0])) if tables else 0.0
      im, remarks = _upright(im)
    encoded = image if name in _KEPT and not remarks else None
  pixels = np.asarray(im)
  if encoded is None:
    file = io.BytesIO()
    im.save(file, "png")
    encoded = file.getvalue()
  facts = Facts(
    _hash(pixels), name, im.width, im.height, im.mode == "L", quantization
  )
  constant = bool((pixels == pixels[0, 0]).all())
  return Canonical(encoded, facts, tuple(remarks), constant)


def decode(encoded: bytes, size: int, channels: int) -> np.ndarray:
  """Decodes an image of a set and makes it fit.

  One whose size differs is resized (bicubic, antialiased) so that its shorter
  side fits, and cropped to its central square.

  Args:
    encoded: As :attr:`Canonical.encoded`, or a file of another's tfds set.
    size: Height and width, pixels.
    channels: 1 or 3.

  Returns:
    uint8 ``[size, size, channels]``.

  Raises:
    ValueError: see :func:`canonical`.
  """
  mode = "L" if channels == 1 else "RGB"
  with _opened(encoded) as im:
    im.load()
    if not _is_plain(im):
      im = _upright(im)[0]
    if im.mode != mode:
      im = im.convert(mode)
  if im.size != (size, size):
    side = min(im.size)
    left, top = (im.width - side) / 2, (im.height - side) / 2
    im = im.resize(
      (size, size),
      Image.Resampling.BICUBIC,
      box=(left, top, left + side, top + side),
    )
  return np.asarray(im).reshape(size, size, channels)


def version() -> tuple[str, ...]:
  """Says by what :func:`decode` decodes, resizes and converts images."""
  libraries = map(features.version, ("pil", "jpg", "libjpeg_turbo"))
  return (str(_VERSION), *map(str, libraries))


def in_threads(
  function: Callable[[T], R], items: Iterable[T], threads: int | None = None
) -> Iterator[R]:
  """Yields ``function(item)`` in order; takes only a few items ahead.

  Pillow decodes, resizes and encodes outside of the interpreter's lock.
  """
  threads = threads or os.cpu_count() or 1
  if threads == 1:
    yield from map(function, items)
    return
  items = iter(items)

  def chunk(part):
    return [function(item) for item in part]

  with ThreadPoolExecutor(threads) as pool:
    pending = []
    while True:
      part = list(itertools.islice(items, _CHUNK))
      if part:
        pending.append(pool.submit(chunk, part))
      if not pending:
        return
      if not part or len(pending) > 2 * threads:
        yield from pending.pop(0).result()


@contextlib.contextmanager
def _opened(encoded: bytes) -> Iterator[Image.Image]:
  """Opens a file; whatever Pillow raises becomes a ValueError."""
  try:
    with Image.open(io.BytesIO(encoded)) as im:
      # Pillow itself only warns of these, up to twice the size.
      if im.width * im.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(f"decompression bomb: {im.width}x{im.height} pixels")
      yield im
  except UnidentifiedImageError as error:
    raise ValueError("not an image") from error
  except Exception as error:  # Pillow raises many types for a damaged file
    raise ValueError(str(error) or type(error).__name__) from error


def _is_plain(im: Image.Image) -> bool:
  """Whether an image needs nothing but decoding, as most."""
  return im.mode in ("L", "RGB") and not im.info.keys() & _METADATA


def _upright(im: Image.Image) -> tuple[Image.Image, list[str]]:
  """Returns the image in mode "L" or "RGB", and what was done to it."""
  remarks = []
  # Pillow reduces 16-bit colour itself while loading, leaving no other trace.
  if ";16B" in str(im.tile):
    remarks.append("16-bit to 8-bit")
  im.load()
  if _is_plain(im):
    return im, remarks
  if im.getexif().get(ExifTags.Base.Orientation, 1) != 1:
    remarks.append("EXIF rotation")
    im = ImageOps.exif_transpose(im)
  if im.mode.startswith("I"):
    # convert("L") would clip. 65535 / 255 = 257.
    values = np.asarray(im).astype(np.int64)
    values = np.clip((values + 128) // 257, 0, 255)
    im = Image.fromarray(values.astype(np.uint8))
  grey = im.mode in ("1", "L", "LA", "La", "F")
  if im.mode in ("P", "PA"):
    remarks.append("palette")
  if im.mode == "CMYK":
    remarks.append("CMYK")
  if im.has_transparency_data:
    remarks.append("transparency")
    im = im.convert("RGBA")
    im = Image.alpha_composite(Image.new("RGBA", im.size, "white"), im)
  return im.convert("L" if grey else "RGB"), remarks


def _hash(pixels: np.ndarray) -> int:
  if (
    pixels.ndim == 3
    and (
      (pixels[..., 0] == pixels[..., 1]) & (pixels[..., 1] == pixels[..., 2])
    ).all()
  ):
    pixels = pixels[..., 0]
  shape = np.array(pixels.shape, np.int64).tobytes()
  content = shape + np.ascontiguousarray(pixels).tobytes()
  return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())
