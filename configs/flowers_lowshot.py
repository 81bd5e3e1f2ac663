"""Oxford flowers, as many synthetic as real ones: Table 4, "Flower".

Setting 2 of the paper's low-shot experiments: the generator has seen no more
real images than the classifier. Name your own synthetic images:

  python -m synguide_jax.main --config=configs/flowers_lowshot.py \
      --config.data.synthetic=folder:<path>

Its folders have the names of tfds, "pink primrose" to "blackberry lily"; if
they are called 1 to 102 instead, say --config.data.match_classes=index.

The paper has 1,010 real and 1,010 synthetic images, ten of each of 101 classes;
it does not name the class that is missing. Here all 102 are trained on, with
the official splits of 1,020 training, 1,020 validation and 6,149 test images.

Hardware, wall time and result: not run.
"""

from synguide_jax import config as config_lib
from synguide_jax import paper

ARGS = ("full", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "full" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="full")
  config = paper.low_shot()
  config.data.real = "tfds:oxford_flowers102"
  # As many as real ones.
  config.data.synthetic_per_class = 10
  # About six epochs.
  config.eval_every = 100
  return config_lib.smoke(config) if arg == "smoke" else config


def get_sweep(arg=None):
  """Returns the rows of Table 4."""
  del arg
  return paper.low_shot_rows()
