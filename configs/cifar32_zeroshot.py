"""A network for 32 px, guided by a ResNet-50 that sees 224 px: Table 3.

M_u has no ImageNet weights and another structure than M_p. Name your own
synthetic images, 45,000 in the paper:

  python -m synguide_jax.main --config=configs/cifar32_zeroshot.py \
      --config.data.synthetic=folder:<path>

The paper guides 256 features with 1,024 and cites kuangliu/pytorch-cifar, whose
ResNet-50 has 1,024 in its third stage as well. 256 are in the third stage of
the CIFAR ResNet of "depth 50" in bearpaw/pytorch-classification: `:narrow`, the
default here. `:wide` is kuangliu's.

Hardware, wall time and result: not run.
"""

from synguide_jax import config as config_lib
from synguide_jax import paper

ARGS = ("narrow", "wide", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "narrow" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="narrow")
  config = paper.with_cifar10(paper.zero_shot(scratch=True))
  wide = arg == "wide"
  config.model.name = "cifar_resnet50" if wide else "cifar_resnet_narrow50"
  # Only M_p resizes the images.
  config.model.image_size = 0
  # Of CIFAR-10.
  config.model.mean = (0.4914, 0.4822, 0.4465)
  config.model.std = (0.2023, 0.1994, 0.2010)
  # About three epochs of 352 steps.
  config.eval_every = 1_000
  return config_lib.smoke(config) if arg == "smoke" else config


def get_sweep(arg=None):
  """Returns the rows of Table 3."""
  del arg
  return paper.zero_shot_rows(alike=False)
