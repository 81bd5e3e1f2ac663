"""Ten real digits a class and 2,000 synthetic ones: Table 4 in miniature.

The paper's low-shot setting 1 (the generator has seen many real images, the
classifier a few) on scikit-learn's 8x8 handwritten digits. The generator is
the project's own diffusion model, M_p a small network that reads letters.

  python -m synguide_jax.main --config=configs/digits_lowshot.py
  python -m synguide_jax.sweep --config=configs/digits_lowshot.py
  python -m synguide_jax.table --workdirs='runs/digits_lowshot/*'

On two CPU cores the first takes a minute and gives 92.74 +- 0.99 (n = 10). For
the second see BENCHMARKS.md.

The argument chooses the synthetic images, see configs/generators/digits.py:
`digits_lowshot.py:narrow` (the default), `:weak`, `:strong`, or `:smoke`.
"""

import itertools

from synguide_jax import config as config_lib

ARGS = ("narrow", "weak", "strong", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "narrow" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="narrow")
  config = config_lib.classifier_defaults()
  config.method = "guided"
  config.num_runs = 10

  config.data.real = "digits"
  # A generator trained on the 900 images of the training pool; 200 a class.
  config.data.synthetic = f"generate:configs/generators/digits.py:{arg}"
  config.data.image_size = 8
  config.data.channels = 1
  # Random crops of images with one pixel of black around; a mirrored digit is
  # none, so there is no flip.
  config.data.padding = 1
  # Of 1,797 images; 900 are left to draw shots from.
  config.data.validation = 200
  config.data.test = 697
  config.data.shots = 10

  config.model.name = "small_cnn"
  config.pretrained.weights = "train:configs/letters.py"
  config.pretrained.random_model = "small_cnn"
  # Fixed beforehand, not tuned: lambda_1 = lambda_2 = 1, lambda_3 = 10.
  config.guidance.pg_weight = 10.0

  config.batch_size = 64
  config.num_steps = 300
  config.optimizer.learning_rate = 2e-3
  config.optimizer.schedule = "cosine"
  # About one pass over the synthetic images.
  config.eval_every = 30
  config.checkpoint_every = 150

  if arg == "smoke":
    config.num_runs = 2
    config.num_steps = 6
    config.pretrained.weights = "train:configs/letters.py:smoke"
    config.eval_every = 3
    config.checkpoint_every = 3
  return config


def get_sweep(arg=None):
  """Returns the rows of the experiment's table, as overrides."""
  letters = get_config(arg).pretrained.weights
  plain = ("real", "fake", "aug", "balanced", "weighted")
  published = ("adp", "adda", "dada", "dann", "ltda", "asg", "csg", "a_gem")
  # RG, PG-R and PG-F: all of them but the one without any, which is aug.
  switches = ("guidance.rg", "guidance.pg_real", "guidance.pg_synthetic")
  combinations = list(itertools.product((False, True), repeat=3))[1:]
  return [
    *({"method": method} for method in plain),
    {"method": "weighted", "weighted.replacement_probability": 0.5},
    *({"method": method} for method in published),
    # The zero-shot "Ours" of Table 2, which sees no real image.
    {
      "method": "guided",
      "data.shots": 0,
      "guidance.rg": False,
      "guidance.pg_real": False,
    },
    *(
      {"method": "guided", **dict(zip(switches, on, strict=True))}
      for on in combinations
    ),
    # lambda_3 chosen on validation, out of 10, 30, 100 and 300.
    {"method": "guided", "guidance.pg_weight": 100.0},
    # Controls: is it the pretrained network, and does it have to be a loss?
    {"method": "guided", "pretrained.weights": "random"},
    {
      "method": "guided",
      "guidance.pg_weight": 100.0,
      "pretrained.weights": "random",
    },
    {"method": "linear_probe", "transfer.train_on": "real"},
    {"method": "linear_probe"},
    {"method": "finetune", "transfer.train_on": "real"},
    {"method": "finetune"},
    {"method": "guided", "model.init": letters},
    # The real images that were there: what the synthetic ones compete with.
    {"method": "real", "data.shots": -1},
  ]
