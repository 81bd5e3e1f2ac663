"""A diffusion model of CIFAR-10: the paper's first scenario.

The generator has seen the 45,000 training images, the classifier is to see ten
or a hundred of a class:

  python -m synguide_jax.synthesize --config=configs/generators/cifar10.py
  python -m synguide_jax.main --config=configs/cifar_lowshot.py

The second makes the images, too, by the argument "auto". The argument chooses

  full    (default) 35 million parameters, 51 million images seen
  small   9 million parameters, 13 million images seen
  tiny    1 million parameters, 0.6 million images seen, as CPUs can: colours
          and shapes of the classes, hardly objects
  auto    full with 32 GB of GPUs or TPUs, small with 8, otherwise tiny; for
          `generate:` and synthesize
  smoke   two steps of a tiny network, for tests

What memory full and small take is a guess. Their hardware, wall time and
result: not run. By its own estimate tiny takes two cores two hours to train and
one to make 45,000 images.
"""

from synguide_jax import config as config_lib
from synguide_jax import paper

ARGS = ("full", "small", "tiny", "auto", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "full" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="full")
  if arg == "auto":
    arg = config_lib.choose_by_memory("tiny", small=8, full=32)
  config = paper.with_cifar10(config_lib.generator_defaults())
  # No black borders; and of the synthetic images there are none yet.
  config.data.padding = 0
  config.data.synthetic_per_class = 0
  config.data.flip = True

  config.batch_size = 512
  config.num_steps = 100_000
  config.optimizer.learning_rate = 5e-4
  config.optimizer.warmup_steps = 5_000
  config.ema = 0.9995
  config.eval_every = 1_000
  config.checkpoint_every = 5_000

  config.model = config_lib.ConfigDict()
  # A network of synthesis/networks.py; the other fields are its arguments.
  config.model.name = "unet"
  # Channels at the images' own size ...
  config.model.width = 128
  # ... and by how much there are more, at each half of it.
  config.model.multipliers = (1, 2, 2, 2)
  # Residual blocks a level.
  config.model.blocks = 2
  # Sides at which there is self-attention, pixels.
  config.model.attention = (16,)
  # Share of activations dropped in training; against copying.
  config.model.dropout = 0.1
  # Type to compute in.
  config.model.dtype = "bfloat16"

  # As many as there are training images.
  config.sample.per_class = 4_500
  config.sample.guidance = 0.5

  if arg == "small":
    config.batch_size = 128
    config.model.width = 64
  elif arg == "tiny":
    config.batch_size = 64
    config.num_steps = 10_000
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.ema = 0.999
    config.eval_every = 250
    config.checkpoint_every = 500
    config.model.width = 24
    config.model.multipliers = (1, 2, 3)
    config.model.blocks = 1
    config.model.attention = (8,)
    config.model.dropout = 0.0
    config.model.dtype = "float32"
    config.sample.num_steps = 10
    config.sample.guidance = 0.0
  return config_lib.generator_smoke(config) if arg == "smoke" else config
