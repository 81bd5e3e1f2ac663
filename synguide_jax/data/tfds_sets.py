"""Sets that tfds knows: found, or downloaded and prepared."""

import contextlib
import difflib
import os
from pathlib import Path
import re
from typing import Any
import urllib.parse
import warnings

from absl import logging
from etils import epath
import filelock

from synguide_jax.cache import cache_dir, fingerprint
from synguide_jax.data import files, records
from synguide_jax.errors import UserError
from synguide_jax.network import is_reachable


def find_or_prepare(name: str) -> Path:
  """Returns the folder of a tfds set, downloading and preparing it if needed.

  The set is looked for in ``$TFDS_DATA_DIR`` (``~/tensorflow_datasets``) and is
  prepared there as array_record. If it is there in another format, which tfds
  does not mix, the array_record copy goes to the cache folder instead. What a
  killed preparation left of the set is removed by the next.

  Args:
    name: As tfds spells it: ``name[/config][:version]``.

  Raises:
    UserError: tfds does not know the set, or could not prepare it.
  """
  theirs = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  theirs, ours = epath.Path(files.expand(theirs)), cache_dir() / "tfds"
  if folder := _find(name, theirs) or _find(name, ours):
    return folder
  builder = _builder(name, theirs)
  if _is_prepared(builder):
    builder = _builder(name, ours)
  # A set has several spellings, with and without a version, but one folder.
  folder = epath.Path(builder.data_dir)
  ours.mkdir(parents=True, exist_ok=True)
  lock = fingerprint({"folder": str(folder)})
  with filelock.FileLock(ours / f"{lock}.lock"):
    if found := _find(name, theirs) or _find(name, ours):
      return found
    if not files.is_remote(str(folder)):  # others may be writing there
      _remove_leftovers(folder)
    _check_downloads(name, builder, theirs / "downloads")
    import_tensorflow(name)
    try:
      builder.download_and_prepare(
        file_format="array_record", download_dir=theirs / "downloads"
      )
    except Exception as e:  # network, checksum, manual download, disk, ...
      raise UserError(f"tfds could not prepare {name!r}: {e}") from e
  return folder


def _check_downloads(name: str, builder: Any, downloads: Any) -> None:
  """Raises UserError if what the set is made of cannot be downloaded.

  tfds itself would notice after some minutes.
  """
  servers = {}
  for url in builder.url_infos or ():
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in ("http", "https"):
      servers[parts.netloc] = f"{parts.scheme}://{parts.netloc}/"
  if not servers:
    return
  # tfds keeps, and takes, what it has downloaded before; it notes beside each
  # file where that came from.
  for folder in (downloads, downloads / builder.name):
    if any(folder.glob("*.INFO")):
      return
  # Some may have been given up: those of older versions of the set.
  first = list(servers.values())[:3]
  if not any(map(is_reachable, first)):
    raise UserError(
      f"tfds:{name} is not prepared as array_record in {builder.data_dir}, "
      f"and cannot be downloaded: {', '.join(first)} cannot be reached. Where "
      "there is a network, run this command, or python -m "
      f"synguide_jax.prepare --source=tfds:{name}, and copy the folder that "
      "it makes there to this one."
    )


def _remove_leftovers(folder: Path) -> None:
  # tfds writes to incomplete.<random>_<version> and renames it in the end.
  for leftover in folder.parent.glob(f"incomplete.*_{folder.name}"):
    leftover.rmtree()


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


def _is_prepared(builder: Any) -> bool:
  # It warns of the folder of a set that is not there yet.
  before = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    return builder.is_prepared()
  finally:
    logging.set_verbosity(before)


def _find(name: str, data_dir: Path) -> Path | None:
  builder = _builder(name, data_dir)
  if _is_prepared(builder) and records.is_array_record(builder):
    return epath.Path(builder.data_dir)
  return None


def import_tensorflow(name: str) -> None:
  """Imports TensorFlow to prepare ``name``, since tfds would do so noisily."""
  # Read once, by the C++ code, when TensorFlow is loaded.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
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
