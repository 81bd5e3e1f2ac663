"""Which cells of an experiment's table have no results yet, and their commands.

What was run tells what is missing: a folder runs/<config>[_<arg>] is the sweep
of that config, once or, with overrides that several of its workdirs share,
more often. Imports nothing heavy.
"""

import collections
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import json
from pathlib import Path
import shlex
from typing import Any

from synguide_jax import config as config_lib
from synguide_jax import grid, workdir
from synguide_jax.errors import UserError

# What says where and in which order to compute.
_INCIDENTAL = ("runs_mode", "steps_per_dispatch", "mesh.runs", "mesh.split")


def cells(folders: Sequence[Path]) -> list[dict[str, Any]]:
  """Finds what the sweeps that gathered workdirs belong to still lack.

  Args:
    folders: Workdirs, of which those are looked at that are finished.

  Returns:
    ``config``, ``workdir`` and ``command`` (a shell's line) of each cell
    without results. Nothing is known of folders that are not named after a file
    in configs/, and of a set of overrides with which a single row was trained.
  """
  found = collections.defaultdict(list)
  for folder in map(Path, folders):
    if (results := workdir.results(folder)) is not None:
      found[folder.parent].append(workdir.flatten(results["config"]))
  missing = []
  for parent, finished in found.items():
    spec = _config_spec(parent.name)
    for cell in _sweeps(spec, finished) if spec else ():
      moved = dataclasses.replace(cell, folder=parent / cell.folder.name)
      done = any(_is_same(config, cell.config) for config in finished)
      if not done and workdir.results(moved.folder) is None:
        missing.append(
          {
            "config": cell.config,
            "workdir": str(moved.folder),
            "command": shlex.join(moved.command()),
          }
        )
  return missing


def _config_spec(name: str) -> str | None:
  """The ``<config file>[:arg]`` whose default workdirs are in such a folder."""
  parts = name.split("_")
  for count in range(len(parts), 0, -1):
    file, arg = "_".join(parts[:count]), "_".join(parts[count:])
    spec = f"configs/{file}.py" + (f":{arg}" if arg else "")
    with contextlib.suppress(UserError):
      config_lib.load(spec)
      config_lib.load_sweep(spec)
      return spec
  return None


def _sweeps(
  spec: str, finished: Sequence[Mapping[str, Any]]
) -> list[grid.Cell]:
  """All cells of the sweeps by which at least two rows were trained."""
  base = workdir.flatten(workdir.as_json(config_lib.load(spec)))
  rows = config_lib.load_sweep(spec)
  rests = [_rest(config, base, rows) for config in finished]
  counts = collections.Counter(r for r in rests if r is not None)
  sweeps, covered = [], set()
  # A row that sets the field of an override is a cell of several sweeps, and
  # no evidence of those that explain nothing else.
  for rest, _ in counts.most_common():
    made = grid.cells([spec], json.loads(rest, object_hook=_with_tuples))
    explained = {
      number
      for number, config in enumerate(finished)
      if any(_is_same(config, cell.config) for cell in made)
    }
    if len(explained - covered) > 1:
      covered |= explained
      sweeps += made
  return list({cell.folder: cell for cell in sweeps}.values())


def _rest(
  config: Mapping[str, Any],
  base: Mapping[str, Any],
  rows: Sequence[Mapping[str, Any]],
) -> str | None:
  """The overrides, as JSON, that made a config from the row closest to it."""
  changed = {
    field: value
    for field, value in config.items()
    if field not in ("method", *_INCIDENTAL)
    and field in base
    and base[field] != value
  }
  rests = [
    {field: value for field, value in changed.items() if field not in row}
    for row in rows
    if all(json.dumps(config.get(f)) == json.dumps(v) for f, v in row.items())
  ]
  return json.dumps(min(rests, key=len), sort_keys=True) if rests else None


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
  return {
    field: tuple(value) if isinstance(value, list) else value
    for field, value in values.items()
  }


def _is_same(found: Mapping[str, Any], wanted: Any) -> bool:
  """Whether a finished config is that of a cell; older ones lack fields."""
  flat = workdir.flatten(workdir.as_json(wanted))
  return all(
    found.get(field, value) == value
    for field, value in flat.items()
    if field not in _INCIDENTAL
  )
