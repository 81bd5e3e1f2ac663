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


_ASG_AND_CSG = {
  "batch_size": 32,
  "num_steps": 0,
  "num_epochs": 30.0,
  "optimizer.name": "sgd",
  "optimizer.learning_rate": 1e-4,
  "optimizer.momentum": 0.9,
  "optimizer.weight_decay": 5e-4,
}

# Optimizer, schedule and batches of the methods' authors, by method, as
# overrides; what docs/methods.md calls "as published". The paper trains with
# "default hyperparameters from the authors for selected baselines", and does
# not say which.
PUBLISHED = {
  "asg": {**_ASG_AND_CSG, "optimizer.schedule": "asg"},
  "csg": {
    **_ASG_AND_CSG,
    "optimizer.schedule": "csg",
    "data.randaugment_layers": 1,
    "data.randaugment_magnitude": 6,
  },
  "dann": {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.01,
    "optimizer.momentum": 0.9,
    "optimizer.schedule": "dann",
  },
  "adda": {
    "optimizer.name": "adam",
    "optimizer.learning_rate": 2e-4,
    "optimizer.b1": 0.5,
    "adda.activation": "relu",
  },
  "dada": {
    # 128 of each domain.
    "batch_size": 256,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 1e-4,
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 1e-4,
    "optimizer.schedule": "dann",
  },
  "ltda": {
    "batch_size": 100,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.1,
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 5e-4,
    "optimizer.schedule": "step",
    "optimizer.decay_factor": 0.01,
    # The first drop is where the second stage begins.
    "optimizer.decay_at": (0.8, 0.9),
    "two_stage.first_share": 0.8,
    "two_stage.second_epochs_of": "synthetic",
    "two_stage.reset_optimizer": False,
  },
}


def low_shot_rows() -> list[dict[str, object]]:
  """Returns the rows of Table 4, and others beside them, as overrides.

  All are trained alike; those of ``PUBLISHED`` also as their authors do.
  """
  baselines = ("real", "fake", "aug", "adp")
  others = ("adda", "dada", "dann", "ltda", "a_gem")
  return [
    *({"method": method} for method in (*baselines, *others)),
    *({"method": m, **PUBLISHED[m]} for m in others if m in PUBLISHED),
    # Beyond the paper. To fine-tune M_p is aug where M_u begins from it.
    {"method": "balanced"},
    {"method": "weighted"},
    {"method": "weighted", "weighted.replacement_probability": 0.5},
    {"method": "linear_probe", "transfer.train_on": "real"},
    {"method": "linear_probe"},
    {"method": "guided"},
    # PG without RG, RG alone, and with PG of only one of the two batches.
    {"method": "guided", "guidance.rg": False},
    {
      "method": "guided",
      "guidance.pg_real": False,
      "guidance.pg_synthetic": False,
    },
    {"method": "guided", "guidance.pg_synthetic": False},
    {"method": "guided", "guidance.pg_real": False},
  ]


def zero_shot_rows(*, alike: bool = True) -> list[dict[str, object]]:
  """Returns the rows of Table 2 as overrides.

  All are trained alike; ASG and CSG also as their authors do.

  Args:
    alike: Whether M_u and M_p are networks of one structure, without which CSG
      cannot be trained.
  """
  others = ("asg", "csg") if alike else ("asg",)
  return [
    {"method": "fake"},
    *({"method": method} for method in others),
    *({"method": method, **PUBLISHED[method]} for method in others),
    # Averaged over the pairs: summed over a row, as kl is, and times 10 it
    # would drown the cross entropy.
    {
      "method": "guided",
      "guidance.similarity": "l1",
      "guidance.reduction": "elementmean",
      "guidance.pg_weight": 1.0,
    },
    {"method": "guided", "guidance.similarity": "kl"},
    # All the real images, as the paper compares with.
    {"method": "real", "data.shots": -1},
  ]
