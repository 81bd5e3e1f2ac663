"""M_p of the digits experiment: a small network that reads letters.

Trained on 12,000 rendered 8x8 letters, A-Z and a-z; it never sees a digit.
Made on the spot, and kept, where a config says `train:configs/letters.py`.

  python -m synguide_jax.main --config=configs/letters.py

26 s on two CPU cores, rendering included; validation accuracy 92.7 (n = 1; some
letters look alike: o and O, s and S).
"""

from synguide_jax import config as config_lib

ARGS = ("full", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "full" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="full")
  config = config_lib.classifier_defaults()
  config.method = "real"
  config.num_runs = 1

  config.data.real = "letters"
  config.data.image_size = 8
  config.data.channels = 1
  config.data.padding = 1
  config.data.validation = 1_000
  config.data.test = 1_000

  config.model.name = "small_cnn"
  config.batch_size = 128
  config.num_steps = 6 if arg == "smoke" else 2_000
  config.optimizer.learning_rate = 3e-3
  config.optimizer.schedule = "cosine"
  config.eval_every = 3 if arg == "smoke" else 500
  config.checkpoint_every = 3 if arg == "smoke" else 1_000
  return config
