"""A split of a stored set: still encoded images by number, and their index.

Reads array_record through tfds, which needs no TensorFlow.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import errno
import functools
from pathlib import Path
from typing import Any
import zipfile

import filelock
import numpy as np
import tqdm

from synguide_jax import cache
from synguide_jax.data import decode, files
from synguide_jax.errors import UserError

# Other sets name their files in one of these features, if at all.
_NAME_FEATURES = ("name", "file_name", "image/filename", "id")
_NOT_WRITABLE = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EACCES,
  errno.EROFS,
  errno.ENOTDIR,
)
_BLOCK = 256  # records in memory while a set is indexed


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """What is known of a split's images without decoding them, arrays ``[N]``.

  Attributes:
    names: What the files were called, below the root of their set.
    labels: int32; -1: none.
    hashes: uint64, of the pixels; see :class:`decode.Facts`, also for the rest.
    formats: Of the files.
    widths: int32, pixels.
    heights: int32, pixels.
    grey: bool.
    quantization: float32.
    confidences: float32, of a labeler; NaN: none.
  """

  names: np.ndarray
  labels: np.ndarray
  hashes: np.ndarray
  formats: np.ndarray
  widths: np.ndarray
  heights: np.ndarray
  grey: np.ndarray
  quantization: np.ndarray
  confidences: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def save(self, file: Path) -> None:
    """Writes an .npz file, all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with cache.whole_file(file) as stream:
      np.savez_compressed(stream, **vars(self))

  @classmethod
  def load(cls, file: Path) -> "Index":
    """Reads what :meth:`save` wrote, or raises UserError if it is damaged."""
    try:
      # np.load leaves a file open that is none of its own.
      with file.open("rb") as stream:
        with np.load(stream, allow_pickle=False) as arrays:
          return cls(**arrays)
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
      raise UserError(
        f"{file} is damaged ({error}); delete its folder to make it again."
      ) from error


class IndexWriter:
  """Collects the rows of an :class:`Index`."""

  def __init__(self):
    self._rows = []

  def add(
    self, name: str, label: int, facts: decode.Facts, confidence: float
  ) -> None:
    """Adds an image."""
    self._rows.append((name, label, *facts, confidence))

  def index(self) -> Index:
    """Returns the index of the images that were added."""
    columns = zip(*self._rows, strict=True) if self._rows else [()] * 9
    names, labels, hashes, formats, widths, heights, grey, tables, sure = (
      columns
    )
    return Index(
      np.asarray(names, np.str_),
      np.asarray(labels, np.int32),
      np.asarray(hashes, np.uint64),
      np.asarray(formats, np.str_),
      np.asarray(widths, np.int32),
      np.asarray(heights, np.int32),
      np.asarray(grey, np.bool_),
      np.asarray(tables, np.float32),
      np.asarray(sure, np.float32),
    )


