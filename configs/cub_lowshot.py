"""CUB-200-2011 birds, as many synthetic as real ones: Table 4, "CUB".

Setting 2 of the paper's low-shot experiments: the generator has seen no more
real images than the classifier. Name your own synthetic images:

  python -m synguide_jax.main --config=configs/cub_lowshot.py \
      --config.data.synthetic=folder:<path>

tfds calls the birds "0" to "199", so the synthetic classes are matched by their
order, which is that of the official folders 001.Black_footed_Albatross to
200.Common_Yellowthroat.

The paper has 4,521 real and 4,521 synthetic images of classes that it does not
name. Here all 200 are trained on: 4,994 of the 5,994 official training images,
1,000 for validation, 5,794 for the test.

Hardware, wall time and result: not run.
"""

from synguide_jax import config as config_lib
from synguide_jax import paper

ARGS = ("full", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "full" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="full")
  config = paper.low_shot()
  config.data.real = "tfds:caltech_birds2011"
  config.data.match_classes = "index"
  # A few of the photographs are grey.
  config.data.convert_channels = True
  # About as many as real ones.
  config.data.synthetic_per_class = 25
  # Five of each class; the test images are the official ones.
  config.data.validation = 1_000
  # About four epochs.
  config.eval_every = 300
  return config_lib.smoke(config) if arg == "smoke" else config


def get_sweep(arg=None):
  """Returns the rows of Table 4."""
  del arg
  return paper.low_shot_rows()
