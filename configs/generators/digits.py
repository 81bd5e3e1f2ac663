"""A diffusion model of scikit-learn's digits, three of them on purpose.

Synthetic images can be too uniform, too poor, or good; a method that uses them
must cope with each. The argument chooses::

  narrow  (default) guidance weight 3: typical digits, little variety
  weak    stopped after 300 steps, weight 3: blurred, and some are wrong
  strong  weight 0: the variety of the training images
  smoke   a few steps of a tiny network, for tests

Command:   not run
Hardware:  not run
Wall time: not run
Result:    not run
"""

import ml_collections

ARGS = ("narrow", "weak", "strong", "smoke")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; ``arg`` is one of ``ARGS``, by default "narrow"."""
  arg = arg or "narrow"
  if arg not in ARGS:
    raise ValueError(
      f"Unknown argument {arg!r} of configs/generators/digits.py; known: "
      f"{', '.join(ARGS)}."
    )
  config = ml_collections.ConfigDict()

  # What is trained, by this name in the registry of methods.
  config.method = "diffusion"
  # Seed of initialisation, batches and noise in training.
  config.seed = 0
  # Generators trained at once.
  config.num_runs = 1
  # Number of the first run; runs with one number see the same images.
  config.first_run = 0
  # How runs share the device: "vmap" or "map".
  config.runs_mode = "vmap"

  config.data = ml_collections.ConfigDict()
  # Images to learn from.
  config.data.real = "digits"
  # Training images a class; -1: all.
  config.data.shots = -1
  # No synthetic images: a generator learns from real ones.
  config.data.synthetic = ""
  # Height and width of the images, pixels.
  config.data.image_size = 8
  # Side they are stored with before cropping, pixels; 0: image_size.
  config.data.store_size = 0
  # 1: grey, 3: RGB.
  config.data.channels = 1
  # Pixels added at each side before a random crop; 0: no crop.
  config.data.padding = 0
  # Whether images are mirrored at random; a mirrored digit is none.
  config.data.flip = False
  # Seed of the split, the same in every config of the digits.
  config.data.split_seed = 2024
  # Images held out for validation, stratified by class.
  config.data.validation = 200
  # Images held out for the test, stratified by class; 900 are left.
  config.data.test = 697

  # Images a step and run, over all devices.
  config.batch_size = 64
  # Length of the training, steps.
  config.num_steps = 3000

  config.optimizer = ml_collections.ConfigDict()
  # adam, adamw or sgd; the weight of the loss is made for adam.
  config.optimizer.name = "adam"
  # Learning rate of the first step.
  config.optimizer.learning_rate = 2e-3
  # constant, or cosine to zero.
  config.optimizer.schedule = "cosine"
  # Steps of linear rise before that, part of num_steps.
  config.optimizer.warmup_steps = 0
  # Of sgd.
  config.optimizer.momentum = 0.9
  # Decoupled in adamw, otherwise added to the gradient.
  config.optimizer.weight_decay = 0.0

  config.model = ml_collections.ConfigDict()
  # A network of synthesis/diffusion.py; the other fields are its arguments.
  config.model.name = "residual_mlp"
  # Features of every hidden layer.
  config.model.width = 192
  # Residual blocks of two layers.
  config.model.blocks = 4
  # Share of activations dropped in training; against copying.
  config.model.dropout = 0.0

  config.diffusion = ml_collections.ConfigDict()
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

  config.sample = ml_collections.ConfigDict()
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

  # "last": there is no accuracy by which to choose weights.
  config.select = "last"
  # Steps between two reports of the loss.
  config.eval_every = 500
  # Unused, since a generator classifies nothing; 1 or more.
  config.eval_batch_size = 256
  # Steps between two checkpoints.
  config.checkpoint_every = 1000

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
