"""Ten real CIFAR-10 images a class and 45,000 synthetic ones: Table 4.

Setting 1 of the paper's low-shot experiments (columns "CIFAR-10 (10-shots)").
Name your own synthetic images, there is no public set of them:

  python -m synguide_jax.main --config=configs/cifar_lowshot.py \
      --config.data.synthetic=folder:<path>

M_p is torchvision's ImageNet ResNet-50 (its first weights, as the codes of the
paper's baselines use) from the Hugging Face hub. Without network, take any
checkpoint folder that transformers or timm left, or a file of torchvision's:

      --config.pretrained.weights=<folder or file>

It sees the 32 px images resized to what it expects, 224 px;
--config.pretrained.image_size=96 leaves a fifth of the pixels.

Differs from the paper so far: images of 32 px and kuangliu's ResNet-18 from
scratch instead of 224 px and an ImageNet ResNet-50.

An epoch is a pass over the synthetic images, or the only ones there are: 200
of them are 140,625 steps of guided (64 synthetic images each), 70,469 of aug,
and 157 of real with ten shots; set num_steps to compare at equal steps.

Hardware, wall time and result: not run.
"""

from synguide_jax import config as config_lib

ARGS = ("full", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "full" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="full")
  config = config_lib.classifier_defaults()
  config.method = "guided"
  # As the paper: means over five random runs.
  config.num_runs = 5

  # Or folder:<path> with <split>/<class>/<image>.
  config.data.real = "tfds:cifar10"
  # folder:<path> with <class>/<image>, or tfds:<name>.
  config.data.synthetic = ""
  config.data.image_size = 32
  config.data.padding = 4
  config.data.flip = True
  # 500 of each class; the test images are the official ones.
  config.data.validation = 5_000
  config.data.shots = 10

  config.model.name = "cifar_resnet18"
  config.model.mean = (0.4914, 0.4822, 0.4465)
  config.model.std = (0.2023, 0.1994, 0.2010)
  config.pretrained.weights = "hf:timm/resnet50.tv_in1k"
  # The paper's 1,024 channels are this stage's.
  config.pretrained.feature_layer = "stage3"

  # 64 real and 64 synthetic images a step. The paper does not say which
  # optimiser; the learning rate is its own.
  config.batch_size = 128
  config.num_epochs = 200.0
  config.optimizer.learning_rate = 1e-4
  config.eval_every = 500
  config.checkpoint_every = 1_000

  if arg == "smoke":
    # Digits stand in for both sets, a random network for the pretrained one.
    config.num_runs = 1
    config.data.real = "digits"
    config.data.synthetic = "digits"
    config.data.validation = 40
    config.data.test = 40
    config.pretrained.weights = "random"
    config.batch_size = 8
    config.num_steps = 2
    config.eval_batch_size = 40
    config.evaluate_on = ("test",)
    config.eval_every = 2
    config.checkpoint_every = 2
  return config


def get_sweep(arg=None):
  """Returns the rows of Table 4 that can be trained so far."""
  del arg
  methods = ("real", "fake", "aug", "balanced", "weighted", "a_gem", "guided")
  return [
    *({"method": method} for method in methods),
    # RG alone, and with PG of only one of the two batches.
    {"guidance.pg_real": False, "guidance.pg_synthetic": False},
    {"guidance.pg_synthetic": False},
    {"guidance.pg_real": False},
  ]
