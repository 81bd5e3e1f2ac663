"""Synthetic defects on magnetic tiles and no real one: for Table 2, "SDI".

Row "Ours (KL)"; the sweep trains all of them. The
header of defects_lowshot.py says where the real images are, which are tested
on, and what stands in for what. Name your own synthetic images:

  python -m synguide_jax.main --config=configs/defects_zeroshot.py \
      --config.data.synthetic=folder:<path>

`defects_zeroshot.py:imagenet` (the default) begins from ImageNet weights, the
paper's (B), `:scratch` from random ones, its (A). The last weights are tested;
validation images only draw a curve.

Hardware, wall time and result: not run.
"""

from synguide_jax import config as config_lib
from synguide_jax import paper

ARGS = ("imagenet", "scratch", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "imagenet" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="imagenet")
  config = paper.zero_shot(scratch=arg == "scratch")
  config.data.real = "folder:magnetic_tile"
  # As in defects_lowshot.py, so that both are tested on the same images.
  config.data.groups = r"pattern:_num_\d*?(?=\d{1,4}\.)"
  config.data.test = 400
  config.data.validation = 200
  config.eval_every = 200
  return config_lib.smoke(config) if arg == "smoke" else config


def get_sweep(arg=None):
  """Returns the rows of Table 2."""
  del arg
  return paper.zero_shot_rows()
