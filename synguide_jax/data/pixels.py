"""The pixels of an experiment's images, by number; decoded when asked for."""

from collections.abc import Callable, Sequence
import hashlib

import numpy as np

from synguide_jax import cache
from synguide_jax.data import decode, decoded
from synguide_jax.data.records import Records

_BLOCK = 512  # encoded images in memory at a time


class Pixels:
  """Images of several sets under one numbering. Pickled, it opens them anew.

  Args:
    parts: Records and the rows of them that are used; their images are
      numbered one part after the other.
    size: Height and width to make them, pixels.
    channels: 1 (grey) or 3 (RGB).

  Attributes:
    shape: ``(N, size, size, channels)``.
  """

  def __init__(
    self,
    parts: Sequence[tuple[Records, np.ndarray]],
    size: int,
    channels: int,
  ):
    self._parts = tuple(parts)
    self._starts = np.cumsum([0, *(len(rows) for _, rows in parts)])
    self.shape = (int(self._starts[-1]), size, size, channels)

  def __len__(self) -> int:
    return self.shape[0]

  @property
  def nbytes(self) -> int:
    """Size of all images, decoded."""
    return int(np.prod(self.shape, dtype=np.int64))

  @property
  def fingerprint(self) -> str:
    """Says what :meth:`read` returns, whatever files it comes from."""
    digest = hashlib.sha256()
    for records, rows in self._parts:
      digest.update(records.index.hashes[rows].tobytes())
    return cache.fingerprint(
      {
        "hashes": digest.hexdigest(),
        "shape": self.shape,
        "decoder": decode.version(),
      }
    )

  def resized(self, size: int) -> "Pixels":
    """The same images, made with another height and width."""
    return Pixels(self._parts, size, self.shape[3])

  def read(
    self,
    indices: np.ndarray | None = None,
    threads: int | None = None,
    empty: Callable[..., np.ndarray] = np.empty,
  ) -> np.ndarray:
    """Decodes images.

    Args:
      indices: Their numbers, of any shape; by default all.
      threads: Threads that decode; by default one a core.
      empty: Called as ``np.empty``, makes the array that is returned.

    Returns:
      uint8 ``[..., size, size, channels]``.
    """
    indices = np.arange(len(self)) if indices is None else np.asarray(indices)
    flat, size, channels = indices.ravel(), self.shape[1], self.shape[3]
    found = empty((*indices.shape, *self.shape[1:]), np.uint8)
    images = np.asarray(found).reshape(len(flat), *self.shape[1:])
    arrays = decode.in_threads(
      lambda encoded: decode.decode(encoded, size, channels),
      self._encoded(flat),
      threads,
    )
    for image, pixels in zip(images, arrays, strict=True):
      image[:] = pixels
    return found

  def read_all(self) -> np.ndarray:
    """Returns all images, which are kept decoded; see :func:`decoded.read`."""
    return decoded.read(self.fingerprint, self.shape, self.read)

  def _encoded(self, indices: np.ndarray):
    part_of = np.searchsorted(self._starts, indices, side="right") - 1
    for start in range(0, len(indices), _BLOCK):
      here = slice(start, start + _BLOCK)
      found = [b""] * len(indices[here])
      for number in np.unique(part_of[here]):
        records, rows = self._parts[number]
        places = np.flatnonzero(part_of[here] == number)
        wanted = rows[indices[here][places] - self._starts[number]]
        for place, encoded in zip(places, records.encoded(wanted), strict=True):
          found[place] = encoded
      yield from found
