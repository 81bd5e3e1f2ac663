"""Where prepared data lives, and the names that keep it apart."""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any, IO

from synguide_jax.errors import UserError


def cache_dir() -> Path:
  """Returns ``$SYNGUIDE_CACHE``, or ``~/.cache/synguide_jax``.

  The folder may not exist yet.

  Raises:
    UserError: it is not local.
  """
  folder = os.environ.get("SYNGUIDE_CACHE") or "~/.cache/synguide_jax"
  if "://" in folder:  # which Path would take for a local folder
    raise UserError(
      f"SYNGUIDE_CACHE={folder}: prepared sets are kept in a local folder; "
      "name one."
    )
  return Path(folder).expanduser()


def write_whole(path: Any, content: bytes) -> None:
  """Writes a whole file or none of it.

  Args:
    path: A local path, or one of epath's.
    content: What to write.
  """
  with whole_file(path) as stream:
    stream.write(content)


@contextlib.contextmanager
def whole_file(path: Any) -> Iterator[IO[bytes]]:
  """Opens a file that has its name only once all of it is written.

  Args:
    path: A local path, or one of epath's.

  Yields:
    What to write to.
  """
  # Named, so that what a killed process leaves can be told; see `leftovers`.
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  try:
    with partial.open("wb") as stream:
      yield stream
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)


def leftovers(folder: Any) -> list[Any]:
  """Returns what killed processes left unfinished in a folder."""
  return list(folder.glob(".*.partial"))


def fingerprint(mapping: Mapping[str, Any]) -> str:
  """Returns 12 hexadecimal digits that identify ``mapping``.

  Args:
    mapping: Plain data: strings, numbers, booleans, None, lists, mappings.
      The order of its keys does not matter, and a tuple counts as a list, so
      that a config and its copy read back from JSON have one fingerprint.

  Raises:
    TypeError: a value is not plain data.
  """
  text = json.dumps(mapping, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:12]