class Records:
  """The images of a split, by number. Small when pickled.

  Args:
    folder: Folder of one version of a tfds set.
    split: Name of the split.
    index_file: Where its index is, or is to be kept.
  """

  def __init__(self, folder: Path, split: str, index_file: Path):
    self.folder, self.split = folder, split
    self._index_file = index_file

  def __reduce__(self):
    # Workers open the files anew.
    return Records, (self.folder, self.split, self._index_file)

  @functools.cached_property
  def _source(self) -> Any:
    import tensorflow_datasets as tfds

    # Images stay encoded: whoever needs them converts them while decoding.
    return builder(self.folder).as_data_source(
      split=self.split, decoders={"image": tfds.decode.SkipDecoding()}
    )

  @functools.cached_property
  def class_names(self) -> tuple[str, ...]:
    """The name of each class."""
    return tuple(builder(self.folder).info.features["label"].names)

  def __len__(self) -> int:
    return len(self._source)

  def encoded(self, rows: Sequence[int]) -> list[bytes]:
    """Returns the files' contents."""
    from tensorflow_datasets.proto import tf_example_pb2

    rows = [int(row) for row in rows]
    if not rows:
      return []
    # Not through tfds's features, which take five times as long.
    stored = self._source.data_source.__getitems__(rows)
    examples = map(tf_example_pb2.Example.FromString, stored)
    return [e.features.feature["image"].bytes_list.value[0] for e in examples]

  @functools.cached_property
  def index(self) -> Index:
    """The split's :class:`Index`; made at first use, which reads all of it."""
    file = self._index_file
    if not file.exists():
      with writable(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{file}.lock"):
          if not file.exists():
            self._make_index().save(file)
    return Index.load(file)

  def has_labels(self) -> bool:
    """Whether the first image has one; tfds marks those without by -1."""
    return int(self._source[0]["label"]) >= 0

  def _make_index(self) -> Index:
    writer, damaged = IndexWriter(), []

    def look(record):
      try:
        return record, decode.canonical(record["image"]).facts
      except ValueError as error:
        return record, str(error)

    # Seen on terminals only.
    progress = tqdm.tqdm(
      decode.in_threads(look, self._records()),
      desc=f"Reading {builder(self.folder).info.full_name}, {self.split}",
      total=len(self),
      unit=" images",
      disable=None,
      leave=False,
    )
    for number, (record, facts) in enumerate(progress):
      name = f"{self.split}[{number}]"
      for feature in _NAME_FEATURES:
        if isinstance(found := record.get(feature), (bytes, str)):
          # Text is whatever bytes its author stored.
          is_bytes = isinstance(found, bytes)
          name = found.decode(errors="replace") if is_bytes else found
          break
      if isinstance(facts, str):
        damaged.append(f"{name} ({facts})")
      else:
        writer.add(name, int(record["label"]), facts, np.nan)
    if damaged:
      raise UserError(
        f"{self.folder}, split {self.split}: {len(damaged)} images cannot be "
        f"read: {', '.join(damaged[:5])}. Prepare the set again."
      )
    return writer.index()

  def _records(self) -> Iterator[Mapping[str, Any]]:
    for start in range(0, len(self), _BLOCK):
      stop = min(start + _BLOCK, len(self))
      yield from self._source.__getitems__(list(range(start, stop)))


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
  """Says what to do where the disk is full or the folder is read-only."""
  try:
    yield
  except OSError as e:
    if e.errno not in _NOT_WRITABLE:
      raise
    raise UserError(
      f"Cannot write {folder}: {e.strerror}. Point the environment variable "
      "SYNGUIDE_CACHE to a folder with space in it."
    ) from e


def builder(folder: Path) -> Any:
  """Opens the folder of a tfds image classification set, without its code.

  Args:
    folder: Of one version, as ``<data_dir>/cifar10/3.0.2``.

  Returns:
    The tfds builder.

  Raises:
    UserError: the set is not readable, not stored as array_record, or lacks an
      uint8 ``image`` or a ``label`` of class ``ClassLabel``.
  """
  import tensorflow_datasets as tfds

  try:
    found = tfds.builder_from_directory(folder)
  except Exception as e:  # tfds raises many types for a damaged folder
    raise UserError(f"{folder} is not a readable tfds set: {e}") from e
  features = found.info.features
  wanted = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
  for key, kind in wanted.items():
    if key not in features or not isinstance(features[key], kind):
      raise UserError(
        f"The tfds set in {folder} has no feature {key!r} of type "
        f"{kind.__name__}; its features: {features}."
      )
  if features["image"].np_dtype != np.uint8:
    raise UserError(
      f"The images of the tfds set in {folder} must be uint8, got "
      f"{features['image'].np_dtype}."
    )
  if not is_array_record(found):
    raise UserError(f"The tfds set in {folder} is not stored as array_record.")
  return found


def is_array_record(found: Any) -> bool:
  """Whether a tfds builder's files are of that format."""
  formats = found.info.available_file_formats()
  return "array_record" in {f.value for f in formats}


def of_prepared(folder: Path) -> dict[str, Records]:
  """Opens a set of our own, whose index is among its files."""
  return {
    split: Records(folder, split, folder / f"{split}.index.npz")
    for split in builder(folder).info.splits
  }


def of_tfds(folder: Path) -> dict[str, Records]:
  """Opens anybody's set; its index is kept in the cache folder."""
  found = builder(folder)
  mark = cache.fingerprint(
    {
      "folder": str(folder),
      # Nor is a set the same that was removed and prepared again.
      "written": files.status(str(folder / "dataset_info.json")),
      "files": {
        split: [info.num_examples, info.num_bytes]
        for split, info in found.info.splits.items()
      },
    }
  )
  place = cache.cache_dir() / "indices" / f"{found.info.name}-{mark}"
  return {
    split: Records(folder, split, place / f"{split}.npz")
    for split in found.info.splits
  }
