"""Where an experiment lives, and what is known of it without computing.

A workdir holds config.json (what was asked for), results.json (once finished),
checkpoints/ and TensorBoard events. Imports nothing heavy, so that a finished
workdir is recognised at once.
"""

from collections.abc import Mapping
import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from synguide_jax.cache import fingerprint
from synguide_jax.errors import UserError

ROOT = Path("runs")

# The config fields whose specs a command may have to make something for.
SPEC_FIELDS = (
  ("data", "synthetic"),
  ("model", "init"),
  ("pretrained", "weights"),
)


def as_json(config: Any) -> dict[str, Any]:
  """Returns a config as JSON gives it back (tuples become lists)."""
  as_dict = config.to_dict() if hasattr(config, "to_dict") else dict(config)
  return json.loads(json.dumps(as_dict))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns ``{"data.shots": 10, ...}`` for a nested mapping."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def differences(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  """Returns ``{field: (old, new)}`` where two configs differ."""
  old, new = flatten(old), flatten(new)
  return {
    field: (old.get(field), new.get(field))
    for field in sorted(old.keys() | new.keys())
    if field not in old or field not in new or old[field] != new[field]
  }


def default_workdir(file: str, config: Any, base: Any) -> Path:
  """Returns ``runs/<config>[_<arg>]/<method>[-<hash of other overrides>]``.

  Args:
    file: ``<config file>[:arg]``.
    config: The config with its overrides.
    base: The config without them.

  Returns:
    A relative path. Configs of one name in different folders would share it;
    `claim` then refuses the second.
  """
  path, _, arg = file.partition(":")
  name = Path(path).stem + (f"_{arg}" if arg else "")
  overrides = {
    field: new
    for field, (_, new) in differences(as_json(base), as_json(config)).items()
    if field != "method"
  }
  suffix = f"-{fingerprint(overrides)[:6]}" if overrides else ""
  return ROOT / name / (config.method + suffix)


def write_json(path: Path, value: Any) -> None:
  """Writes a whole file or none of it."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def claim(workdir: Path, config: Any) -> None:
  """Makes ``workdir`` and writes config.json, or checks the one it has.

  A workdir in which no training has begun, because its config was wrong, is
  free for another config.

  Args:
    workdir: The folder.
    config: The experiment's config.

  Raises:
    UserError: if the folder cannot be written, or belongs to another config,
      or if the config has a number that is not finite.
  """
  path, wanted = workdir / "config.json", as_json(config)
  finite = json.loads(json.dumps(wanted), parse_constant=lambda name: None)
  for field, (value, _) in differences(wanted, finite).items():
    raise UserError(f"{field}={value} must be finite.")
  found = _read_json(path)
  changed = found is not None and differences(found, wanted)
  begun = (workdir / "checkpoints").exists() or results(workdir) is not None
  if changed and begun:
    lines = [
      f"  {field}: {old!r} there, {new!r} now"
      for field, (old, new) in changed.items()
    ]
    raise UserError(
      f"{workdir} belongs to another config:\n"
      + "\n".join(lines)
      + "\nChoose another --workdir, or delete it."
    )
  if found is None or changed:
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      write_json(path, wanted)
    except OSError as error:
      raise UserError(
        f"Cannot write to the workdir {workdir}: {error.strerror}. Choose "
        "another with --workdir."
      ) from error


def config(workdir: Path) -> ConfigDict:
  """Returns the config of a workdir; tuples come back as lists.

  Raises:
    UserError: if there is none.
  """
  found = _read_json(workdir / "config.json")
  if found is None:
    raise UserError(f"{workdir} has no config.json.")
  return ConfigDict(found)


def results(workdir: Path) -> dict[str, Any] | None:
  """Returns the results of a finished workdir, or None."""
  return _read_json(workdir / "results.json")


def _read_json(path: Path) -> dict[str, Any] | None:
  try:
    value = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError) as error:
    raise UserError(
      f"Cannot read {path} ({error}). Delete {path.parent}, or choose another "
      "--workdir."
    ) from error
  if not isinstance(value, dict):
    raise UserError(
      f"{path} holds no mapping. Delete {path.parent}, or choose another "
      "--workdir."
    )
  return value
