"""A diffusion model of defects on magnetic tiles, at 64 px.

The 638 training images of configs/defects_lowshot.py, of six classes, the
smallest with a dozen. The paper's industrial images had two synthetic ones for
a real one, as many of every class; so have these:

  python -m synguide_jax.main --config=configs/defects_lowshot.py \
      --config.data.synthetic=generate:configs/generators/defects.py

The images are grey, as the real ones, and the classifier sees them resized.
EDM's augmentation, of which samples show nothing, keeps the generator from
learning its images by heart; copies.json, beside the images, says whether.

The argument is "full" (the default), "tiny" for CPUs, "auto", which chooses, or
"smoke". Hardware, wall time and result: not run.
"""

from synguide_jax import config as config_lib

ARGS = ("full", "tiny", "auto", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "full" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="full")
  if arg == "auto":
    arg = config_lib.choose_by_memory("tiny", full=8)
  config = config_lib.generator_defaults()
  # An experiment that asks for images puts its own sets and splits here.
  config.data.real = "folder:magnetic_tile"
  config.data.groups = r"pattern:_num_\d*?(?=\d{1,4}\.)"
  config.data.test = 400
  config.data.validation = 200
  config.data.image_size = 64
  config.data.channels = 1
  config.data.flip = True

  config.batch_size = 128
  config.num_steps = 30_000
  config.optimizer.learning_rate = 3e-4
  config.optimizer.warmup_steps = 1_000
  config.eval_every = 500
  config.checkpoint_every = 2_000
  config.diffusion.augment = 0.15

  config.model = config_lib.ConfigDict()
  # A network of synthesis/networks.py; the other fields are its arguments.
  config.model.name = "unet"
  # Channels at the images' own size ...
  config.model.width = 64
  # ... and by how much there are more, at each half of it.
  config.model.multipliers = (1, 2, 3, 4)
  # Residual blocks a level.
  config.model.blocks = 2
  # Sides at which there is self-attention, pixels.
  config.model.attention = (16, 8)
  # Share of activations dropped in training; against copying.
  config.model.dropout = 0.1
  # Type to compute in.
  config.model.dtype = "bfloat16"

  # Six classes: twice the training images.
  config.sample.per_class = 213
  config.sample.guidance = 0.5

  if arg == "tiny":
    config.batch_size = 32
    config.num_steps = 2_000
    config.optimizer.warmup_steps = 200
    config.model.width = 16
    config.model.multipliers = (1, 2, 3, 4)
    config.model.blocks = 1
    config.model.attention = (8,)
    config.model.dtype = "float32"
    config.sample.num_steps = 10
  return config_lib.generator_smoke(config) if arg == "smoke" else config
