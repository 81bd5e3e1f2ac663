"""Decoded images, kept so that the next start need not decode them again."""

from collections.abc import Callable
import contextlib
import errno
import math
import os
from pathlib import Path
import shutil
import zlib

from absl import logging
import filelock
import numpy as np

from synguide_jax import cache

_CHECKSUM = 4  # bytes, behind the pixels


def read(
  name: str,
  shape: tuple[int, ...],
  decode: Callable[[], np.ndarray],
  *,
  least_bytes: int = 16 << 20,
  kept_bytes: int = 4 << 30,
) -> np.ndarray:
  """Returns images that were kept, or else decodes and keeps them.

  They are kept in ``<cache>/decoded``. Nothing is lost with a file of it; one
  that is damaged is written again. Where none can be written, a warning says
  why.

  Args:
    name: Of the images; others have another.
    shape: Theirs.
    decode: Returns them, uint8 of that shape.
    least_bytes: Smaller images are not kept.
    kept_bytes: Of all files together; the longest unused go first. Nor are
      larger images kept.

  Returns:
    What ``decode`` returned.
  """
  size = math.prod(shape) + _CHECKSUM
  if not least_bytes <= size <= kept_bytes:
    return decode()
  file = cache.cache_dir() / "decoded" / f"{name}.pixels"
  kept = _load(file, size)
  if kept is not None:
    return kept.reshape(shape)
  images = decode()
  try:
    _keep(file, images, kept_bytes - size)
  except filelock.Timeout:
    pass  # Another process is writing, most likely the same images.
  # filelock's where a file system has no locks.
  except (OSError, NotImplementedError) as error:
    logging.warning(
      "Every start decodes these images anew, since they cannot be kept in %s: "
      "%s",
      file.parent,
      error,
    )
  return images


def _load(file: Path, size: int) -> np.ndarray | None:
  try:
    with file.open("rb") as stream:
      # One byte more, so that a longer file is none of these.
      content = np.empty(size + 1, np.uint8)
      whole = stream.readinto(content) == size
  except OSError:
    return None
  pixels, checksum = np.split(content[:size], [size - _CHECKSUM])
  whole = whole and checksum.tobytes() == _checksum(pixels)
  if not whole:
    return None
  # The time of its use; whoever may only read evicts nothing, either.
  with contextlib.suppress(OSError):
    os.utime(file)
  return pixels


def _checksum(pixels: np.ndarray) -> bytes:
  return zlib.crc32(pixels).to_bytes(_CHECKSUM, "little")


def _keep(file: Path, images: np.ndarray, others_bytes: int) -> None:
  folder = file.parent
  folder.mkdir(parents=True, exist_ok=True)
  with filelock.FileLock(folder / ".lock").acquire(timeout=0):
    if _load(file, images.nbytes + _CHECKSUM) is not None:
      return  # Another process was faster.
    # Of killed processes: with the lock, nobody else is writing.
    for leftover in cache.leftovers(folder):
      leftover.unlink()
    room, unused = shutil.disk_usage(folder).free, []
    for other in sorted(folder.glob("*.pixels"), key=_last_use, reverse=True):
      size = other.stat().st_size
      others_bytes -= size
      if others_bytes < 0:
        room += size
        unused.append(other)
    # As much is to stay free as is taken.
    if room < 2 * images.nbytes:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for other in unused:
      other.unlink()
    with cache.whole_file(file) as stream:
      images.tofile(stream)
      stream.write(_checksum(images))


def _last_use(file: Path) -> float:
  return file.stat().st_mtime
