"""Your own two folders of images, real and synthetic, with both guidances.

  python -m synguide_jax.main --config=configs/folder.py \
      --config.data.real=folder:<path> --config.data.synthetic=folder:<path>

Both hold <class>/<image>; the real one may hold <split>/<class>/<image>, the
splits being train, validation and test. Without splits a fifth of the images is
set aside for the test and a fifth of the rest for validation, or so many:

      --config.data.validation=100 --config.data.test=200

A generator must not have been trained on them. With few images, test on all of
them by cross-validation: each of five runs leaves another fifth out.

      --config.data.folds=5 --config.num_runs=5

Images of one object must stay together; here those named alike up to their
last _:

      --config.data.groups='pattern:[^/]*(?=_[^/]*$)'

Images that are all grey become RGB ones, as the ImageNet network wants; where
only some are, say --config.data.convert_channels=True. What it is worth:

  python -m synguide_jax.sweep --config=configs/folder.py <the same fields>
  python -m synguide_jax.table --workdirs='runs/folder/*'

Hardware, wall time and result: yours.
"""

from synguide_jax import config as config_lib
from synguide_jax import paper

ARGS = ("full", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "full" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="full")
  config = paper.low_shot()
  # Both must be given.
  config.data.real = ""
  config.data.synthetic = ""
  # The set's own splits, or a fifth of the images.
  config.data.validation = -1
  config.data.test = -1
  # 32 real and 32 synthetic images a step, where both have a stream.
  config.batch_size = 64
  config.num_steps = 5_000
  config.eval_every = 250
  return config_lib.smoke(config) if arg == "smoke" else config


def get_sweep(arg=None):
  """Returns the rows of the paper's Table 4."""
  del arg
  return paper.low_shot_rows()
