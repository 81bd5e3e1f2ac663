"""Trains and evaluates one config.

  python -m synguide_jax.main --config=configs/digits_lowshot.py

Any field can be overridden, `--config.method=aug --config.data.shots=5`. The
libraries do the work and can be called without this file.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from synguide_jax import __version__, console, experiment, workdir
from synguide_jax import config as config_lib
from synguide_jax.console import say

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file in configs/, with :argument.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where to write; runs/<config>/<method> by default."
)
flags.mark_flag_as_required("config")


def main() -> int:
  """Runs the command; returns its exit code."""
  config = _CONFIG.value
  file = config_flags.get_config_filename(flags.FLAGS["config"])
  folder = (
    Path(_WORKDIR.value)
    if _WORKDIR.value
    else workdir.default_workdir(file, config, config_lib.load(file))
  )
  say(f"synguide_jax {__version__}: {file}, method {config.method}")
  workdir.claim(folder, config)
  if workdir.results(folder) is not None:
    say(f"Finished before; delete {folder} to train again.")
  results = experiment.run(config, folder)
  say()
  for line in experiment.summary(results):
    say(line)
  say(f"Written to {folder}: results.json, config.json, checkpoints/, events")
  return 0


if __name__ == "__main__":
  console.run(main)
