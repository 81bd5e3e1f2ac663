"""Gathers results into a table; computes nothing.

python -m synguide_jax.table --workdirs='runs/digits_lowshot/*'
python -m synguide_jax.table --workdirs=... --output=table   # .md and .json
"""

import glob
from pathlib import Path

from absl import flags

from synguide_jax import console, workdir
from synguide_jax.analysis import table
from synguide_jax.console import say
from synguide_jax.errors import UserError

_WORKDIRS = flags.DEFINE_list(
  "workdirs", None, "Folders or patterns, separated by commas."
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Path without suffix; .md and .json are written."
)
flags.mark_flag_as_required("workdirs")


def main() -> int:
  """Runs the command; returns its exit code."""
  folders = sorted(
    {Path(path) for pattern in _WORKDIRS.value for path in glob.glob(pattern)}
  )
  tables = table.gather(folders)
  if not tables:
    raise UserError(
      f"No finished experiment (results.json) in {','.join(_WORKDIRS.value)}."
    )
  say(table.markdown(tables))
  if _OUTPUT.value:
    text, data = Path(f"{_OUTPUT.value}.md"), Path(f"{_OUTPUT.value}.json")
    try:
      text.parent.mkdir(parents=True, exist_ok=True)
      text.write_text(table.markdown(tables) + "\n")
      workdir.write_json(data, tables)
    except OSError as error:
      raise UserError(f"Cannot write {text}: {error.strerror}.") from error
    say(f"Written to {text} and {data}")
  return 0


if __name__ == "__main__":
  console.run(main)
