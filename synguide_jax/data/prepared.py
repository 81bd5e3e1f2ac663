"""Image sets stored through tfds as array_record.

tfds writes them, which needs TensorFlow; reading them does not, so TensorFlow
is imported only while a set is being prepared.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import dataclasses
import difflib
import errno
import hashlib
import io
import itertools
import json
import os
from pathlib import Path
import re
import shutil
from typing import Any
import warnings

from absl import logging
import filelock
import numpy as np
from PIL import Image

from synguide_jax.cache import cache_dir
from synguide_jax.errors import UserError

# Of the stored layout. What a set contains is told apart by its fingerprint.
_VERSION = "1.0.0"
_PROVENANCE = "provenance.json"


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
  """Labelled images of one size, in host memory.

  Attributes:
    images: uint8 ``[N, H, W, C]``, C being 1 (grey) or 3 (RGB).
    labels: int32 ``[N]``, indices into ``class_names``.
    class_names: The name of each class.
    provenance: Where the images come from and what was done to them; plain
      data. ``provenance["spec"]`` names the set in messages.
  """

  images: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]
  provenance: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    def require(condition, problem):
      if not condition:
        name = self.provenance.get("spec", "image set")
        raise UserError(f"{name}: {problem}.")

    images, labels, names = self.images, self.labels, self.class_names
    require(
      images.dtype == np.uint8 and images.ndim == 4,
      f"images must be uint8 [N, H, W, C], got {images.dtype} "
      f"{list(images.shape)}",
    )
    require(
      images.shape[3] in (1, 3),
      f"images must have 1 or 3 channels, got {images.shape[3]}",
    )
    require(
      labels.dtype == np.int32 and labels.shape == images.shape[:1],
      f"labels must be int32 [{len(images)}], got {labels.dtype} "
      f"{list(labels.shape)}",
    )
    require(images.size, "it has no image")
    require(
      len(set(names)) == len(names),
      f"class names must differ, got {list(names)}",
    )
    require(
      0 <= labels.min() and labels.max() < len(names),
      f"labels must lie in 0..{len(names) - 1} for {len(names)} classes, got "
      f"{labels.min()}..{labels.max()}",
    )


class Records:
  """A split of a tfds set, still encoded.

  ``records[a:b]`` is a list of (name, encoded image, label).
  """

  def __init__(self, split: str, source: Any, class_names: Sequence[str]):
    self.class_names = tuple(class_names)
    self._split, self._source = split, source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, where: slice) -> list[tuple[str, bytes, int]]:
    indices = list(range(*where.indices(len(self))))
    return [
      (f"{self._split}[{i}]", record["image"], int(record["label"]))
      for i, record in zip(
        indices, self._source.__getitems__(indices), strict=True
      )
    ]


def prepare(
  name: str,
  fingerprint: str,
  make_examples: Callable[[], Iterable[tuple[np.ndarray, int]]],
  class_names: Sequence[str],
  *,
  provenance: dict[str, Any],
) -> Path:
  """Stores a set under the cache folder, unless it is there already.

  Safe to call from several processes at once: one prepares the set and the
  others wait for it. What a killed preparation left is removed by the next.

  Args:
    name: Name of the tfds set, an identifier.
    fingerprint: Tells sets of one name apart; see ``cache.fingerprint``.
    make_examples: Called only if the set is not there. Gives pairs of an image,
      uint8 ``[H, W, C]`` with C being 1 or 3 and one shape for all, and its
      label. Their order is kept.
    class_names: The name of each class.
    provenance: Plain data to keep with the set. The number of images, their
      checksum and the versions of numpy and tfds are added.

  Returns:
    The set's folder, which ``read`` reads.

  Raises:
    UserError: TensorFlow is missing, an example is wrong, or the cache folder
      cannot be written.
  """
  if not name.isidentifier():
    raise UserError(f"The name of a set must be an identifier, got {name!r}.")
  folder = folder_of(name, fingerprint)
  if is_prepared(name, fingerprint):
    return folder
  try:
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder.parent}.lock"):
      if is_prepared(name, fingerprint):  # by the process that held the lock
        return folder
      # Nobody else writes here now, so this is what a killed process left.
      shutil.rmtree(folder.parent, ignore_errors=True)
      logging.info("Preparing %s in %s.", name, folder)
      provenance = provenance | _write(folder, make_examples(), class_names)
      # Comes last, in one piece: a set with this file is complete.
      partial = folder / f"{_PROVENANCE}.partial"
      partial.write_text(json.dumps(provenance, indent=2, sort_keys=True))
      partial.replace(folder / _PROVENANCE)
  except OSError as e:
    if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
      raise
    raise UserError(
      f"Cannot write {folder}: {e.strerror}. Point the environment variable "
      "SYNGUIDE_CACHE to a folder with space in it."
    ) from e
  return folder


def is_prepared(name: str, fingerprint: str) -> bool:
  """Returns whether ``prepare`` would have nothing to do."""
  return (folder_of(name, fingerprint) / _PROVENANCE).is_file()


def read(path: str | os.PathLike) -> dict[str, ImageSet]:
  """Reads a folder that ``prepare`` returned, without TensorFlow.

  Returns:
    The sets by split; ``prepare`` writes ``"train"`` only.

  Raises:
    UserError: the folder does not hold a complete set.
  """
  provenance = read_provenance(path)
  sets = {}
  for split, records in open_records(path).items():
    images, labels = [], []
    for _, encoded, label in records[:]:
      with Image.open(io.BytesIO(encoded)) as image:
        pixels = np.asarray(image)
      images.append(pixels.reshape(*pixels.shape[:2], -1))
      labels.append(label)
    sets[split] = ImageSet(
      np.stack(images),
      np.asarray(labels, np.int32),
      records.class_names,
      {"spec": f"prepared:{path}"} | provenance,
    )
  return sets


def read_provenance(path: str | os.PathLike) -> dict[str, Any]:
  """Reads what ``prepare`` noted about the set in the folder ``path``.

  Raises:
    UserError: the folder does not hold a complete set.
  """
  file = Path(path) / _PROVENANCE
  if not file.is_file():
    raise UserError(
      f"{path} holds no complete prepared set: it has no {_PROVENANCE}."
    )
  return json.loads(file.read_text())


def open_records(path: str | os.PathLike) -> dict[str, Records]:
  """Opens the folder of any tfds image classification set.

  Args:
    path: Folder of one version, as ``<data_dir>/cifar10/3.0.2``.

  Returns:
    The encoded images by split.

  Raises:
    UserError: the set is not readable, not stored as array_record, or lacks an
      uint8 ``image`` or a ``label`` of class ``ClassLabel``.
  """
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(path)
  except Exception as e:  # tfds raises many types for a damaged folder
    raise UserError(f"{path} is not a readable tfds set: {e}") from e
  features = builder.info.features
  wanted = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
  for key, kind in wanted.items():
    if key not in features or not isinstance(features[key], kind):
      raise UserError(
        f"The tfds set in {path} has no feature {key!r} of type "
        f"{kind.__name__}; its features: {features}."
      )
  if features["image"].np_dtype != np.uint8:
    raise UserError(
      f"The images of the tfds set in {path} must be uint8, got "
      f"{features['image'].np_dtype}."
    )
  if not _is_array_record(builder):
    raise UserError(f"The tfds set in {path} is not stored as array_record.")
  # Images stay encoded: whoever needs them converts them while decoding.
  sources = builder.as_data_source(
    decoders={"image": tfds.decode.SkipDecoding()}
  )
  names = features["label"].names
  return {
    split: Records(split, source, names) for split, source in sources.items()
  }


def tfds_folder(name: str) -> Path:
  """Returns the folder of a tfds set, downloading and preparing it if needed.

  The set is looked for in ``$TFDS_DATA_DIR`` (``~/tensorflow_datasets``) and is
  prepared there as array_record. If it is there in another format, which tfds
  does not mix, the array_record copy goes to the cache folder instead.

  Args:
    name: As tfds spells it: ``name[/config][:version]``.

  Raises:
    UserError: tfds does not know the set, or could not prepare it.
  """
  theirs = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  theirs, ours = Path(theirs).expanduser(), _data_dir()
  if folder := _find(name, theirs) or _find(name, ours):
    return folder
  ours.mkdir(parents=True, exist_ok=True)
  with filelock.FileLock(ours / (re.sub(r"\W+", "_", name) + ".lock")):
    if folder := _find(name, theirs) or _find(name, ours):
      return folder
    builder = _builder(name, theirs)
    if builder.is_prepared():
      builder = _builder(name, ours)
    _import_tensorflow(name)
    try:
      builder.download_and_prepare(
        file_format="array_record", download_dir=theirs / "downloads"
      )
    except Exception as e:  # network, checksum, manual download, disk, ...
      raise UserError(f"tfds could not prepare {name!r}: {e}") from e
  return Path(builder.data_dir)


def _data_dir() -> Path:
  return cache_dir() / "tfds"


def folder_of(name: str, fingerprint: str) -> Path:
  """Returns where `prepare` puts a set; it may not be there yet."""
  return _data_dir() / name / fingerprint / _VERSION


def _builder(name: str, data_dir: Path) -> Any:
  import tensorflow_datasets as tfds

  try:
    return tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as e:
    # Its own message lists all sets.
    known = tfds.list_builders(with_community_datasets=False)
    close = difflib.get_close_matches(re.split("[/:]", name)[0], known)
    raise UserError(
      f"tfds knows no set {name!r}, nor is it stored in {data_dir} as "
      "array_record, which could be read without its code. "
      f"Similar names: {', '.join(close) or 'none'}."
    ) from e
  except Exception as e:  # wrong config or version, each its own type
    raise UserError(f"tfds cannot load {name!r}: {e}") from e


def _find(name: str, data_dir: Path) -> Path | None:
  builder = _builder(name, data_dir)
  if builder.is_prepared() and _is_array_record(builder):
    return Path(builder.data_dir)
  return None


def _is_array_record(builder: Any) -> bool:
  formats = builder.info.available_file_formats()
  return "array_record" in {f.value for f in formats}


def _write(
  folder: Path,
  examples: Iterable[tuple[np.ndarray, int]],
  class_names: Sequence[str],
) -> dict[str, Any]:
  """Writes the set and returns what there is to say about it."""
  name, config, version = folder.parts[-3:]
  examples = iter(examples)
  first = next(examples, None)
  if first is None:
    raise UserError(f"There is no image to prepare for {name}.")
  shape = first[0].shape
  checksum, count = hashlib.sha256(), 0

  def encode() -> Iterator[tuple[int, dict[str, Any]]]:
    nonlocal count
    for image, label in itertools.chain([first], examples):
      if (
        image.dtype != np.uint8
        or image.shape != shape
        or image.shape[2:] not in ((1,), (3,))
      ):
        raise UserError(
          f"Image {count} of {name} must be uint8 [H, W, 1 or 3] and of the "
          f"first one's shape {list(shape)}, got {image.dtype} "
          f"{list(image.shape)}."
        )
      if not 0 <= label < len(class_names):
        raise UserError(
          f"Image {count} of {name} has label {label}, but there are "
          f"{len(class_names)} classes."
        )
      checksum.update(image.tobytes() + int(label).to_bytes(4, "little"))
      # Encoded here, since tfds would start a TensorFlow session for it.
      png = io.BytesIO()
      pixels = image[..., 0] if image.shape[2] == 1 else image
      Image.fromarray(pixels).save(png, "png")
      yield count, {"image": png.getvalue(), "label": int(label), "id": count}
      count += 1

  _import_tensorflow(name)
  with _quiet_tfds() as tfds:

    class Builder(tfds.dataset_builders.AdhocBuilder, skip_registration=True):
      # They print to stdout.
      _log_download_bytes = _log_download_done = lambda self: None

    features = tfds.features.FeaturesDict(
      {
        "image": tfds.features.Image(
          shape=(None, None, shape[-1]), encoding_format="png"
        ),
        "label": tfds.features.ClassLabel(names=list(class_names)),
        "id": np.int64,
      }
    )
    Builder(
      name=name,
      version=version,
      config=config,
      features=features,
      split_datasets={"train": encode()},
      data_dir=folder.parents[2],
      file_format="array_record",
      disable_shuffling=True,
    ).download_and_prepare()
    tfds_version = tfds.__version__
  return {
    "num_images": count,
    "image_checksum": checksum.hexdigest(),
    "versions": {"numpy": np.__version__, "tensorflow_datasets": tfds_version},
  }


def _import_tensorflow(name: str):
  """Imports TensorFlow, since tfds would do so noisily."""
  # Read once, by the C++ code, when TensorFlow is loaded.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  try:
    with warnings.catch_warnings():
      # TensorFlow and what it imports warn of calls of their own.
      warnings.simplefilter("ignore")
      import tensorflow as tf
  except ImportError as e:
    raise UserError(
      f"Preparing {name} needs TensorFlow: pip install tensorflow-cpu."
    ) from e
  # TensorFlow is to encode images, not to take the memory of the GPU from JAX.
  # Once somebody else has used it, it is too late for that.
  with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], "GPU")


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
