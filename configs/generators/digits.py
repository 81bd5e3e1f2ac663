"""A diffusion model of scikit-learn's digits, three of them on purpose.

Synthetic images can be too uniform, too poor, or good; a method that uses them
must cope with each. The argument chooses::

  narrow  (default) guidance weight 3: typical digits, little variety
  weak    stopped after 300 steps, weight 3: blurred, and some are wrong
  strong  weight 0: the variety of the training images
  smoke   a few steps of a tiny network, for tests

Made where a config says `generate:configs/generators/digits.py[:arg]`. On two
CPU cores narrow takes 28 s, 2,000 images included. A support vector machine
trained on the real images recognises 100.0 (narrow), 70.3 (weak) and 98.1 %
(strong) of them; see BENCHMARKS.md.
"""

from synguide_jax import config as config_lib

ARGS = ("narrow", "weak", "strong", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "narrow" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="narrow")
  config = config_lib.training_defaults()
  config.method = "diffusion"
  config.num_runs = 1
  # There is no accuracy to select by.
  config.select = "last"

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
  config.eval_every = 500
  config.checkpoint_every = 1_000

  config.model = config_lib.ConfigDict()
  # A network of synthesis/diffusion.py; the other fields are its arguments.
  config.model.name = "residual_mlp"
  # Features of every hidden layer.
  config.model.width = 192
  # Residual blocks of two layers.
  config.model.blocks = 4
  # Share of activations dropped in training; against copying.
  config.model.dropout = 0.0

  config.diffusion = config_lib.ConfigDict()
  # Share of labels replaced by the null class; guidance needs more than 0.
  config.diffusion.label_dropout = 0.1
  # Assumed standard deviation of images in [-1, 1].
  config.diffusion.sigma_data = 0.5
  # Mean of ln(sigma) in training.
  config.diffusion.p_mean = -1.2
  # Standard deviation of ln(sigma) in training.
  config.diffusion.p_std = 1.2
  # Noise level before the sampler's last step.
  config.diffusion.sigma_min = 0.002
  # Noise level the sampler starts from.
  config.diffusion.sigma_max = 80.0
  # Larger: more of the sampler's steps at low noise.
  config.diffusion.rho = 7.0
  # Largest decay a step of the parameters' moving average.
  config.ema = 0.995

  config.sample = config_lib.ConfigDict()
  # Images a class to generate.
  config.sample.per_class = 200
  # "interleaved": one of each class in turn; "by_class".
  config.sample.order = "interleaved"
  # Weight of classifier-free guidance; 0: none, more: more alike.
  config.sample.guidance = 3.0
  # Steps of the sampler, at two passes each, four with guidance.
  config.sample.num_steps = 18
  # Seed of the noise; image n of a class is the same for any per_class.
  config.sample.seed = 0
  # Images generated at a time; memory only.
  config.sample.batch_size = 250

  if arg == "weak":
    config.num_steps = 300
  elif arg == "strong":
    config.sample.guidance = 0.0
  elif arg == "smoke":
    config.num_steps = 4
    config.batch_size = 8
    config.model.width = 16
    config.model.blocks = 1
    config.sample.per_class = 20
    config.sample.num_steps = 2
    config.sample.batch_size = 50
    config.eval_every = 2
    config.checkpoint_every = 2
  return config
