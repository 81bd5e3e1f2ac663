"""45,000 synthetic CIFAR-10 images and no real one: Table 2, "CIFAR-10".

Row "Ours (KL)"; the sweep trains all of them. Name
your own synthetic images:

  python -m synguide_jax.main --config=configs/cifar_zeroshot.py \
      --config.data.synthetic=folder:<path>

`cifar_zeroshot.py:imagenet` (the default) begins from ImageNet weights, the
paper's (B), `:scratch` from random ones, its (A). The last weights are tested;
the 5,000 real validation images only draw a curve.

Hardware, wall time and result: not run.
"""

from synguide_jax import config as config_lib
from synguide_jax import paper

ARGS = ("imagenet", "scratch", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "imagenet" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="imagenet")
  config = paper.with_cifar10(paper.zero_shot(scratch=arg == "scratch"))
  # About three epochs of 352 steps.
  config.eval_every = 1_000
  return config_lib.smoke(config) if arg == "smoke" else config


def get_sweep(arg=None):
  """Returns the rows of Table 2."""
  del arg
  return paper.zero_shot_rows()
