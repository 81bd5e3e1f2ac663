"""Image sets of our own, stored through tfds as array_record.

tfds writes them, which needs TensorFlow; reading them does not
(:mod:`synguide_jax.data.records`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import hashlib
import json
import math
import os
from pathlib import Path
import shutil
from typing import Any, NamedTuple
import warnings

from absl import logging
import filelock
import numpy as np

from synguide_jax.cache import cache_dir
from synguide_jax.data import decode
from synguide_jax.data.records import IndexWriter, writable
from synguide_jax.data.tfds_sets import import_tensorflow
from synguide_jax.errors import UserError

# Of the stored layout. What a set contains is told apart by its fingerprint.
_VERSION = "2.0.0"
_PROVENANCE = "provenance.json"


class Example(NamedTuple):
  """An image to store.

  Attributes:
    image: uint8 ``[H, W, C]``, C being 1 or 3; or the content of an image
      file; or a function that returns one of these when it is needed.
    label: Index of its class; -1: none.
    name: What its file is called, for messages and groups.
    confidence: Of the labeler; NaN: none.
    original: Of the file that ``image`` was converted from, whose format and
      quantisation the index keeps; None: it is that file.
  """

  image: Any
  label: int
  name: str = ""
  confidence: float = math.nan
  original: decode.Facts | None = None


def prepare(
  name: str,
  fingerprint: str,
  make_examples: Callable[[], Iterable[Example | tuple[np.ndarray, int]]]
  | Callable[[], Mapping[str, Iterable[Example]]],
  class_names: Sequence[str],
  *,
  provenance: Mapping[str, Any],
  **options: Any,
) -> Path:
  """Stores a set under the cache folder, unless it is there already.

  Safe to call from several processes at once: one prepares the set and the
  others wait for it. What a killed preparation left is removed by the next.

  Args:
    name: Name of the tfds set, an identifier.
    fingerprint: Tells sets of one name apart; see ``cache.fingerprint``.
    make_examples: Called only if the set is not there. Gives the
      :class:`Example` s, in an order that is kept, or those of each split; by
      default the split is ``"train"``.
    class_names: The name of each class.
    provenance: Plain data to keep with the set; what was converted and dropped
      is added, the number of images by split, their checksum, and the versions
      of numpy and tfds.
    **options: See :func:`write`.

  Returns:
    The set's folder.

  Raises:
    UserError: TensorFlow is missing, an example is wrong, or the cache folder
      cannot be written.
  """
  if not name.isidentifier():
    raise UserError(f"The name of a set must be an identifier, got {name!r}.")
  folder = folder_of(name, fingerprint)
  if is_prepared(name, fingerprint):
    return folder
  with writable(folder):
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder.parent}.lock"):
      if is_prepared(name, fingerprint):  # by the process that held the lock
        return folder
      # Nobody else writes here now, so this is what a killed process left.
      shutil.rmtree(folder.parent, ignore_errors=True)
      logging.info("Preparing %s in %s.", name, folder)
      try:
        write(
          folder, make_examples(), class_names, provenance=provenance, **options
        )
      except BaseException:
        shutil.rmtree(folder.parent, ignore_errors=True)
        raise
  return folder


def write(
  folder: Path,
  examples: Iterable[Example] | Mapping[str, Iterable[Example]],
  class_names: Sequence[str],
  *,
  provenance: Mapping[str, Any],
  drop_constant: bool = False,
  skip_damaged: bool = False,
  on_image: Callable[[], Any] = lambda: None,
  check: Callable[[], Any] = lambda: None,
) -> None:
  """Stores a set in a folder whose name ends in ``<name>/<config>/<version>``.

  Args:
    folder: Where.
    examples: See :func:`prepare`.
    class_names: The name of each class.
    provenance: See :func:`prepare`.
    drop_constant: Leave images out whose pixels are all the same, and count
      them.
    skip_damaged: Leave images out that cannot be read, and count them, instead
      of raising.
    on_image: Called for every image, for progress.
    check: Called at the end; the set is not there if it raises.

  Raises:
    UserError: see :func:`prepare`.
  """
  if not isinstance(examples, Mapping):
    examples = {"train": examples}
  name, config, version = folder.parts[-3:]
  _check_class_names(provenance.get("spec", name), class_names)
  writer = _Writer(
    provenance.get("spec", name),
    len(class_names),
    drop_constant,
    skip_damaged,
    on_image,
  )
  import_tensorflow(name)
  with _quiet_tfds() as tfds, warnings.catch_warnings():
    # Pillow warns of metadata, which is not used.
    warnings.simplefilter("ignore")

    class Builder(tfds.dataset_builders.AdhocBuilder, skip_registration=True):
      # They print to stdout.
      _log_download_bytes = _log_download_done = lambda self: None

    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(shape=(None, None, 3)),
        # It wants a class, also where no image has one.
        "label": tfds.features.ClassLabel(names=list(class_names) or ["none"]),
        "name": tfds.features.Text(),
        "confidence": np.float32,
      }
    )
    Builder(
      name=name,
      version=version,
      config=config,
      features=features,
      split_datasets={
        split: writer.encode(split, of_split)
        for split, of_split in examples.items()
      },
      data_dir=folder.parents[2],
      file_format="array_record",
      disable_shuffling=True,
    ).download_and_prepare()
    tfds_version = tfds.__version__
  check()
  for split, index in writer.indices.items():
    index.index().save(folder / f"{split}.index.npz")
  written = dict(provenance) | writer.provenance()
  written["versions"] = {
    "numpy": np.__version__,
    "tensorflow_datasets": tfds_version,
  }
  # Comes last, in one piece: a set with this file is complete.
  partial = folder / f"{_PROVENANCE}.partial"
  partial.write_text(json.dumps(written, indent=2, sort_keys=True))
  partial.replace(folder / _PROVENANCE)


def _check_class_names(name: str, class_names: Sequence[str]) -> None:
  # tfds keeps them as the lines of a text file, without space around them.
  for class_name in class_names:
    if class_name.strip().splitlines() != [class_name]:
      raise UserError(
        f"{name}: the class name {class_name!r} is empty, has space around it "
        "or a line break in it; rename it."
      )
  if twice := [c for c, count in Counter(class_names).items() if count > 1]:
    raise UserError(f"{name}: two classes are called {twice[0]!r}; rename one.")


class _Writer:
  """Encodes examples for tfds, and notes what there is to say about them."""

  def __init__(
    self,
    name: str,
    num_classes: int,
    drop_constant: bool,
    skip_damaged: bool,
    on_image: Callable[[], Any],
  ):
    self._name, self._num_classes = name, num_classes
    self._drop_constant, self._skip_damaged = drop_constant, skip_damaged
    self._on_image = on_image
    self._checksum = hashlib.sha256()
    self._converted, self._constant = Counter(), []
    self._damaged, self._seen = [], 0
    self.indices: dict[str, IndexWriter] = {}

  def encode(
    self, split: str, examples: Iterable[Example]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields what tfds writes."""
    index = self.indices.setdefault(split, IndexWriter())
    # Numbered over all splits, so that a name is one image's.
    named = (self._named(Example(*example)) for example in examples)
    count = 0
    for example, image in decode.in_threads(self._canonical, named):
      self._on_image()
      if isinstance(image, str):
        self._damaged.append(f"{example.name} ({image})")
        continue
      if image.constant and self._drop_constant:
        self._constant.append(example.name)
        continue
      self._converted.update(image.remarks)
      label = int(example.label)
      self._checksum.update(image.facts.hash.to_bytes(8))
      self._checksum.update(label.to_bytes(4, signed=True))
      facts = image.facts
      if (original := example.original) is not None:
        facts = facts._replace(
          format=original.format, quantization=original.quantization
        )
      index.add(example.name, label, facts, example.confidence)
      yield (
        count,
        {
          "image": image.encoded,
          "label": label,
          "name": example.name,
          "confidence": np.float32(example.confidence),
        },
      )
      count += 1
    if self._damaged and not self._skip_damaged:
      more = ", ..." if len(self._damaged) > 5 else ""
      raise UserError(
        f"{self._name}: {len(self._damaged)} of {self._seen} files cannot be "
        f"read as images: {', '.join(self._damaged[:5])}{more}. Replace or "
        "remove them, or set data.skip_damaged."
      )
    if not count:
      raise UserError(f"{self._name}: no image is left of split {split}.")

  def _named(self, example: Example) -> Example:
    number, self._seen = self._seen, self._seen + 1
    if not -1 <= example.label < self._num_classes:
      raise UserError(
        f"Image {number} of {self._name} has label {example.label}, but there "
        f"are {self._num_classes} classes."
      )
    return example._replace(name=example.name or f"{number:06}")

  def _canonical(
    self, example: Example
  ) -> tuple[Example, decode.Canonical | str]:
    try:
      image = example.image() if callable(example.image) else example.image
    except ValueError as error:  # a file of an archive, or it is gone
      return example, str(error)
    if isinstance(image, np.ndarray) and (
      image.dtype != np.uint8 or image.shape[2:] not in ((1,), (3,))
    ):
      raise UserError(
        f"Image {example.name} of {self._name} must be uint8 [H, W, 1 or 3], "
        f"got {image.dtype} {list(image.shape)}."
      )
    try:
      return example, decode.canonical(image)
    except ValueError as error:
      return example, str(error)

  def provenance(self) -> dict[str, Any]:
    """What was seen."""
    return {
      "num_images": {
        split: len(index.index()) for split, index in self.indices.items()
      },
      "image_checksum": self._checksum.hexdigest(),
      "converted": dict(self._converted),
      "skipped": len(self._damaged),
      "constant": len(self._constant),
    }


