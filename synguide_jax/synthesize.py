"""Makes a set of synthetic images with the built-in generator.

  python -m synguide_jax.synthesize --config=configs/generators/digits.py

Trains the generator, or continues or finds it, samples, lets a classifier label
and filter if the config names one, and stores the images in the cache folder,
with a contact sheet for each class. An experiment that names the same file,
`--config.data.synthetic=generate:configs/generators/digits.py`, makes it, too.
"""

import functools

from ml_collections import config_flags

from synguide_jax import console, experiment
from synguide_jax.console import say

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  "configs/generators/digits.py",
  "A file in configs/generators/, with :argument.",
  lock_config=True,
)


def main() -> int:
  """Runs the command; returns its exit code."""
  from absl import flags

  file = config_flags.get_config_filename(flags.FLAGS["config"])
  from synguide_jax import generators

  train = functools.partial(experiment.train, show_progress=True)
  folder = generators.make_set(file, _CONFIG.value, train)
  say(f"Use it with --config.data.synthetic=prepared:{folder}")
  return 0


if __name__ == "__main__":
  console.run(main)
