"""A training small enough for tests, shared by several of them."""

import flax.linen as nn
import jax.numpy as jnp

from synguide_jax import config as config_lib
from synguide_jax.models.base import Architecture
from synguide_jax.models.layers import BatchNorm, classify, numbered_stages
from synguide_jax.models.resnet import ResNet

# Two stages of a block each, with batch normalisation; to be put in MODELS.
RESNET = Architecture(
  ResNet,
  {"blocks": (1, 1), "bottleneck": False, "width": 4, "small_images": True},
)


class Dense(nn.Module):
  """A network that compiles in no time."""

  num_classes: int
  normalised: bool = False
  dtype: object = jnp.float32
  stages = numbered_stages(0)

  @nn.compact
  def __call__(self, images, *, train, upto=None):
    x = nn.Dense(16)(images.reshape(len(images), -1))
    if self.normalised:
      x = BatchNorm(train)(x)
    x = nn.tanh(x)
    return classify({}, x, num_classes=self.num_classes, upto=upto)


def config(**overrides):
  """The digits as both sets, a random M_p, two runs of six steps."""
  tiny = config_lib.classifier_defaults()
  tiny.update_from_flattened_dict(
    {
      "num_runs": 2,
      "data.real": "digits",
      "data.synthetic": "digits",
      "data.image_size": 8,
      "data.channels": 1,
      "data.padding": 1,
      "data.shots": 3,
      "data.validation": 40,
      "data.test": 50,
      "model.name": "small_cnn",
      "pretrained.weights": "random",
      "pretrained.random_model": "small_cnn",
      "batch_size": 16,
      "num_steps": 6,
      # Hooks see every step.
      "steps_per_dispatch": 1,
      "optimizer.learning_rate": 1e-3,
      "eval_every": 2,
      "eval_batch_size": 32,
      "checkpoint_every": 2,
      **overrides,
    }
  )
  return tiny


class Recorder:
  """A metric writer that remembers."""

  def __init__(self):
    self.scalars = []

  def write_scalars(self, step, scalars):
    self.scalars.append((step, dict(scalars)))

  def flush(self):
    pass