def is_prepared(name: str, fingerprint: str) -> bool:
  """Returns whether ``prepare`` would have nothing to do."""
  return is_complete(folder_of(name, fingerprint))


def is_complete(folder: Path) -> bool:
  """Returns whether a folder holds all of a set."""
  return (folder / _PROVENANCE).is_file()


def folder_of(name: str, fingerprint: str) -> Path:
  """Returns where `prepare` puts a set; it may not be there yet."""
  return cache_dir() / "tfds" / name / fingerprint / _VERSION


def read_provenance(path: str | os.PathLike) -> dict[str, Any]:
  """Reads what is noted about the set in the folder ``path``.

  Raises:
    UserError: the folder does not hold a complete set.
  """
  folder = Path(path)
  if not is_complete(folder):
    raise UserError(
      f"{path} holds no complete prepared set: it has no {_PROVENANCE}."
    )
  return json.loads((folder / _PROVENANCE).read_text())


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[Any]:
  """Imports tfds without its progress bars and log messages."""
  import tensorflow_datasets as tfds

  def not_from_tfds(record):
    return "tensorflow_datasets" not in record.pathname

  # Not the logging level: the examples' own messages should be seen.
  logger = logging.get_absl_logger()
  logger.addFilter(not_from_tfds)
  tfds.disable_progress_bar()
  try:
    yield tfds
  finally:
    tfds.enable_progress_bar()
    logger.removeFilter(not_from_tfds)
