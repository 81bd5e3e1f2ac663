"""Synthetic CUB-200-2011 birds and no real one: Table 2, "CUB".

Row "Ours (KL)"; the sweep trains all of them. Name
your own synthetic images, 4,521 in the paper:

  python -m synguide_jax.main --config=configs/cub_zeroshot.py \
      --config.data.synthetic=folder:<path>

`cub_zeroshot.py:imagenet` (the default) begins from ImageNet weights, the
paper's (B), `:scratch` from random ones, its (A). The header of cub_lowshot.py
says which birds they are and how classes are matched. The last weights are
tested; validation images only draw a curve.

Hardware, wall time and result: not run.
"""

from synguide_jax import config as config_lib
from synguide_jax import paper

ARGS = ("imagenet", "scratch", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "imagenet" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="imagenet")
  config = paper.zero_shot(scratch=arg == "scratch")
  config.data.real = "tfds:caltech_birds2011"
  config.data.match_classes = "index"
  # A few of the photographs are grey.
  config.data.convert_channels = True
  # 4,600; the paper has 4,521.
  config.data.synthetic_per_class = 23
  # Left out of "Real", as in cub_lowshot.py.
  config.data.validation = 1_000
  return config_lib.smoke(config) if arg == "smoke" else config


def get_sweep(arg=None):
  """Returns the rows of Table 2."""
  del arg
  return paper.zero_shot_rows()
