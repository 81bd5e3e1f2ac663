"""Trains and evaluates one config.

  python -m synguide_jax.main --config=configs/digits_lowshot.py

Any field can be overridden, `--config.method=aug --config.data.shots=5`. The
libraries do the work and can be called without this file.
"""

from absl import flags
from etils import epath
from ml_collections import config_flags

from synguide_jax import __version__, console, experiment, hosts, workdir
from synguide_jax import config as config_lib
from synguide_jax.console import say

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file in configs/, with :argument.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where to write, also gs://...; runs/<config>/<method> by default.",
)
_MULTIHOST = flags.DEFINE_bool(
  "multihost",
  False,
  "Train together with the same command on other hosts; see launch/README.md.",
)
_PROFILE = flags.DEFINE_integer(
  "profile",
  0,
  "Steps to write a TensorBoard trace of, from the eleventh on.",
  lower_bound=0,
)
flags.mark_flag_as_required("config")


def main() -> int:
  """Runs the command; returns its exit code."""
  if _MULTIHOST.value:
    hosts.initialize()
  config = _CONFIG.value
  file = config_flags.get_config_filename(flags.FLAGS["config"])
  folder = (
    epath.Path(_WORKDIR.value)
    if _WORKDIR.value
    else workdir.default_workdir(file, config, config_lib.load(file))
  )
  say(f"synguide_jax {__version__}: {file}, method {config.method}")
  workdir.claim(folder, config)
  if workdir.results(folder) is not None:
    say(f"Finished before; delete {folder} to train again.")
  results = experiment.run(config, folder, profile=_PROFILE.value)
  say()
  for line in experiment.summary(results):
    say(line)
  say(f"Written to {folder}: results.json, config.json, checkpoints/, events")
  return 0


if __name__ == "__main__":
  console.run(main)
