"""The trained and the frozen network, from configs and checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synguide_jax import config as config_lib
from synguide_jax import models, pretrained_guidance_loss
from synguide_jax.errors import UserError
from synguide_jax.methods import networks
from synguide_jax.methods.base import Info
from synguide_jax.models import export, pretrained
from tests import shared, tiny

KEY = jax.random.key(0)
INFO = Info(("a", "b", "c", "d"), (8, 8, 3), {"real": (3,) * 4})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A ResNet for three classes of 16 px, in the hub's layout."""
  preprocessing = models.Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 16)
  model = models.create(
    "resnet18",
    num_classes=3,
    width=8,
    blocks=(1, 1, 1, 1),
    preprocessing=preprocessing,
  )
  variables = jax.jit(model.init)(KEY, jnp.zeros((1, 16, 16, 3)))
  network = pretrained.Pretrained(model, variables, (16, 16, 3))
  folder = tmp_path_factory.mktemp("hub") / "net"
  export.to_transformers(network, folder, ("x", "y", "z"))
  return str(folder)


def test_frozen_network_gets_what_it_expects(folder):
  """A resized copy of the trained network's images, normalised its own way."""
  config = tiny.config(**{"pretrained.weights": folder})
  frozen = networks.create_frozen(config, INFO)
  images = jax.random.uniform(KEY, (2, *INFO.image_shape))
  variables = jax.jit(frozen.init)(KEY, images)
  features = jax.jit(frozen.features, static_argnums=2)(
    variables, images, "stage3"
  )
  prepared = jax.image.resize(images, (2, 16, 16, 3), "bilinear")
  prepared = (prepared - jnp.array([0.4, 0.5, 0.6])) / jnp.array(
    [0.2, 0.3, 0.4]
  )
  checkpoint = pretrained.load_pretrained(folder)
  (_, stages), _ = jax.jit(
    lambda v, x: checkpoint.model.module.apply(
      v, x, train=False, mutable=["batch_stats"]
    )
  )(checkpoint.variables, prepared)
  np.testing.assert_allclose(
    features, stages["stage3"].mean((1, 2)), rtol=1e-5, atol=1e-6
  )


def test_frozen_network_may_see_smaller_images_in_bfloat16(folder):
  config = tiny.config(
    **{
      "pretrained.weights": folder,
      "pretrained.image_size": 12,
      "pretrained.dtype": "bfloat16",
    }
  )
  model = networks.create_frozen(config, INFO).model
  assert model.preprocessing.size == 12
  assert model.preprocessing.mean == (0.4, 0.5, 0.6)
  assert model.options["dtype"] == "bfloat16"


def test_training_begins_from_a_published_checkpoint_with_a_new_head(folder):
  config = tiny.config(**{"model.name": "resnet18", "model.init": folder})
  trained = networks.create_trained(config, INFO)
  checkpoint = pretrained.load_pretrained(folder)
  assert trained.model.preprocessing == checkpoint.model.preprocessing
  variables = jax.jit(trained.init_variables)(KEY, jnp.zeros((1, 8, 8, 3)))
  for name, value in variables["params"].items():
    if name == "head":
      assert value["kernel"].shape[-1] == 4
    else:
      jax.tree.map(
        np.testing.assert_array_equal,
        *(value, checkpoint.variables["params"][name]),
      )


def test_scratch_networks_may_see_larger_images():
  config = tiny.config(**{"model.image_size": 16, "model.dtype": "bfloat16"})
  model = networks.create_trained(config, INFO).model
  assert model.preprocessing.size == 16
  assert model.options["dtype"] == "bfloat16"


def test_checkpoints_that_do_not_fit_are_refused(folder):
  grey = Info(INFO.class_names, (8, 8, 1), INFO.class_counts)
  config = tiny.config(**{"pretrained.weights": folder})
  with pytest.raises(UserError, match="3 channels, but data.channels is 1"):
    networks.create_frozen(config, grey)
  config = tiny.config(**{"model.init": folder})
  with pytest.raises(UserError, match="holds a resnet18.*'small_cnn'"):
    networks.create_trained(config, INFO)


def test_real_weights_guide_the_cifar_config():
  config = config_lib.load("configs/cifar_lowshot.py")
  weights = shared.folder() / "weights" / "mobilenet_v2_imagenet"
  config.pretrained.weights = str(weights)
  config.pretrained.image_size = 64
  info = Info(tuple("abcdefghij"), (32, 32, 3), {"real": (10,) * 10})
  frozen = networks.create_frozen(config, info)
  images = jax.random.uniform(KEY, (4, *info.image_shape))
  variables = jax.jit(frozen.init)(KEY, images)
  features = jax.jit(frozen.features, static_argnums=2)(
    variables, images, "stage3"
  )
  # Of its third stage, 1/16 of the side.
  assert features.shape == (4, 96)
  loss = pretrained_guidance_loss(jax.random.normal(KEY, (4, 256)), features)
  assert 0 < loss < 1
