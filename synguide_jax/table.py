"""Gathers results into a table; trains nothing.

python -m synguide_jax.table --workdirs='runs/digits_lowshot/*'
python -m synguide_jax.table --workdirs='runs/*/*' --output=table

With --output it writes table.md, .tex (for booktabs and graphicx), .csv (a line
for each experiment) and .json. Settings are laid side by side where there are
several. The paper's value stands beside a result of the same experiment; for
that, the path of synthetic images has the generator's name. What a config's
sweep has and its folder in runs/ has not is "not run"; its command is
below.
"""

import glob
from pathlib import Path

from absl import flags

from synguide_jax import console, missing, workdir
from synguide_jax.analysis import table
from synguide_jax.console import say
from synguide_jax.errors import UserError

_WORKDIRS = flags.DEFINE_list(
  "workdirs", None, "Folders, those above them, or patterns; by commas."
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Path without suffix; .md, .tex, .csv and .json are written."
)
flags.mark_flag_as_required("workdirs")
_FORMATS = {".md": table.markdown, ".tex": table.latex, ".csv": table.long_csv}


def main() -> int:
  """Runs the command; returns its exit code."""
  folders = sorted(
    {Path(path) for pattern in _WORKDIRS.value for path in glob.glob(pattern)}
  )
  # runs/* are experiments, with a folder for every row.
  below = {path.parent for f in folders for path in f.glob("*/results.json")}
  folders = sorted(below.union(folders))
  tables = table.gather(folders, missing.cells(folders))
  if not tables:
    raise UserError(
      f"No finished experiment (results.json) in {','.join(_WORKDIRS.value)}."
    )
  say(table.markdown(tables))
  if _OUTPUT.value:
    _write(_OUTPUT.value, tables)
  return 0


def _write(output: str, tables: list[dict]) -> None:
  files = {suffix: Path(output + suffix) for suffix in (*_FORMATS, ".json")}
  for suffix, path in files.items():
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      if suffix == ".json":
        workdir.write_json(path, tables)
      else:
        path.write_text(_FORMATS[suffix](tables) + "\n")
    except OSError as error:
      raise UserError(f"Cannot write {path}: {error.strerror}.") from error
  say(f"Written to {', '.join(map(str, files.values()))}")


if __name__ == "__main__":
  console.run(main)
