"""A WRN-28-10 on real CIFAR-10: the classifier that labels synthetic images.

The paper labels LSGM's images, which have no class, with the CIFAR-10 network
of xinntao/pytorch-classification-1 (96.21 %) and keeps those it is sure of,
softmax above 0.8, of SG-XL's too. This trains the same network in the same way:

  python -m synguide_jax.main --config=configs/wrn_labeler.py

All 50,000 training images, 200 epochs, no validation: the last weights are
tested. The validation images of the other CIFAR configs are among them;
--config.data.validation=5000 leaves out just these.

Hardware, wall time and result: not run.
"""

from synguide_jax import config as config_lib

ARGS = ("full", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "full" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="full")
  config = config_lib.classifier_defaults()
  config.method = "real"
  config.num_runs = 1
  # There are no validation images to select by.
  config.select = "last"

  config.data.real = "tfds:cifar10"
  config.data.image_size = 32
  config.data.padding = 4
  config.data.flip = True

  # Its dropout is 0.3.
  config.model.name = "wide_resnet28_10"
  # Of CIFAR-10.
  config.model.mean = (0.4914, 0.4822, 0.4465)
  config.model.std = (0.2023, 0.1994, 0.2010)

  config.batch_size = 128
  config.num_epochs = 200.0
  config.optimizer.name = "sgd"
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 5e-4
  config.optimizer.learning_rate = 0.1
  # A fifth after 60, 120 and 160 epochs.
  config.optimizer.schedule = "step"
  config.optimizer.decay_factor = 0.2
  config.optimizer.decay_at = (0.3, 0.6, 0.8)
  # About ten epochs.
  config.eval_every = 4_000
  config.checkpoint_every = 4_000
  return config_lib.smoke(config) if arg == "smoke" else config
