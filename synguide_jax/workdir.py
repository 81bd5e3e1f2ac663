"""Where an experiment lives, and what is known of it without computing.

A workdir holds config.json (what was asked for), results.json (once finished),
checkpoints/ and TensorBoard events. Imports nothing heavy, so that a finished
workdir is recognised at once.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from synguide_jax import hosts
from synguide_jax.cache import fingerprint, write_whole
from synguide_jax.errors import is_disk_full, UserError

ROOT = epath.Path("runs")

# The config fields whose specs a command may have to make something for.
SPEC_FIELDS = (
  ("data", "synthetic"),
  ("model", "init"),
  ("pretrained", "weights"),
  ("filter", "classifier"),
)


# Fields that say where to compute, not what.
_WHERE = ("mesh.runs", "mesh.split")
# What older files lack, as it was then.
_ADDED = {
  "mesh": {"runs": 0, "split": []},
  "microbatches": 1,
  "steps_per_dispatch": 1,
}
# And what sections of classifiers lack; a generator's network is another.
_ADDED_TO = {"model": {"remat": False}}
# Fields of which these values leave a choice to the first session. What may be
# chosen differs in the last bit of every weight, and depends on the devices.
_CHOOSE = {"runs_mode": "auto", "steps_per_dispatch": 0}


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


def default_workdir(file: str, config: Any, base: Any) -> epath.Path:
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
    if field not in ("method", *_WHERE)
  }
  suffix = f"-{fingerprint(overrides)[:6]}" if overrides else ""
  return ROOT / name / (config.method + suffix)


def write_json(path: epath.Path, value: Any) -> None:
  """Writes a whole file or none of it."""
  text = json.dumps(value, indent=1, allow_nan=False) + "\n"
  write_whole(path, text.encode())


def claim(workdir: epath.Path, config: Any) -> None:
  """Makes ``workdir`` and writes config.json, or checks the one it has.

  A workdir in which no training has begun, because its config was wrong, is
  free for another config.

  Args:
    workdir: The folder, local or remote.
    config: The experiment's config.

  Raises:
    UserError: if the folder cannot be written, or belongs to another config,
      or if the config has a number that is not finite.
  """
  with hosts.in_turn("workdir"):
    if not (hosts.is_first() or (workdir / "config.json").exists()):
      raise UserError(
        f"{workdir} is not seen by all processes; name one on a file system "
        "that they share (--workdir, SYNGUIDE_CACHE), or a remote one."
      )
    _claim(workdir, config)


def _claim(workdir: epath.Path, config: Any) -> None:
  path, wanted = workdir / "config.json", as_json(config)
  finite = json.loads(json.dumps(wanted), parse_constant=lambda name: None)
  for field, (value, _) in differences(wanted, finite).items():
    raise UserError(f"{field}={value} must be finite.")
  found = _read_json(path)
  changed = found is not None and differences(_completed(found, wanted), wanted)
  if changed:
    settled = [f for f, choose in _CHOOSE.items() if wanted.get(f) == choose]
    for field in (*_WHERE, *settled):
      changed.pop(field, None)
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
      if is_disk_full(error):
        raise
      raise UserError(
        f"Cannot write to the workdir {workdir}: {error.strerror}. Choose "
        "another with --workdir."
      ) from error


def settle(workdir: epath.Path, config: Any) -> None:
  """Writes into config.json how the runs are trained; see `settled`."""
  found = _read_json(workdir / "config.json")
  chosen = {field: config[field] for field in _CHOOSE}
  if found != found | chosen:
    write_json(workdir / "config.json", found | chosen)


def settled(workdir: epath.Path, config: Any) -> ConfigDict:
  """Returns ``config`` with what a workdir's first session chose."""
  found = _completed(_read_json(workdir / "config.json") or dict(_CHOOSE))
  config = config.copy_and_resolve_references()
  for field, choose in _CHOOSE.items():
    if config[field] == choose:
      config[field] = found[field]
  return config


def config(workdir: epath.Path) -> ConfigDict:
  """Returns the config of a workdir; tuples come back as lists.

  Raises:
    UserError: if there is none.
  """
  found = _read_json(workdir / "config.json")
  if found is None:
    raise UserError(f"{workdir} has no config.json.")
  return ConfigDict(_completed(found))


def _completed(
  found: Mapping[str, Any], wanted: Mapping[str, Any] = _ADDED
) -> dict[str, Any]:
  """Adds what files of older versions lack, of what is ``wanted``."""
  added = {name: _ADDED[name] for name in _ADDED.keys() & wanted.keys()}
  sections = {n: f | found[n] for n, f in _ADDED_TO.items() if n in found}
  if found.get("method") == "diffusion":
    sections = {}
  return {**added, **found, **sections}


def results(workdir: epath.Path) -> dict[str, Any] | None:
  """Returns the results of a finished workdir, or None."""
  return _read_json(workdir / "results.json")


def finished(workdir: epath.Path) -> dict[str, Any] | None:
  """Returns the results in all processes, or in none, as the first finds."""
  found = results(workdir)
  if not hosts.first_says(found is not None):
    return None
  return found or results(workdir)


def _read_json(path: epath.Path) -> dict[str, Any] | None:
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
