"""A diffusion model of scikit-learn's digits, some bad on purpose.

Synthetic images can be too uniform, too poor, or good; a method that uses them
must cope with each. The argument chooses::

  narrow  (default) guidance weight 3: typical digits, little variety
  weak    stopped after 300 steps, weight 3: blurred, and some are wrong
  strong  weight 0: the variety of the training images
  half    strong without half of its modes: of four clusters of each class's
          training images the two smallest are left out
  smoke   a few steps of a tiny network, for tests

Made where a config says `generate:configs/generators/digits.py[:arg]`. On two
CPU cores narrow takes 24 s, 2,000 images included. A support vector machine
trained on the real images recognises 100.0 (narrow), 70.3 (weak) and 98.1 %
(strong) of them; see BENCHMARKS.md.
"""

from synguide_jax import config as config_lib

ARGS = ("narrow", "weak", "strong", "half", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "narrow" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="narrow")
  config = config_lib.generator_defaults()

  # An experiment that asks for images puts its own sets and splits here.
  config.data.real = "digits"
  config.data.image_size = 8
  config.data.channels = 1
  config.data.validation = 200
  config.data.test = 697

  config.batch_size = 64
  config.num_steps = 3_000
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = "cosine"
  config.ema = 0.995
  config.eval_every = 500
  config.checkpoint_every = 1_000

  config.model = config_lib.ConfigDict()
  # A network of synthesis/networks.py; the other fields are its arguments.
  config.model.name = "residual_mlp"
  # Features of every hidden layer.
  config.model.width = 192
  # Residual blocks of two layers.
  config.model.blocks = 4
  # Share of activations dropped in training; against copying.
  config.model.dropout = 0.0

  config.sample.per_class = 200
  config.sample.guidance = 3.0

  if arg == "weak":
    config.num_steps = 300
  elif arg in ("strong", "half"):
    config.sample.guidance = 0.0
  if arg == "half":
    config.sample.modes, config.sample.dropped_modes = 4, 2
  return config_lib.generator_smoke(config) if arg == "smoke" else config
