"""What the configs of the paper's experiments have in common.

Wang et al., *Improving the Effectiveness of Deep Generative Data*, WACV 2024,
Sections 3 and 5: ResNet-50 at 224 px, random crop and flip, batches of 128
images, 200 epochs, learning rate 1e-4, means over five runs. Its main text
leaves open the optimiser (Adam here), the size of images before the crop (256
px here, 32 of CIFAR-10), lambda_1 to lambda_3 (1, 1 and 10 here) and whether
validation images choose the weights (in low-shot experiments here, not in
zero-shot ones).
"""

from ml_collections import ConfigDict

from synguide_jax import config as config_lib

# torchvision's first weights, as the codes of the paper's baselines use.
_IMAGENET_RESNET50 = "hf:timm/resnet50.tv_in1k"


def low_shot() -> ConfigDict:
  """Returns the setting of Table 4: RG, PG-R and PG-F, init (B).

  M_u begins from the ImageNet weights that M_p keeps.
  """
  config = config_lib.classifier_defaults()
  config.num_runs = 5
  # Five ResNet-50 at once would take five times the memory.
  config.runs_mode = "map"
  config.batch_size = 128
  config.num_epochs = 200.0
  config.optimizer.learning_rate = 1e-4

  config.data.store_size = 256
  config.data.image_size = 224
  config.data.flip = True

  config.model.name = "resnet50"
  config.model.init = _IMAGENET_RESNET50
  config.model.image_size = 224
  # From scratch; a checkpoint has the same of its own.
  config.model.mean = (0.485, 0.456, 0.406)
  config.model.std = (0.229, 0.224, 0.225)
  config.pretrained.weights = _IMAGENET_RESNET50
  return config


def zero_shot(*, scratch: bool) -> ConfigDict:
  """Returns the setting of Table 2: PG-F alone, no real training images.

  Args:
    scratch: Whether M_u begins from random weights, the paper's (A), instead
      of ImageNet's, its (B).
  """
  config = low_shot()
  if scratch:
    config.model.init = "scratch"
  config.guidance.rg = False
  config.guidance.pg_real = False
  config.data.shots = 0
  # A validation set, where there is one, is only looked at.
  config.select = "last"
  return config


def with_cifar10(config: ConfigDict) -> ConfigDict:
  """Returns ``config``, changed to the paper's split of CIFAR-10."""
  config.data.real = "tfds:cifar10"
  # The images as they are, with a border of black to crop from; networks
  # resize them.
  config.data.store_size = 32
  config.data.image_size = 32
  config.data.padding = 4
  # 500 of each class; the test images are the official ones.
  config.data.validation = 5_000
  # 45,000 synthetic images.
  config.data.synthetic_per_class = 4_500
  return config


def low_shot_rows() -> list[dict[str, object]]:
  """Returns the rows of Table 4 that can be trained, as overrides."""
  methods = ("real", "fake", "aug", "balanced", "weighted", "a_gem", "guided")
  return [
    *({"method": method} for method in methods),
    # PG without RG, RG alone, and with PG of only one of the two batches.
    {"guidance.rg": False},
    {"guidance.pg_real": False, "guidance.pg_synthetic": False},
    {"guidance.pg_synthetic": False},
    {"guidance.pg_real": False},
  ]


def zero_shot_rows() -> list[dict[str, object]]:
  """Returns the rows of Table 2 that can be trained, as overrides."""
  return [
    {"method": "fake"},
    # Averaged over the pairs: summed over a row, as kl is, and times 10 it
    # would drown the cross entropy.
    {
      "guidance.similarity": "l1",
      "guidance.reduction": "elementmean",
      "guidance.pg_weight": 1.0,
    },
    {"guidance.similarity": "kl"},
    # All the real images, as the paper compares with.
    {"method": "real", "data.shots": -1},
  ]
