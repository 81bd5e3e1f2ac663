"""Where prepared data lives, and the names that keep it apart."""

from collections.abc import Mapping
import hashlib
import json
import os
from pathlib import Path
from typing import Any

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
  unfinished = unfinished_path(path)
  try:
    unfinished.write_bytes(content)
    unfinished.replace(path)
  finally:
    unfinished.unlink(missing_ok=True)


def unfinished_path(path: Any) -> Any:
  """Returns where to write what is to be renamed to ``path`` when it is whole.

  What a killed process leaves there can be told by :func:`leftovers`.
  """
  return path.with_name(f".{path.name}.{os.getpid()}.partial")


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
