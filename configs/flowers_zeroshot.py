"""Synthetic Oxford flowers and no real one: Table 2, "Flower".

Row "Ours (KL)"; the sweep trains all of them. Name
your own synthetic images, 1,010 in the paper:

  python -m synguide_jax.main --config=configs/flowers_zeroshot.py \
      --config.data.synthetic=folder:<path>

`flowers_zeroshot.py:imagenet` (the default) begins from ImageNet weights, the
paper's (B), `:scratch` from random ones, its (A). Of the images see
flowers_lowshot.py. The last weights are tested; the official validation images
only draw a curve.

Hardware, wall time and result: not run.
"""

from synguide_jax import config as config_lib
from synguide_jax import paper

ARGS = ("imagenet", "scratch", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "imagenet" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="imagenet")
  config = paper.zero_shot(scratch=arg == "scratch")
  config.data.real = "tfds:oxford_flowers102"
  # As the paper has them.
  config.data.synthetic_per_class = 10
  # About 12 epochs.
  config.eval_every = 100
  return config_lib.smoke(config) if arg == "smoke" else config


def get_sweep(arg=None):
  """Returns the rows of Table 2."""
  del arg
  return paper.zero_shot_rows()
