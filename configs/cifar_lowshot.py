"""Ten real CIFAR-10 images a class and 45,000 synthetic ones: Table 4.

Setting 1 of the paper's low-shot experiments, columns "CIFAR-10 (10-shots)":

  python -m synguide_jax.main --config=configs/cifar_lowshot.py

CIFAR-10 comes through tfds, the weights from the Hugging Face hub, and the
synthetic images from a diffusion model that is trained first; how long that
takes is said before. On a CPU it is a tiny one, which generators/cifar10.py
calls so. The paper's generators were others; name your own images:

      --config.data.synthetic=folder:<path>

Images are stored and cropped at 32 px; both networks see them resized to 224
px. The paper's other size is 100 shots, --config.data.shots=100.

`cifar_lowshot.py:small` trains kuangliu's ResNet-18 at 32 px from scratch
instead; --config.pretrained.image_size=96 leaves M_p a fifth of the pixels.

Without network, take any checkpoint folder that transformers or timm left, or a
file of torchvision's:

      --config.pretrained.weights=<path> --config.model.init=<path>

An epoch is a pass over the synthetic images, or the only ones there are: 200
of them are 140,625 steps of guided (64 synthetic images each), 70,469 of aug,
and 157 of real with ten shots; set num_steps to compare at equal steps.

Hardware, wall time and result: not run.
"""

from synguide_jax import config as config_lib
from synguide_jax import paper

ARGS = ("full", "small", "smoke")


def get_config(arg=None):
  """Returns the config; ``arg`` is one of ``ARGS``, "full" by default."""
  arg = config_lib.check_arg(arg, ARGS, default="full")
  config = paper.with_cifar10(paper.low_shot())
  # A generator trained on the 45,000 training images.
  config.data.synthetic = "generate:configs/generators/cifar10.py:auto"
  # 100 real images, drawn anew for every run.
  config.data.shots = 10

  if arg == "small":
    config.model.name = "cifar_resnet18"
    config.model.init = "scratch"
    config.model.image_size = 0
    # Of CIFAR-10.
    config.model.mean = (0.4914, 0.4822, 0.4465)
    config.model.std = (0.2023, 0.1994, 0.2010)
  return config_lib.smoke(config) if arg == "smoke" else config


def get_sweep(arg=None):
  """Returns the rows of Table 4."""
  del arg
  # The paper's "Baseline (Real)" has all 45,000 images.
  return [*paper.low_shot_rows(), {"method": "real", "data.shots": -1}]
