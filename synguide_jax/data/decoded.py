"""Decoded images, kept so that the next start need not decode them again."""

import contextlib
import os
from pathlib import Path
from typing import Any
import zipfile

import filelock
import numpy as np

from synguide_jax import cache


def read(
  pixels: Any, *, least_bytes: int = 16 << 20, kept_bytes: int = 4 << 30
) -> np.ndarray:
  """Returns all images: those kept, or decoded and then kept.

  They are kept in ``<cache>/decoded``, named after what the pixels are. Nothing
  is lost with a file of it, and one that is damaged is written again.

  Args:
    pixels: The images, a :class:`~synguide_jax.data.pixels.Pixels`.
    least_bytes: What is smaller is decoded in about a second, and not kept.
    kept_bytes: Of all files together; the longest unused go first.

  Returns:
    uint8, of the shape of ``pixels``.
  """
  if not least_bytes <= pixels.nbytes <= kept_bytes:
    return pixels.read()
  file = cache.cache_dir() / "decoded" / f"{pixels.fingerprint}.npz"
  kept = _load(file)
  if kept is not None:
    return kept
  images = pixels.read()
  # It is only a cache: the disk may be full, the folder read-only, or another
  # process at it, which is a TimeoutError.
  with contextlib.suppress(OSError):
    _keep(file, images, kept_bytes)
  return images


def _load(file: Path) -> np.ndarray | None:
  try:
    # np.load would leave a damaged file open. Checksums are zipfile's.
    with file.open("rb") as stream:
      with np.load(stream, allow_pickle=False) as arrays:
        images = arrays["images"]
  except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
    return None
  with contextlib.suppress(OSError):
    os.utime(file)  # the time of its use
  return images


def _keep(file: Path, images: np.ndarray, kept_bytes: int) -> None:
  folder = file.parent
  folder.mkdir(parents=True, exist_ok=True)
  with filelock.FileLock(folder / ".lock").acquire(timeout=0):
    # Of killed processes: with the lock, nobody else is writing.
    for leftover in cache.leftovers(folder):
      leftover.unlink()
    partial = cache.partial(file)
    try:
      with partial.open("wb") as stream:
        np.savez(stream, images=images)
      partial.replace(file)
    finally:
      partial.unlink(missing_ok=True)
    total = 0
    for one in sorted(folder.glob("*.npz"), key=_last_use, reverse=True):
      total += one.stat().st_size
      if total > kept_bytes:
        one.unlink()


def _last_use(file: Path) -> float:
  return file.stat().st_mtime
