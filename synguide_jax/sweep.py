"""Runs the rows of a config's table that are not finished, one workdir each.

  python -m synguide_jax.sweep --config=configs/digits_lowshot.py
  python -m synguide_jax.sweep --config=... --methods=real,fake,aug

The rows are the config file's `get_sweep()`. Overrides hold for all of them,
but for the fields that a row sets itself.
"""

import time

from absl import flags
from ml_collections import config_flags

from synguide_jax import config as config_lib
from synguide_jax import console, experiment, workdir
from synguide_jax.analysis import table
from synguide_jax.console import say
from synguide_jax.errors import DivergedError, UserError

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file in configs/, with :argument.", lock_config=True
)
_METHODS = flags.DEFINE_list("methods", None, "Only rows of these methods.")
flags.mark_flag_as_required("config")


def main() -> int:
  """Runs the command; returns its exit code."""
  file = config_flags.get_config_filename(flags.FLAGS["config"])
  base, rows = config_lib.load(file), config_lib.load_sweep(file)
  known = {row["method"] for row in rows}
  if unknown := set(_METHODS.value or ()) - known:
    raise UserError(
      f"--methods={','.join(sorted(unknown))}: {file} has rows of "
      f"{', '.join(sorted(known))}."
    )
  rows = [r for r in rows if r["method"] in (_METHODS.value or known)]
  folders, failed = [], 0
  for number, row in enumerate(rows, start=1):
    config = config_lib.override(_CONFIG.value, row)
    folder = workdir.default_workdir(file, config, base)
    folders.append(folder)
    started = time.monotonic()
    try:
      finished = workdir.results(folder) is not None
      results = experiment.run(config, folder, show_progress=False)
      took = console.duration(time.monotonic() - started)
      outcome = experiment.headline(results)
      outcome += "  (finished before)" if finished else f"  in {took}"
    # One row that cannot run must not keep the others from it.
    except (DivergedError, UserError) as error:
      failed += 1
      outcome = f"failed: {' '.join(str(error).split())}"
    name = table.label(workdir.flatten(config.to_dict()), row)
    say(f"[{number:2}/{len(rows)}] {name}: {outcome}")
  experiment.show_table(folders)
  return 1 if failed else 0


if __name__ == "__main__":
  console.run(main)
