"""ImageNet with synthetic images beside the real ones, streamed from disk.

Not in the paper's main text; a recipe for sets that no device can hold. Images
are decoded while the network trains, by processes beside it.

  python -m synguide_jax.main --config=configs/imagenet.py \
      --config.data.synthetic=folder:<path>

tfds cannot download ImageNet: put ILSVRC2012_img_train.tar and
ILSVRC2012_img_val.tar into $TFDS_DATA_DIR/downloads/manual first. Its classes
are WordNet's, and the folders of the synthetic images are called like them:
n01440764 to n15075141.

The usual test images are tfds's split "validation" (data.test_split); those
that weights are chosen by are split off the training images.

Method aug draws from the union of both sets; --config.method=guided adds Real
and Pretrained Guidance, M_p having learnt from these very images and labels. An
epoch is a pass over that union, or, of guided, over the synthetic images.

Hardware, wall time and result: not run.
"""

from synguide_jax import config as config_lib
from synguide_jax import paper

ARGS = ("full", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "full" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="full")
  config = paper.low_shot()
  config.method = "aug"
  config.num_runs = 1
  # Not on the synthetic images; there may be a million.
  config.evaluate_on = ("test",)

  config.data.real = "tfds:imagenet2012"
  config.data.test_split = "validation"
  # Ten of each class.
  config.data.validation = 10_000
  # Some of the photographs are grey.
  config.data.convert_channels = True
  config.data.feed = "stream"
  config.data.crop = "random_resized"

  config.model.init = "scratch"
  config.model.dtype = "bfloat16"
  config.pretrained.dtype = "bfloat16"

  # Goyal et al., Accurate, Large Minibatch SGD, 2017, with a cosine.
  config.batch_size = 256
  config.num_epochs = 90.0
  config.optimizer.name = "sgd"
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 1e-4
  config.optimizer.learning_rate = 0.1
  config.optimizer.schedule = "cosine"
  # As many steps as a pass over the real images alone takes.
  config.optimizer.warmup_steps = 5_000
  config.eval_every = 5_000
  config.checkpoint_every = 5_000
  return config_lib.smoke(config) if arg == "smoke" else config
