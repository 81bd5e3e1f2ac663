"""The cells of a sweep: which there are, and the commands that run them.

A cell is one config in the workdir that main would choose for it. Imports
nothing heavy, so that finished cells are skipped at once; `jobs` runs them.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import itertools
import json
from pathlib import Path
import shlex
from typing import Any

from absl import flags
from ml_collections import config_flags, ConfigDict

from synguide_jax import config as config_lib
from synguide_jax import workdir
from synguide_jax.analysis import table
from synguide_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cell:
  """One experiment of a sweep.

  Attributes:
    name: What the row of a table would be called.
    file: ``<config file>[:arg]``.
    config: The file's config with all overrides.
    folder: Its workdir.
    overrides: Fields, but for the method, that are not as in the file.
  """

  name: str
  file: str
  config: ConfigDict
  folder: Path
  overrides: Mapping[str, Any]

  def command(self) -> list[str]:
    """The command that runs this cell, and this alone."""
    values = {"method": self.config.method, **self.overrides}
    return [
      *("python", "-m", "synguide_jax.main", f"--config={self.file}"),
      *(f"--config.{field}={_text(v)}" for field, v in values.items()),
      f"--workdir={self.folder}",
    ]


def _text(value: Any) -> str:
  """A value as the command line reads it; lists are those of tuples."""
  if isinstance(value, str):
    return value
  return repr(tuple(value) if isinstance(value, list) else value)


def cells(
  files: Sequence[str],
  overrides: Mapping[str, Any],
  *,
  methods: Sequence[str] = (),
  grid: Sequence[str] = (),
) -> list[Cell]:
  """Crosses the rows of config files with a grid.

  Args:
    files: ``<config file>[:arg]`` each, with a ``get_sweep()``.
    overrides: Values by field, for all cells.
    methods: Only rows of these; () for all.
    grid: ``<field>=<value>,<value>`` each, see `parse_grid`.

  Returns:
    The cells, each once. What a row sets itself holds against the grid, and
    the grid holds against the overrides.

  Raises:
    UserError: for an unknown method, a field that a config lacks, a value of
      another type, or a field that the grid could not change in any row.
  """
  rows = {}
  for path, arg in map(config_lib.find, files):
    file = f"{path}:{arg}" if arg else str(path)
    rows[file] = config_lib.load_sweep(file)
  known = {row["method"] for of_file in rows.values() for row in of_file}
  if unknown := set(methods) - known:
    raise UserError(
      f"--methods={','.join(sorted(unknown))}: {', '.join(rows)} has rows of "
      f"{', '.join(sorted(known))}."
    )
  made, changed, axes = {}, set(), {}
  for file, of_file in rows.items():
    base = config_lib.load(file)
    try:
      config = config_lib.override(base, dict(overrides))
      axes = parse_grid(grid, config)
    except UserError as error:
      raise UserError(f"{file}: {error}") from error
    chosen = [row for row in of_file if row["method"] in (methods or known)]
    for row, values in itertools.product(
      chosen, itertools.product(*axes.values())
    ):
      changed |= axes.keys() - row.keys()
      own = row | dict(zip(axes, values, strict=True)) | row
      cell = _cell(file, config_lib.override(config, own), base, own)
      if len(rows) > 1:
        name = f"{cell.folder.parent.name}: {cell.name}"
        cell = dataclasses.replace(cell, name=name)
      as_text = json.dumps(workdir.as_json(cell.config), sort_keys=True)
      made.setdefault((cell.folder, as_text), cell)
  if in_vain := axes.keys() - changed:
    raise UserError(
      f"--grid: every row sets {sorted(in_vain)[0]} itself; rows are chosen "
      "with --methods, or changed in get_sweep()."
    )
  return list(made.values())


def _cell(file: str, config: Any, base: Any, own: Mapping[str, Any]) -> Cell:
  old, new = (workdir.flatten(workdir.as_json(c)) for c in (base, config))
  return Cell(
    name=table.label(workdir.flatten(config.to_dict()), own),
    file=file,
    config=config,
    folder=workdir.default_workdir(file, config, base),
    # By text, since 1 is neither 1.0 nor True in config.json.
    overrides={
      field: value
      for field, value in new.items()
      if field != "method" and repr(value) != repr(old.get(field))
    },
  )


def parse_grid(axes: Sequence[str], config: ConfigDict) -> dict[str, list[Any]]:
  """Returns ``{"data.shots": [1, 5], ...}`` for ``["data.shots=1,5", ...]``.

  Values are those of ``--config.<field>=<value>``. Commas in round brackets or
  in quotes are part of a value, ``model.mean=(0.5,),(0.4,0.6)``, and a text all
  in quotes stands for what is within.

  Args:
    axes: A field with its values each.
    config: What has the fields.

  Raises:
    UserError: for a field that the config lacks or a value of another type.
  """
  parsed = {}
  for axis in axes:
    field, equals, values = (piece.strip() for piece in axis.partition("="))
    if not equals or field in parsed:
      raise UserError(
        f"--grid={axis}: wants <field>=<value>,<value>, and each field once."
      )
    config_lib.check_fields(config, [field])
    parsed[field] = [_parse(config, field, value) for value in _split(values)]
  return parsed


def _split(text: str) -> list[str]:
  """Splits at the commas that are not in brackets or quotes."""
  parts, depth, quote = [""], 0, ""
  for character in text:
    if quote:
      quote = "" if character == quote else quote
    elif character in "'\"":
      quote = character
    else:
      depth += (character == "(") - (character == ")")
    if character == "," and not depth and not quote:
      parts.append("")
    else:
      parts[-1] += character
  if depth or quote:
    raise UserError(f"--grid: {text}: a bracket or a quote is not closed.")
  return [part.strip() for part in parts]


def _parse(config: ConfigDict, field: str, text: str) -> Any:
  """Parses a value by the type of its field, as the command line does."""
  before = workdir.flatten(config.to_dict()).get(field)
  if before is None:
    raise UserError(f"--grid: {field} is a section; name one of its fields.")
  if isinstance(before, str) and len(text) > 1 and text[0] in "'\"":
    text = text[1:-1] if text[-1] == text[0] else text
  argv = ["", f"--config.{field}={text}"]
  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict(
      "config",
      config.copy_and_resolve_references(),
      flag_values=values,
      sys_argv=argv,
    )
    values(argv)
  except (flags.Error, TypeError, ValueError) as error:
    raise UserError(f"--grid: {' '.join(str(error).split())}.") from error
  return config_flags.get_override_values(values["config"])[field]


def commands(cells: Sequence[Cell]) -> list[str]:
  """Returns the commands of the unfinished cells, each as a shell's line.

  Raises:
    UserError: if a line would be several.
  """
  lines = []
  for cell in cells:
    # What cannot be read, or is another config's, main refuses.
    with contextlib.suppress(UserError):
      if workdir.results(cell.folder) is not None:
        workdir.claim(cell.folder, cell.config)
        continue
    lines.append(shlex.join(cell.command()))
    if "\n" in lines[-1]:
      raise UserError(f"{cell.name}: a value has a line break; use --jobs.")
  return lines
